"""The store: what is saved is loaded again, all of it or nothing, whatever kills the process."""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from gridfs.errors import GridfsError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.store import FORMAT, Store
from gridfs.meta.table import RENAME_EXCHANGE, Table
from tests.unit.tables import SYMLINK, Dump, Steps, dump

PROJECT = Path(__file__).resolve().parents[2]


class Kept:
    """A store under test: `save` as the server does, `reload` as its successor."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.store = Store(path)
        self.steps = Steps()

    def save(self, **facts: Any) -> None:
        table = self.steps.table
        self.store.save(table, table.changes, facts)
        table.changes.clear()

    def reload(self) -> Table:
        self.store.close()
        self.store = Store(self.path)
        table = self.store.load()
        assert table.check() == []
        assert not table.changes
        return table

    def written(self, action: Callable[[], Any]) -> list[str]:
        """The rows that `action` writes or deletes, as "table: key"."""
        rows: list[str] = []
        database = self.store._database
        database.create_function("told", 1, rows.append)
        keys = {"inodes": "{}.ino", "names": "{0}.parent || '/' || {0}.name", "chunks": "{0}.ino || '/' || {0}.idx"}
        for table, key in keys.items():
            for event, row in (("INSERT", "NEW"), ("DELETE", "OLD")):
                database.execute(
                    f"CREATE TEMP TRIGGER {event}_{table} AFTER {event} ON main.{table} "
                    f"BEGIN SELECT told('{event} {table} ' || {key.format(row)}); END"
                )
        try:
            action()
        finally:
            for table in keys:
                for event in ("INSERT", "DELETE"):
                    database.execute(f"DROP TRIGGER {event}_{table}")
        return sorted(rows)


@pytest.fixture
def kept(tmp_path: Path) -> Iterator[Kept]:
    kept = Kept(tmp_path / "inodes.sqlite")
    yield kept
    kept.store.close()


def fill(steps: Steps) -> int:
    """Something of every kind; returns a file's number."""
    directory = steps.mkdir(b"dir\xff")
    file = steps.make(b"file", directory)
    steps.make(b"symlink", mode=SYMLINK, target=b"to \xfe")
    steps.do("link", file, ROOT_INO, b"other")
    steps.do("set_xattr", file, b"user.a", b"\x00\xff")
    steps.do("change", file, None, 2**31, 2**32 - 2, 2**62, -5, 2**62)
    steps.do("place", file, 0, ("a", "b"))
    steps.do("place", file, 2**31, ("b",))
    orphan = steps.make(b"orphan")
    steps.do("place", orphan, 0, ("a",))
    steps.do("unlink", ROOT_INO, b"orphan")
    return file


# -- what is kept ----------------------------------------------------------------------------------------------------


def test_what_is_saved_is_loaded_equal(kept: Kept) -> None:
    fill(kept.steps)
    kept.save(epoch=3)
    assert dump(kept.reload()) == dump(kept.steps.table)


def test_what_is_changed_and_removed_later_is_too(kept: Kept) -> None:
    file = fill(kept.steps)
    kept.save()
    kept.steps.do("change", file, None, None, None, 1)
    kept.steps.do("rename", ROOT_INO, b"other", ROOT_INO, b"renamed")
    kept.steps.do("reap", next(iter(kept.steps.table.orphans)))
    kept.steps.do("remove_xattr", file, b"user.a")
    kept.save()
    assert dump(kept.reload()) == dump(kept.steps.table)


def test_a_new_store_is_an_empty_table(kept: Kept) -> None:
    assert dump(kept.store.load()) == dump(Table())


def test_facts_are_kept_and_others_have_their_default(kept: Kept) -> None:
    kept.save(epoch=7, session={"id": "x", "n": [1, None]})
    kept.save(applied=2**40)
    kept.reload()
    facts = [kept.store.fact(name, "none") for name in ("epoch", "session", "applied", "unknown")]
    assert facts == [7, {"id": "x", "n": [1, None]}, 2**40, "none"]


def test_the_number_of_the_newest_inode_is_not_used_again_after_it_is_gone(kept: Kept) -> None:
    kept.steps.make(b"file")
    kept.steps.do("unlink", ROOT_INO, b"file")
    kept.steps.do("reap", 2)
    kept.save()
    assert kept.reload().next_ino == 3


def test_the_store_is_for_its_owner(tmp_path: Path) -> None:
    Store(tmp_path / "new" / "inodes.sqlite").close()
    assert (tmp_path / "new").stat().st_mode & 0o777 == 0o700


# -- the order of names ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "ops",
    [
        [("unlink", ROOT_INO, b"a"), ("make", 50, ROOT_INO, b"a", 0o100644, 0, 0)],
        [("rename", ROOT_INO, b"a", ROOT_INO, b"b")],
        [("rename", ROOT_INO, b"c", ROOT_INO, b"new"), ("rename", ROOT_INO, b"new", ROOT_INO, b"c")],
        [("rename", ROOT_INO, b"a", ROOT_INO, b"b", RENAME_EXCHANGE)],
    ],
    ids=["made again", "replaced", "there and back", "exchanged"],
)
@pytest.mark.parametrize("saved_between", [True, False])
def test_names_keep_their_order(kept: Kept, ops: list[tuple[Any, ...]], saved_between: bool) -> None:
    for name in (b"c", b"a", b"b", b"d"):
        kept.steps.make(name)
    if saved_between:
        kept.save()
    for op in ops:
        kept.steps.do(*op)
        if saved_between:
            kept.save()
    kept.save()
    assert list(kept.reload().directory_entries(ROOT_INO)) == list(kept.steps.names())


# -- only what was touched -------------------------------------------------------------------------------------------


def test_only_touched_rows_are_written(kept: Kept) -> None:
    file = fill(kept.steps)
    kept.save()
    assert kept.written(kept.save) == []
    kept.steps.do("touch", file)
    assert kept.written(kept.save) == [f"INSERT inodes {file}"]
    kept.steps.do("place", file, 1, ("a",))
    assert kept.written(kept.save) == [f"INSERT chunks {file}/1"]
    ino = kept.steps.make(b"new")
    assert kept.written(kept.save) == [f"INSERT inodes {ROOT_INO}", f"INSERT inodes {ino}", f"INSERT names {ROOT_INO}/new"]
    kept.steps.do("unlink", ROOT_INO, b"new")
    kept.steps.do("reap", ino)
    assert kept.written(kept.save) == [f"DELETE inodes {ino}", f"DELETE names {ROOT_INO}/new", f"INSERT inodes {ROOT_INO}"]
    kept.steps.do("change", file, None, None, None, 0)
    assert kept.written(kept.save) == [*(f"DELETE chunks {file}/{i}" for i in (0, 1, 2**31)), f"INSERT inodes {file}"]


# -- failures --------------------------------------------------------------------------------------------------------


def test_a_failing_save_keeps_nothing_and_the_next_one_everything(kept: Kept) -> None:
    fill(kept.steps)
    kept.save(applied=1)
    before = dump(kept.steps.table)
    kept.steps.make(b"later")
    with pytest.raises(TypeError):
        kept.save(applied=object())
    assert kept.store.fact("applied") == 1
    assert saved(kept.path) == before
    kept.save(applied=2)
    assert dump(kept.reload()) == dump(kept.steps.table)


def test_a_full_disk_fails_a_save_and_the_next_one_keeps_everything(kept: Kept) -> None:
    kept.save()
    database = kept.store._database
    pages = database.execute("PRAGMA page_count").fetchone()[0]
    for number in range(200):
        kept.steps.do("set_xattr", kept.steps.make(b"%d" % number), b"user.a", bytes(5000))
    database.execute(f"PRAGMA max_page_count = {pages + 10}")
    with pytest.raises(sqlite3.OperationalError, match="full"):
        kept.save()
    assert len(saved(kept.path)["inodes"]) == 1
    database.execute("PRAGMA max_page_count = 1000000")
    kept.save()
    assert dump(kept.reload()) == dump(kept.steps.table)


def saved(path: Path) -> Dump:
    """What somebody else would load now."""
    other = Store(path)
    table = other.load()
    other.close()
    return dump(table)


@pytest.mark.parametrize("content", [b"no database, but longer than the header of one " * 9, b"\0" * 4096])
def test_what_is_no_store_is_told_and_left_alone(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "inodes.sqlite"
    path.write_bytes(content)
    with pytest.raises(GridfsError, match=r"inodes\.sqlite is not a gridfs inode store .*: move it away"):
        Store(path)
    assert path.read_bytes() == content


def test_a_folder_in_its_place_is_told(tmp_path: Path) -> None:
    with pytest.raises(GridfsError, match="is not a gridfs inode store"):
        Store(tmp_path)


def test_a_damaged_store_is_told(kept: Kept) -> None:
    for number in range(300):
        kept.steps.make(b"%d" % number)
    kept.save()
    kept.store.close()
    damaged = bytearray(kept.path.read_bytes())
    damaged[4096:] = random.Random(1).randbytes(len(damaged) - 4096)
    kept.path.write_bytes(damaged)
    with pytest.raises(GridfsError, match=r"inodes\.sqlite"):
        Store(kept.path).load()


def test_a_store_of_another_format_is_refused(kept: Kept) -> None:
    kept.save(format=FORMAT + 1)
    with pytest.raises(GridfsError, match=f"is of format {FORMAT + 1}, this gridfs reads {FORMAT}"):
        Store(kept.path)
    kept.save(format=FORMAT)


# -- crashes ---------------------------------------------------------------------------------------------------------

WRITER = """
import os, sys
from pathlib import Path
from gridfs.meta.store import Store
from gridfs.meta.table import Table

store, table = Store(Path(sys.argv[1])), Table()
die_within = int(sys.argv[2])
write_facts = store._write_facts

def write_facts_or_die(facts):
    write_facts(facts)
    if facts.get("applied") == die_within:
        os._exit(7)

store._write_facts = write_facts_or_die
table.apply(("format", 0, 0, 0))
for batch in range(1, 1_000_000):
    for number in range(5):
        table.apply(("make", batch, table.next_ino, 1, b"%d-%d" % (batch, number), 0o100644, 0, 0))
        table.apply(("place", table.next_ino - 1, 0, ("a",)))
    store.save(table, table.changes, {"applied": batch})
    table.changes.clear()
    print(batch, flush=True)
"""


def writer(path: Path, die_within: int) -> subprocess.Popen[str]:
    """A process that saves batch after batch of five new files, and prints the number of each saved batch."""
    command = [sys.executable, "-c", WRITER, str(path), str(die_within)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "PYTHONPATH": str(PROJECT)})


def assert_whole(path: Path, applied_min: int, applied_max: int) -> None:
    """The store holds just the batches up to the one it names."""
    store = Store(path)
    table = store.load()
    applied = store.fact("applied")
    store.close()
    assert table.check() == []
    assert applied_min <= applied <= applied_max
    names = [b"%d-%d" % (batch, number) for batch in range(1, applied + 1) for number in range(5)]
    assert list(table.directory_entries(ROOT_INO)) == names
    assert len(table.directory) == len(names)


def test_a_process_that_ends_within_a_transaction_leaves_the_one_before(tmp_path: Path) -> None:
    path = tmp_path / "inodes.sqlite"
    with writer(path, die_within=20) as process:
        printed, _ = process.communicate(timeout=60)
    assert (process.returncode, printed.split()[-1]) == (7, "19")
    assert_whole(path, 19, 19)


@pytest.mark.parametrize("seed", range(4))
def test_a_killed_process_has_lost_nothing_that_it_saved(tmp_path: Path, seed: int) -> None:
    path = tmp_path / "inodes.sqlite"
    with writer(path, die_within=-1) as process:
        assert process.stdout is not None
        batches = 1 + random.Random(seed).randrange(40)
        printed = [int(process.stdout.readline()) for _ in range(batches)]
        process.send_signal(signal.SIGKILL)
        printed += map(int, process.stdout.read().split())
    assert process.returncode == -signal.SIGKILL
    assert_whole(path, printed[-1], printed[-1] + 1)
