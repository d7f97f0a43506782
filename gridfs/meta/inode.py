"""An inode: what a file is, apart from its names and its bytes."""

from __future__ import annotations

import stat
from typing import Any

ROOT_INO = 1

PackedInode = tuple[Any, ...]
_DAY_NS = 24 * 3600 * 10**9

_shared: dict[int, int] = {}
"""Modes and owners, of which there are few: the one object for each value that was met."""


class Inode:
    """One inode. Only `Table` changes it.

    `entries` (name -> ino, in the order made) is None but for directories, `target` None but for symlinks, `xattrs` None
    while there are none. `parent` is 0 but for directories. Times are in nanoseconds since the epoch.

    There may be millions, and an int takes 32 bytes: equal modes, owners and times of change are one object each.
    """

    __slots__ = (
        "atime_ns",
        "ctime_ns",
        "entries",
        "gid",
        "ino",
        "mode",
        "mtime_ns",
        "nlink",
        "parent",
        "rdev",
        "size",
        "target",
        "uid",
        "xattrs",
    )

    def __init__(self, packed: PackedInode) -> None:
        self.ino: int
        self.mode: int
        self.uid: int
        self.gid: int
        self.nlink: int
        self.size: int
        self.rdev: int
        self.parent: int
        self.atime_ns: int
        self.mtime_ns: int
        self.ctime_ns: int
        self.target: bytes | None
        self.xattrs: dict[bytes, bytes] | None
        (
            self.ino,
            mode,
            uid,
            gid,
            self.nlink,
            self.size,
            self.rdev,
            parent,
            self.atime_ns,
            self.mtime_ns,
            ctime_ns,
            self.target,
            self.xattrs,
        ) = packed
        share = _shared.setdefault
        self.mode, self.uid, self.gid = share(mode, mode), share(uid, uid), share(gid, gid)
        self.ctime_ns = self.mtime_ns if ctime_ns == self.mtime_ns else ctime_ns
        self.entries: dict[bytes, int] | None = None
        self.parent = 0
        if stat.S_ISDIR(mode):
            self.entries, self.parent = {}, parent

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return self.entries is not None

    @property
    def is_regular(self) -> bool:
        """True for a regular file: the only kind that has chunks."""
        return stat.S_ISREG(self.mode)

    def pack(self) -> PackedInode:
        """All but the entries, as msgpack carries it; the constructor is the inverse."""
        return (
            self.ino,
            self.mode,
            self.uid,
            self.gid,
            self.nlink,
            self.size,
            self.rdev,
            self.parent,
            self.atime_ns,
            self.mtime_ns,
            self.ctime_ns,
            self.target,
            self.xattrs,
        )


def without_privileges(mode: int) -> int:
    """The mode without setuid, and without setgid where that would lend a group's rights: where the group may execute."""
    return mode & ~(stat.S_ISUID | (stat.S_ISGID if mode & stat.S_IXGRP else 0))


def moves_atime(inode: Inode, now_ns: int, changed_ns: int = 0) -> bool:
    """Whether a read moves atime: when it is not newer than the last change, or more than a day old (relatime, mount(8)).

    `changed_ns` is the time of a change that the table has not been told of.
    """
    return inode.atime_ns <= max(inode.mtime_ns, inode.ctime_ns, changed_ns) or now_ns - inode.atime_ns > _DAY_NS
