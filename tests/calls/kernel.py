"""The calls made through the kernel, on a directory of whatever filesystem holds it."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.calls import Attributes
from tests.suite.syscalls import renameat2

READ_MAX_BYTES = 0x7FFF_F000
"""What Linux reads or writes in one call at most."""


class KernelCalls:
    """See `Calls`; the root is `directory`."""

    def __init__(self, directory: Path) -> None:
        self._root = str(directory)
        self._fds: dict[int, int] = {}

    def _at(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _fd(self, handle: int) -> int:
        if handle not in self._fds:
            raise OSError(errno.EBADF, f"no handle {handle}")
        return self._fds[handle]

    # -- names -------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        with no_umask():
            os.mkdir(self._at(path), mode)

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        with no_umask():
            os.mknod(self._at(path), mode, rdev)

    def symlink(self, target: bytes, path: str) -> None:
        os.symlink(target, os.fsencode(self._at(path)))

    def readlink(self, path: str) -> bytes:
        return os.readlink(os.fsencode(self._at(path)))

    def link(self, old: str, new: str) -> None:
        os.link(self._at(old), self._at(new), follow_symlinks=False)

    def unlink(self, path: str) -> None:
        os.unlink(self._at(path))

    def rmdir(self, path: str) -> None:
        os.rmdir(self._at(path))

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        renameat2(Path(self._at(old)), Path(self._at(new)), flags)

    def listdir(self, path: str) -> list[str]:
        return sorted(os.listdir(self._at(path)))

    # -- attributes --------------------------------------------------------------------------------------------------

    def stat(self, path: str) -> Attributes:
        return attributes_of(os.lstat(self._at(path)))

    def chmod(self, path: str, mode: int) -> None:
        os.chmod(self._at(path), mode)

    def chown(self, path: str, uid: int, gid: int) -> None:
        os.lchown(self._at(path), uid, gid)

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        os.utime(self._at(path), ns=(atime_ns, mtime_ns), follow_symlinks=False)

    def truncate(self, path: str, size: int) -> None:
        os.truncate(self._at(path), size)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        os.setxattr(self._at(path), name, value, follow_symlinks=False)

    def getxattr(self, path: str, name: str) -> bytes:
        return os.getxattr(self._at(path), name, follow_symlinks=False)

    def listxattr(self, path: str) -> list[str]:
        return sorted(os.listxattr(self._at(path), follow_symlinks=False))

    def removexattr(self, path: str, name: str) -> None:
        os.removexattr(self._at(path), name, follow_symlinks=False)

    def statfs(self) -> tuple[int, int]:
        figures = os.statvfs(self._root)
        return figures.f_blocks * figures.f_frsize, figures.f_bfree * figures.f_frsize

    # -- handles -----------------------------------------------------------------------------------------------------

    def open(self, handle: int, path: str, flags: int, mode: int = 0o644) -> None:
        assert handle not in self._fds
        with no_umask():
            self._fds[handle] = os.open(self._at(path), flags | os.O_NOFOLLOW, mode)

    def close(self, handle: int) -> None:
        fd = self._fd(handle)
        del self._fds[handle]
        os.close(fd)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        return os.pread(self._fd(handle), min(length, READ_MAX_BYTES), offset)

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return os.pwrite(self._fd(handle), data, offset)

    def ftruncate(self, handle: int, size: int) -> None:
        os.ftruncate(self._fd(handle), size)

    def fstat(self, handle: int) -> Attributes:
        return attributes_of(os.fstat(self._fd(handle)))

    def fsync(self, handle: int) -> None:
        os.fsync(self._fd(handle))

    def entries(self, handle: int) -> list[str]:
        return sorted(os.listdir(self._fd(handle)))

    def close_all(self) -> None:
        """Leave no handle open."""
        for handle in list(self._fds):
            self.close(handle)


@contextmanager
def no_umask() -> Iterator[None]:
    """Modes are taken as they are given."""
    before = os.umask(0)
    try:
        yield
    finally:
        os.umask(before)


def attributes_of(status: os.stat_result) -> Attributes:
    """The same, in the words of `Calls`."""
    found = Attributes(
        *(status.st_ino, status.st_mode, status.st_nlink, status.st_uid, status.st_gid, status.st_rdev, status.st_size),
        *(status.st_atime_ns, status.st_mtime_ns, status.st_ctime_ns),
    )
    return found._replace(size=0) if found.is_directory else found
