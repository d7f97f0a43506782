"""The calls of a filesystem, said once, so that one test makes them of several: of the vfs object, of the kernel, of a model.

Paths are relative to the filesystem under test and have no leading slash; "" is its root. A symlink is never followed. Open
files and directories go by numbers that the caller picks. A call that fails raises OSError; its errno is part of the answer.

What the kernel alone decides is not among them: permissions, following symlinks, O_APPEND, access modes of handles, and the
flags of setxattr(2).
"""

from __future__ import annotations

import os
import stat
from typing import NamedTuple, Protocol

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
FIRST, SECOND, OWN = 1, 2, -1
"""Handles; `OWN` is for `put` and `get`."""


class Attributes(NamedTuple):
    """What stat(2) tells; times in nanoseconds since the epoch. The size of a directory means nothing, and is 0 here."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return stat.S_ISDIR(self.mode)


class Calls(Protocol):
    """One filesystem. Every call is over when it returns: what it did is seen by the next one."""

    # -- names

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        """mkdir(2), whatever the umask."""

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        """mknod(2), whatever the umask."""

    def symlink(self, target: bytes, path: str) -> None:
        """symlink(2)."""

    def readlink(self, path: str) -> bytes:
        """readlink(2)."""

    def link(self, old: str, new: str) -> None:
        """link(2)."""

    def unlink(self, path: str) -> None:
        """unlink(2)."""

    def rmdir(self, path: str) -> None:
        """rmdir(2)."""

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        """renameat2(2)."""

    def listdir(self, path: str) -> list[str]:
        """The names in a directory, sorted, without `.` and `..`."""

    # -- attributes

    def stat(self, path: str) -> Attributes:
        """lstat(2)."""

    def chmod(self, path: str, mode: int) -> None:
        """chmod(2) of anything but a symlink."""

    def chown(self, path: str, uid: int, gid: int) -> None:
        """lchown(2); -1 leaves one as it is."""

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        """utimensat(2) of the path itself."""

    def truncate(self, path: str, size: int) -> None:
        """truncate(2)."""

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        """lsetxattr(2)."""

    def getxattr(self, path: str, name: str) -> bytes:
        """lgetxattr(2)."""

    def listxattr(self, path: str) -> list[str]:
        """llistxattr(2), sorted."""

    def removexattr(self, path: str, name: str) -> None:
        """lremovexattr(2)."""

    def statfs(self) -> tuple[int, int]:
        """statfs(2): capacity and free space, in bytes."""
        raise NotImplementedError

    # -- handles

    def open(self, handle: int, path: str, flags: int, mode: int = 0o644) -> None:
        """open(2) of a file, or of a directory with O_DIRECTORY, as `handle`, which is not in use; whatever the umask."""

    def close(self, handle: int) -> None:
        """close(2). EBADF for a handle that is not open."""

    def read(self, handle: int, offset: int, length: int) -> bytes:
        """pread(2)."""

    def write(self, handle: int, offset: int, data: bytes) -> int:
        """pwrite(2)."""

    def ftruncate(self, handle: int, size: int) -> None:
        """ftruncate(2)."""

    def fstat(self, handle: int) -> Attributes:
        """fstat(2)."""

    def fsync(self, handle: int) -> None:
        """fsync(2), of a file or a directory."""

    def entries(self, handle: int) -> list[str]:
        """The names that an open directory lists after rewinding, sorted, without `.` and `..`."""


def put(calls: Calls, path: str, content: bytes = b"") -> None:
    """Make a file, write its content, close it."""
    calls.open(OWN, path, os.O_CREAT | os.O_TRUNC | os.O_RDWR)
    try:
        if content:
            assert calls.write(OWN, 0, content) == len(content)
    finally:
        calls.close(OWN)


def get(calls: Calls, path: str) -> bytes:
    """The content of a file."""
    calls.open(OWN, path, os.O_RDONLY)
    try:
        return calls.read(OWN, 0, calls.fstat(OWN).size)
    finally:
        calls.close(OWN)
