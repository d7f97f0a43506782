"""Real programs, unchanged, on the mount."""

from __future__ import annotations

import filecmp
import hashlib
import os
import random
import re
import shutil
import sqlite3
import sys
import sysconfig
import tarfile
from pathlib import Path

import pytest

from tests.suite.testbed import PROJECT, run

MIB = 1 << 20
BIG_BYTES = 100 * MIB
SORTED_LINES = 200_000
C_SOURCES = 20


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test on a machine that lacks one of the programs."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def identical(one: Path, other: Path) -> bool:
    """Whether two trees hold the same names and bytes."""
    return run("diff", "-r", "--no-dereference", one, other, check=False).returncode == 0


@pytest.fixture(scope="module")
def source_tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Some hundred real source files in nested directories, with symlinks, odd modes and old times, off the mount."""
    tree = tmp_path_factory.mktemp("source") / "tree"
    library = Path(sysconfig.get_path("stdlib"))
    for package in ("asyncio", "email", "importlib", "json", "multiprocessing", "unittest", "xml"):
        shutil.copytree(library / package, tree / package, ignore=shutil.ignore_patterns("__pycache__"))
    (tree / "link").symlink_to("json/decoder.py")
    (tree / "dangling").symlink_to("nowhere")
    (tree / "empty").mkdir()
    (tree / "json/decoder.py").chmod(0o741)
    os.link(tree / "json/scanner.py", tree / "hard")
    os.utime(tree / "json/encoder.py", ns=(10**18 + 1, 10**18 + 123_456_789))
    return tree


def test_cp_a_keeps_everything(root: Path, source_tree: Path) -> None:
    """Content, modes, times to the nanosecond, links; and back again."""
    run("cp", "-a", source_tree, root / "tree")
    run("cp", "-a", root / "tree", root / "again")
    for copy in (root / "tree", root / "again"):
        assert identical(source_tree, copy)
        assert (copy / "json/decoder.py").stat().st_mode == (source_tree / "json/decoder.py").stat().st_mode
        assert (copy / "json/encoder.py").stat().st_mtime_ns == 10**18 + 123_456_789
        assert (copy / "link").readlink() == Path("json/decoder.py")
        assert (copy / "hard").stat().st_ino == (copy / "json/scanner.py").stat().st_ino


def test_rm_r_removes_a_tree(root: Path, source_tree: Path) -> None:
    """Nothing is left of it."""
    run("cp", "-r", source_tree, root / "tree")
    run("rm", "-r", root / "tree")
    assert os.listdir(root) == []


def test_cp_cat_and_dd_move_a_big_file(root: Path, tmp_path: Path) -> None:
    """Bytes in, bytes out, at several block sizes."""
    original = tmp_path / "big"
    original.write_bytes(random.Random(11).randbytes(BIG_BYTES))
    wanted = hashlib.sha256(original.read_bytes()).hexdigest()
    run("cp", original, root / "cp")
    run("dd", f"if={root}/cp", f"of={root}/dd", "bs=64k", "conv=fsync")
    run("sh", "-c", f"cat '{root}/dd' > '{root}/cat'")
    for name in ("cp", "dd", "cat"):
        assert run("sha256sum", root / name).stdout.split()[0] == wanted
    run("dd", f"if={root}/cp", f"of={root}/odd", "bs=12345", "skip=1", "seek=1")
    run("dd", f"if={root}/cp", f"of={root}/odd", "bs=12345", "count=1", "conv=notrunc")
    assert run("sha256sum", root / "odd").stdout.split()[0] == wanted


def test_tar_packs_and_unpacks_a_tree(root: Path, source_tree: Path) -> None:
    """From the mount to the mount, compressed and not."""
    for flags in ("", "z"):
        archive, there = root / f"archive{flags}", root / f"there{flags}"
        run("tar", f"-c{flags}f", archive, "-C", source_tree.parent, "tree")
        assert tarfile.is_tarfile(archive)
        there.mkdir()
        run("tar", f"-x{flags}pf", archive, "-C", there)
        assert identical(source_tree, there / "tree")
    run("tar", "-cf", root / "second", "-C", root / "there", "tree")
    run("tar", "--compare", "-f", root / "second", "-C", root / "there")


@needs("rsync")
def test_a_second_rsync_transfers_nothing(root: Path, source_tree: Path) -> None:
    """Sizes, times and attributes came out as they went in, so there is nothing to do."""

    def transferred() -> int:
        printed = run("rsync", "-aHX", "--stats", f"{source_tree}/", root / "mirror").stdout
        count = re.search(r"Number of regular files transferred: ([\d,]+)", printed)
        assert count is not None, printed
        return int(count[1].replace(",", ""))

    assert transferred() > 100
    assert identical(source_tree, root / "mirror")
    assert transferred() == 0


@needs("git")
def test_git_keeps_a_repository(root: Path, source_tree: Path) -> None:
    """Init, add, commit, clone, gc and fsck; the clone has the same tree and a clean status."""
    repository, clone = root / "repository", root / "clone"
    shutil.copytree(source_tree, repository, symlinks=True)

    def git(*arguments: str, at: Path = repository) -> str:
        identity = ("-c", "user.name=Test", "-c", "user.email=test@example.invalid", "-c", "safe.directory=*")
        return run("git", *identity, "-C", str(at), *arguments).stdout

    git("init", "--quiet", "--initial-branch=main")
    git("add", "--all")
    git("commit", "--quiet", "-m", "first")
    (repository / "json/tool.py").write_text("changed\n")
    git("commit", "--quiet", "-a", "-m", "second")
    git("clone", "--quiet", str(repository), str(clone), at=root)
    git("gc", "--quiet")
    for place in (repository, clone):
        git("fsck", "--full", "--strict", at=place)
        assert git("status", "--porcelain", at=place) == ""
        assert len(git("log", "--oneline", at=place).splitlines()) == 2
    assert (clone / "json/tool.py").read_text() == "changed\n"


@pytest.mark.parametrize("mode", ["delete", "wal", "truncate"])
def test_sqlite_keeps_a_database(root: Path, mode: str) -> None:
    """Transactions, a rollback, an index and two connections; integrity_check is content, in every journal mode."""
    path = root / "database"
    with sqlite3.connect(path) as writer, sqlite3.connect(path) as reader:
        assert writer.execute(f"PRAGMA journal_mode={mode}").fetchone() == (mode,)
        writer.execute("CREATE TABLE item (number INTEGER PRIMARY KEY, body BLOB)")
        for batch in range(10):
            rows = ((batch * 500 + number, os.urandom(200)) for number in range(500))
            writer.executemany("INSERT INTO item VALUES (?, ?)", rows)
            writer.commit()
            assert reader.execute("SELECT count(*) FROM item").fetchone() == ((batch + 1) * 500,)
        writer.execute("DELETE FROM item")
        writer.rollback()
        writer.execute("CREATE INDEX by_body ON item (body)")
        writer.commit()
        assert reader.execute("SELECT count(*) FROM item").fetchone() == (5000,)
    writer.close()
    reader.close()
    with sqlite3.connect(path) as again:
        assert again.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        again.execute("VACUUM")
    again.close()


@needs("sqlite3")
def test_the_sqlite_program_reads_and_writes(root: Path) -> None:
    """Two runs of the program on one database file."""
    run("sqlite3", root / "database", "CREATE TABLE t (a); INSERT INTO t VALUES (1), (2);")
    assert run("sqlite3", root / "database", "SELECT sum(a) FROM t; PRAGMA integrity_check;").stdout == "3\nok\n"


@needs("gcc", "make")
def test_a_c_project_is_built_and_runs(root: Path) -> None:
    """make -j2 compiles and links some files, the program runs; a second make has nothing to do."""
    for number in range(C_SOURCES):
        (root / f"part{number}.c").write_text(f"int part{number}(void) {{ return {number}; }}\n")
    calls = " + ".join(f"part{number}()" for number in range(C_SOURCES))
    declarations = "".join(f"int part{number}(void);\n" for number in range(C_SOURCES))
    (root / "main.c").write_text(
        f'#include <stdio.h>\n{declarations}int main(void) {{ printf("%d\\n", {calls}); return 0; }}\n'
    )
    (root / "Makefile").write_text(
        "objects := $(patsubst %.c,%.o,$(wildcard *.c))\n"
        "program: $(objects)\n\t$(CC) -o $@ $^\n"
        "%.o: %.c\n\t$(CC) -g -O1 -c -o $@ $<\n"
    )
    run("make", "-C", root, "-j2")
    assert run(root / "program").stdout == f"{sum(range(C_SOURCES))}\n"
    assert "up to date" in run("make", "-C", root, "-j2").stdout


def test_a_virtual_environment_works(root: Path) -> None:
    """`python -m venv` makes one with pip in it, and both programs run from the mount."""
    run(sys.executable, "-m", "venv", root / "venv")
    python = root / "venv/bin/python"
    assert Path(run(python, "-c", "import sys; print(sys.prefix)").stdout.strip()) == root / "venv"
    assert run(python, "-m", "pip", "--version").stdout.startswith("pip ")
    (root / "module.py").write_text("import json\nprint(json.dumps({'on': 'the mount'}))\n")
    assert run(python, root / "module.py").stdout == '{"on": "the mount"}\n'


def test_sort_sorts_a_file_larger_than_its_buffer(root: Path) -> None:
    """With a buffer of 1 MiB and its temporary files on the mount, sort merges what it wrote."""
    numbers = list(range(SORTED_LINES))
    random.Random(12).shuffle(numbers)
    (root / "shuffled").write_text("".join(f"{number:08} some text to make the line longer\n" for number in numbers))
    run("sort", "-S", "1M", "-T", root, "-o", root / "sorted", root / "shuffled")
    lines = (root / "sorted").read_text().splitlines()
    assert [int(line[:8]) for line in lines] == list(range(SORTED_LINES))
    assert sorted(os.listdir(root)) == ["shuffled", "sorted"]


def test_find_grep_and_du_walk_the_tree(root: Path, source_tree: Path) -> None:
    """The counts on the mount are those off it."""
    run("cp", "-a", source_tree, root / "tree")
    for command in (
        "find . -type f | sort | md5sum",
        "find . -type l | wc -l",
        "grep -r 'def ' . | sort | md5sum",
        "find . -newer json/encoder.py -type f | wc -l",
        "du --apparent-size -b --max-depth=0 json/decoder.py",
    ):
        here, there = (run("sh", "-c", f"cd '{place}' && {command}").stdout for place in (root / "tree", source_tree))
        assert here == there, command


def test_editors_save_by_renaming(root: Path) -> None:
    """sed -i and install replace files atomically, and patch and truncate change them in place."""
    path = root / "file"
    path.write_text("one\ntwo\n")
    run("sed", "-i", "s/one/1/", path)
    assert path.read_text() == "1\ntwo\n"
    run("install", "-m", "0600", path, root / "installed")
    assert filecmp.cmp(path, root / "installed", shallow=False)
    run("truncate", "-s", "10", path)
    assert path.read_bytes() == b"1\ntwo\n\0\0\0\0"


def test_the_project_itself_can_be_compiled_from_the_mount(root: Path) -> None:
    """Python writes and reads its cache of compiled modules there."""
    shutil.copytree(PROJECT / "gridfs", root / "gridfs", ignore=shutil.ignore_patterns("__pycache__"))
    run(sys.executable, "-m", "compileall", "-q", root / "gridfs")
    assert list(root.glob("gridfs/__pycache__/*.pyc"))
