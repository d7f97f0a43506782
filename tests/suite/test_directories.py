"""Directories: making, removing, listing, counting."""

from __future__ import annotations

import errno
import os
import stat
import threading
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.syscalls import fails, listing, opened, write

MANY = 30_000
"""100,000 are listed by `tools/bench scale`: to make and remove them one by one takes most of a minute."""
STABLE = 3000
LISTINGS = 8


def test_umask_takes_bits_from_new_files_and_directories(root: Path) -> None:
    """The mode of what is made is the mode asked for less the umask."""
    os.umask(0o027)
    os.mkdir(root / "d", 0o777)
    with opened(root / "f", os.O_CREAT | os.O_WRONLY, 0o666):
        pass
    assert stat.S_IMODE((root / "d").stat().st_mode) == 0o750
    assert stat.S_IMODE((root / "f").stat().st_mode) == 0o640


def test_dot_dot_is_the_parent(root: Path) -> None:
    """`..` leads to the directory that holds the name, also after the directory was moved."""
    (root / "one" / "inner").mkdir(parents=True)
    (root / "two").mkdir()
    assert os.stat(f"{root}/one/inner/..").st_ino == (root / "one").stat().st_ino
    (root / "one/inner").rename(root / "two/inner")
    assert os.stat(f"{root}/two/inner/..").st_ino == (root / "two").stat().st_ino


def test_a_listing_tells_the_type_of_each_entry(root: Path) -> None:
    """readdir's d_type and d_ino are those of stat."""
    (root / "directory").mkdir()
    write(root / "file", b"")
    (root / "link").symlink_to("file")
    os.mkfifo(root / "fifo")
    with os.scandir(root) as entries:
        found = {entry.name: entry for entry in entries}
    assert sorted(found) == ["directory", "fifo", "file", "link"]
    assert found["directory"].is_dir(follow_symlinks=False)
    assert found["file"].is_file(follow_symlinks=False)
    assert found["link"].is_symlink()
    for name, entry in found.items():
        assert entry.inode() == (root / name).lstat().st_ino


def test_one_directory_holds_30_000_entries(root: Path) -> None:
    """All of them are listed, once each; any of them is found; the directory can be emptied again."""
    top = root / "many"
    top.mkdir()
    names = {f"entry-{number:06}" for number in range(MANY)}
    with opened(top, os.O_RDONLY | os.O_DIRECTORY) as directory:
        for name in names:
            os.mknod(name, stat.S_IFREG | 0o644, dir_fd=directory)
        listed = os.listdir(top)
        assert len(listed) == MANY
        assert set(listed) == names
        assert os.stat("entry-027777", dir_fd=directory).st_size == 0
        for name in listed:
            os.unlink(name, dir_fd=directory)
    top.rmdir()


class Churn(threading.Thread):
    """Makes and removes names in a directory until stopped."""

    def __init__(self, directory: Path) -> None:
        super().__init__()
        self.directory, self.stopped, self.error = directory, threading.Event(), ""

    def run(self) -> None:
        """Never more than a hundred names at a time."""
        try:
            number = 0
            while not self.stopped.is_set():
                os.mknod(self.directory / f"churn-{number}", stat.S_IFREG | 0o644)
                if number >= 100:
                    os.unlink(self.directory / f"churn-{number - 100}")
                number += 1
        except OSError as error:
            self.error = repr(error)


def test_a_listing_is_stable_under_concurrent_create_and_unlink(root: Path) -> None:
    """Names that are there all the time are listed exactly once, whatever else comes and goes meanwhile."""
    for number in range(STABLE):
        os.mknod(root / f"stable-{number}", stat.S_IFREG | 0o644)
    churn = Churn(root)
    churn.start()
    try:
        for _ in range(LISTINGS):
            counts = Counter(os.listdir(root))
            assert sum(name.startswith("stable-") for name in counts) == STABLE
            assert max(counts.values()) == 1
    finally:
        churn.stopped.set()
        churn.join()
    assert not churn.error


def test_removing_while_listing_misses_nothing(root: Path) -> None:
    """A listing that removes each entry as it goes, as rm -r does, meets them all."""
    for number in range(STABLE):
        os.mknod(root / f"{number}", stat.S_IFREG | 0o644)
    removed = 0
    with os.scandir(root) as entries:
        for entry in entries:
            os.unlink(entry.path)
            removed += 1
    assert removed == STABLE
    assert listing(root) == []


def test_a_removed_directory_takes_no_new_names(root: Path) -> None:
    """Through a handle that outlived it, a directory lists nothing and refuses to grow."""
    gone = root / "gone"
    gone.mkdir()
    with opened(gone, os.O_RDONLY | os.O_DIRECTORY) as directory:
        gone.rmdir()
        assert os.listdir(directory) == []
        assert os.fstat(directory).st_nlink == 0
        with fails(errno.ENOENT):
            os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=directory)


def test_a_deep_tree_can_be_walked(root: Path) -> None:
    """Fifty levels down and back, by path and by walking."""
    deepest = root.joinpath(*(f"level{number}" for number in range(50)))
    deepest.mkdir(parents=True)
    write(deepest / "file", b"deep")
    assert sum(len(files) for _, _, files in os.walk(root)) == 1
    assert (deepest / "file").read_bytes() == b"deep"


@pytest.mark.parametrize("kind", ["file", "directory", "symlink"])
def test_inode_numbers_are_stable_and_distinct(root: Path, kind: str) -> None:
    """The same object has the same number each time; two objects never share one."""
    makers: dict[str, Callable[[Path], object]] = {
        "file": Path.touch,
        "directory": Path.mkdir,
        "symlink": lambda path: path.symlink_to("x"),
    }
    paths = [root / f"{number}" for number in range(20)]
    for path in paths:
        makers[kind](path)
    numbers = [path.lstat().st_ino for path in paths]
    assert len(set(numbers)) == len(paths)
    assert numbers == [path.lstat().st_ino for path in paths]
