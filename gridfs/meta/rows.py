"""The rows of a table, as the store keeps them and as a mount receives them: all when it attaches, the changed ones later.

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

from gridfs.meta.directory import Servers
from gridfs.meta.inode import Inode
from gridfs.meta.table import Changes, Table

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


def paged(kind: str, rows: Iterator[Any]) -> Iterator[Page]:
    """All rows of one kind, in pages."""
    while page := _page(rows):
        yield kind, page


def _page(rows: Iterator[Any]) -> list[Any]:
    """The next rows, the last of which may pass PAGE_BYTES."""
    page, size = [], 0
    for row in islice(rows, PAGE_ROWS):
        page.append(row)
        size += _size_of(row)
        if size >= PAGE_BYTES:
            break
    return page


def _size_of(row: Any) -> int:
    if isinstance(row, bytes):
        return len(row)
    return 0 if isinstance(row, int) else sum(len(part) for part in row if isinstance(part, bytes))


def take_rows(table: Table, changes: Changes, taken: Changes) -> list[Page]:
    """The rows that `changes` names as they are now, for a replica; what is given moves from `changes` to `taken`.

    At most about a page of each kind is given. An inode that is gone is a number in place of a row, a name that is gone leads
    to inode 0, and a chunk that is gone has no servers. Inodes come first, since names lead to them.
    """

    def inodes() -> Iterator[bytes | int]:
        while changes.inodes:
            ino = changes.inodes.pop()
            taken.inodes.add(ino)
            yield pack_inode(table.inodes[ino]) if ino in table.inodes else ino

    def names() -> Iterator[tuple[int, bytes, int]]:
        while changes.names:
            parent, name = next(iter(changes.names))
            del changes.names[parent, name]
            taken.names[parent, name] = None
            directory = table.inodes.get(parent)
            yield parent, name, (directory.entries or {}).get(name, 0) if directory else 0

    def chunks() -> Iterator[tuple[int, int, Servers]]:
        while changes.chunks:
            ino, index = changes.chunks.pop()
            taken.chunks.add((ino, index))
            yield ino, index, table.directory.servers(ino, index)

    kinds: tuple[tuple[str, Iterator[Any]], ...] = (("inodes", inodes()), ("names", names()), ("chunks", chunks()))
    return [(kind, page) for kind, rows in kinds if (page := _page(rows))]


def apply_rows(table: Table, given: list[Page]) -> Changes:
    """Put rows from `take_rows` into a replica; returns what they are about."""
    rows, changed = dict(given), Changes()
    gone = [row for row in rows.get("inodes", ()) if isinstance(row, int)]
    changed.inodes.update(gone)
    for row in rows.get("inodes", ()):
        if not isinstance(row, int):
            inode = Inode(_unpack(row))
            changed.inodes.add(inode.ino)
            _replace_inode(table, inode)
    for parent, name, ino in rows.get("names", ()):
        changed.names[parent, name] = None
        entries = table.inodes[parent].entries if parent in table.inodes else None
        if entries is not None:
            entries.pop(name, None)  # a name that is made again goes last, as it does in the table
            if ino:
                entries[name] = ino
    for ino, index, servers in rows.get("chunks", ()):
        changed.chunks.add((ino, index))
        table.directory.put(ino, index, tuple(servers))
    for ino in gone:
        table.inodes.pop(ino, None)
        table.orphans.discard(ino)
    return changed


def _replace_inode(table: Table, inode: Inode) -> None:
    present = table.inodes.get(inode.ino)
    if present is not None and inode.entries is not None:
        inode.entries = present.entries
    table.inodes[inode.ino] = inode
    table.next_ino = max(table.next_ino, inode.ino + 1)
    if inode.nlink:
        table.orphans.discard(inode.ino)
    else:
        table.orphans.add(inode.ino)


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


def pages_of(table: Table) -> Iterator[Page]:
    """All rows of a table, in loading order; names in the order in which each directory has them."""
    yield from paged("inodes", (pack_inode(inode) for inode in table.inodes.values()))
    names = ((ino, name, child) for ino, inode in table.inodes.items() for name, child in (inode.entries or {}).items())
    yield from paged("names", names)
    yield from paged("chunks", ((ino, index, msgpack.packb(servers)) for ino, index, servers in table.directory))
