"""Where an inode is: the directory and the name under which it was found last. Files do not know their names."""

from __future__ import annotations

import errno

import trio

from gridfs.errors import FilesystemError
from gridfs.meta.table import Table

KEPT = 4096
"""Inodes whose place is remembered, those that were found last; others are searched for."""
STEP = 2000
"""Inodes that a search looks at before others have their turn."""


class Places:
    """What lookups have found, checked before it is believed."""

    def __init__(self) -> None:
        self._found: dict[int, tuple[int, bytes]] = {}

    def found(self, ino: int, parent: int, name: bytes) -> None:
        """The kernel has just been led to `ino` by that name."""
        self._found.pop(ino, None)
        self._found[ino] = parent, name
        if len(self._found) > KEPT:
            del self._found[next(iter(self._found))]

    async def find(self, table: Table, ino: int) -> tuple[int, bytes]:
        """(directory, name) of an inode: where it was found last, or any place it has. Raises ENOENT if it has none."""
        parent, name = self._found.get(ino, (0, b""))
        if _entries(table, parent).get(name) == ino:
            return parent, name
        if table.inode(ino).nlink:
            for number, parent in enumerate(list(table.inodes)):
                entries = _entries(table, parent)
                if ino in entries.values():
                    return parent, next(name for name, child in entries.items() if child == ino)
                if number % STEP == STEP - 1:
                    await trio.lowlevel.checkpoint()
        raise FilesystemError(errno.ENOENT, f"inode {ino} has no name any more")


def _entries(table: Table, parent: int) -> dict[bytes, int]:
    inode = table.inodes.get(parent)
    return {} if inode is None or inode.entries is None else inode.entries
