"""A loaded table: sound or refused, small, and no burden to the garbage collector."""

from __future__ import annotations

import gc
import sqlite3
import tracemalloc
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from gridfs.errors import GridfsError
from gridfs.meta import rows
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.store import Store
from gridfs.meta.table import Table
from tests.unit.tables import DIRECTORY, FILE, GID, UID, dump

SERVERS = ("gpu1-0123abcd",)
BYTES_AN_INODE = 450
"""What is allocated. A process takes a fifth more, which the allocator cannot use: together less than 600."""
FIRST, SECOND = 1000, 1001  # Python keeps one object of each smaller number anyway


def table_of(files: int) -> Table:
    """A directory of files that have been written once, each at another time."""
    table = Table()
    table.apply(("format", 0, UID, GID))
    table.apply(("make", 1, 2, ROOT_INO, b"photos", DIRECTORY, UID, GID))
    for ino in range(FIRST, FIRST + files):
        now_ns = 1_760_000_000 * 10**9 + 2 * ino
        table.apply(("make", now_ns, ino, 2, b"IMG_%012d.jpg" % ino, FILE, UID, GID))
        table.apply(("place", ino, 0, SERVERS))
        table.apply(("extend", now_ns + 1, ino, 100_000 + ino))
    return table


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "inodes.sqlite"


@pytest.fixture
def thawed() -> Iterator[None]:
    """What a test freezes is thawed after it."""
    yield
    gc.unfreeze()


def save(path: Path, table: Table) -> None:
    store = Store(path)
    store.save(table, table.changes, {})
    store.close()


def load(path: Path) -> Table:
    store = Store(path)
    try:
        return store.load()
    finally:
        store.close()


def test_a_table_loaded_from_its_store_or_in_pages_takes_few_bytes_an_inode(path: Path) -> None:
    files = 20_000
    save(path, table_of(files))
    tracemalloc.start()
    try:
        from_store = load(path)
        store_bytes = tracemalloc.get_traced_memory()[0]
        replica = Table()
        with closing(Store(path)) as store:
            page = None
            for page in store.snapshot():
                rows.load_page(replica, page)
            del page
        replica_bytes = tracemalloc.get_traced_memory()[0] - store_bytes
    finally:
        tracemalloc.stop()
    assert dump(replica) == dump(from_store)
    assert store_bytes < BYTES_AN_INODE * files
    assert replica_bytes < BYTES_AN_INODE * files


def test_equal_numbers_are_one_object(path: Path) -> None:
    save(path, table_of(2))
    table = load(path)
    one, other = table.inode(FIRST), table.inode(SECOND)
    assert one.mode is other.mode
    assert one.mtime_ns is one.ctime_ns
    assert one.ino is table.directory_entries(2)[b"IMG_000000001000.jpg"]
    assert one.ino is next(iter(table.directory))[0]
    assert table.directory.servers(FIRST, 0) is table.directory.servers(SECOND, 0)


@pytest.mark.parametrize(
    "damage",
    ["DELETE FROM inodes WHERE ino = 1000", "DELETE FROM inodes WHERE ino = 2", "UPDATE chunks SET ino = 9 WHERE ino = 1001"],
)
def test_a_store_whose_names_or_chunks_have_no_inode_is_refused(path: Path, damage: str) -> None:
    save(path, table_of(2))
    database = sqlite3.connect(path)
    database.execute(damage)
    database.commit()
    database.close()
    with pytest.raises(GridfsError, match="damaged"):
        load(path)


@pytest.mark.parametrize("enabled", [True, False])
@pytest.mark.parametrize("fails", [True, False])
def test_the_garbage_collector_rests_while_rows_are_loaded_and_then_goes_on_as_before(enabled: bool, fails: bool) -> None:
    if not enabled:
        gc.disable()
    try:
        with pytest.raises(KeyError) if fails else rows.loading(Table()), rows.loading(Table()):
            assert not gc.isenabled()
            if fails:
                raise KeyError
        assert gc.isenabled() == enabled
    finally:
        gc.enable()


@pytest.mark.parametrize(("files", "frozen"), [(8, False), (9, True)])
@pytest.mark.usefixtures("thawed")
def test_the_garbage_collector_passes_over_a_large_table(
    path: Path, files: int, frozen: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rows, "FREEZE_INODES", 11)  # root and directory included
    save(path, table_of(files))
    before = gc.get_freeze_count()
    table = load(path)
    assert any(found is table.inode(FIRST) for found in gc.get_objects()) != frozen  # a frozen object is in no generation
    assert (gc.get_freeze_count() > before) == frozen
