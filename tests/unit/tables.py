"""Tables under test: steps that are checked, and all that a table holds as one value."""

from __future__ import annotations

import errno
import stat
from typing import Any

import pytest

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO, Inode
from gridfs.meta.table import Table

FILE = stat.S_IFREG | 0o644
DIRECTORY = stat.S_IFDIR | 0o755
SYMLINK = stat.S_IFLNK | 0o777
FIFO = stat.S_IFIFO | 0o644
UID, GID = 1000, 100

Dump = dict[str, Any]


def dump(table: Table) -> Dump:
    """All that the table holds, the order of names included; not its changes."""
    return {
        "inodes": {ino: (inode.pack(), list((inode.entries or {}).items())) for ino, inode in table.inodes.items()},
        "chunks": sorted(table.directory),
        "orphans": set(table.orphans),
        "next_ino": table.next_ino,
    }


def changed(table: Table) -> Dump:
    """The rows that the table says have changed."""
    changes = table.changes
    return {"inodes": set(changes.inodes), "names": list(changes.names), "chunks": set(changes.chunks)}


class Steps:
    """A table that is checked after every op. Time moves by 10 with each op, and inode numbers count up."""

    def __init__(self) -> None:
        self.table = Table()
        self.now_ns = 0
        self.do("format", UID, GID)

    def op(self, kind: str, *arguments: Any) -> tuple[Any, ...]:
        """The op, with the time where it takes one."""
        self.now_ns += 10
        return (kind, *arguments) if kind in ("reap", "place", "extend") else (kind, self.now_ns, *arguments)

    def do(self, kind: str, *arguments: Any) -> Any:
        """What the op returns; the table is sound afterwards."""
        result = self.table.apply(self.op(kind, *arguments))
        assert self.table.check() == []
        return result

    def fails(self, code: int, kind: str, *arguments: Any) -> None:
        """The op must fail with `code`, and change nothing."""
        before = dump(self.table), changed(self.table)
        with pytest.raises(FilesystemError) as raised:
            self.table.apply(self.op(kind, *arguments))
        assert errno.errorcode[raised.value.errno or 0] == errno.errorcode[code]
        assert (dump(self.table), changed(self.table)) == before

    def make(self, name: bytes, parent: int = ROOT_INO, mode: int = FILE, **options: Any) -> int:
        """The number of a new inode."""
        target = options.get("target", b"target" if stat.S_ISLNK(mode) else None)
        ino = self.table.next_ino
        self.do("make", ino, parent, name, mode, options.get("uid", UID), options.get("gid", GID), 0, target)
        return ino

    def mkdir(self, name: bytes, parent: int = ROOT_INO) -> int:
        """The number of a new directory."""
        return self.make(name, parent, DIRECTORY)

    def inode(self, ino: int = ROOT_INO) -> Inode:
        """An inode; the root's by default."""
        return self.table.inode(ino)

    def names(self, ino: int = ROOT_INO) -> dict[bytes, int]:
        """The names in a directory."""
        return dict(self.table.directory_entries(ino))

    def times(self, ino: int) -> tuple[int, int, int]:
        """(atime, mtime, ctime)."""
        inode = self.inode(ino)
        return inode.atime_ns, inode.mtime_ns, inode.ctime_ns
