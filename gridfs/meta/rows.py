"""The rows of a table, as the store keeps them and as a mount receives them when it attaches.

Rows are loaded inodes first, then names, then chunks: a name needs its directory, a chunk its inode.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache, partial
from itertools import groupby, islice
from operator import itemgetter
from typing import Any

import msgpack

from gridfs.meta.inode import Inode
from gridfs.meta.table import Table

PAGE_ROWS, PAGE_BYTES = 5000, 1 << 20
"""A page ends at either: far below the limit of a frame even with the largest row, far above the cost of a round trip."""

FREEZE_INODES = 100_000
"""So many are worth hiding from the garbage collector: a full round over them takes it tens of milliseconds."""

Page = tuple[str, list[Any]]
"""The kind of rows ("inodes", "names", "chunks") and the rows."""

_unpack: Callable[[bytes], Any] = partial(msgpack.unpackb, use_list=False, strict_map_key=False)


def pack_inode(inode: Inode) -> bytes:
    """One row of kind "inodes"."""
    packed: bytes = msgpack.packb(inode.pack())
    return packed


def pages(table: Table) -> Iterator[Page]:
    """All of the table in pages, in loading order. The table must not change until the last one has been taken."""
    inodes = (pack_inode(inode) for inode in table.inodes.values())
    names = ((inode.ino, name, ino) for inode in table.inodes.values() if inode.entries for name, ino in inode.entries.items())
    chunks = ((ino, index, msgpack.packb(servers)) for ino, index, servers in table.directory)
    rows: Iterator[Any]
    for kind, rows in (("inodes", inodes), ("names", names), ("chunks", chunks)):
        while page := _page(rows):
            yield kind, page


def _page(rows: Iterator[Any]) -> list[Any]:
    """The next rows, the last of which may pass PAGE_BYTES."""
    page, size = [], 0
    for row in islice(rows, PAGE_ROWS):
        page.append(row)
        size += len(row) if isinstance(row, bytes) else sum(len(part) for part in row if isinstance(part, bytes))
        if size >= PAGE_BYTES:
            break
    return page


def load_page(table: Table, page: Page) -> None:
    """Put one page into the table."""
    kind, rows = page
    loaders: dict[str, Callable[[Table, list[Any]], None]]
    loaders = {"inodes": load_inodes, "names": load_names, "chunks": load_chunks}
    loaders[kind](table, rows)


@contextmanager
def loading(table: Table) -> Iterator[None]:
    """While the context lasts, rows are loaded into `table`, and the garbage collector rests.

    It would look at all inodes again and again, and free nothing: a table has no cycles. If they are many it passes over them
    from then on (`gc.freeze`); with a million that takes a third of a second off each of its full rounds.
    """
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if len(table.inodes) >= FREEZE_INODES:
            gc.freeze()
        if was_enabled:
            gc.enable()


def load_inodes(table: Table, rows: Iterable[bytes]) -> None:
    """Put packed inodes into the table."""
    inodes, newest = table.inodes, 0
    for row in rows:
        inode = Inode(_unpack(row))
        ino = inode.ino
        inodes[ino] = inode
        newest = max(newest, ino)
        if not inode.nlink:
            table.orphans.add(ino)
    table.next_ino = max(table.next_ino, newest + 1)


def load_names(table: Table, rows: Iterable[tuple[int, bytes, int]]) -> None:
    """Put names into the table's directories; a number is the one object that its inode has."""
    inodes = table.inodes
    for parent, names in groupby(rows, itemgetter(0)):
        entries = inodes[parent].entries
        assert entries is not None
        for _, name, ino in names:
            entries[name] = inodes[ino].ino


def load_chunks(table: Table, rows: Iterable[tuple[int, int, bytes]]) -> None:
    """Put chunks into the chunk directory; a number is the one object that its inode has."""
    inodes, place, servers = table.inodes, table.directory.place, lru_cache(_unpack)
    for ino, index, packed in rows:
        place(inodes[ino].ino, index, servers(packed))
