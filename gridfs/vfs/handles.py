"""Open files and directories, as the kernel knows them: by number."""

from __future__ import annotations

import errno
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.vfs.file import File
from gridfs.vfs.readahead import ReadAhead


class FileHandle:
    """One open(2) of a file. `errors_seen` counts the write errors that this handle has reported, or that came before it.

    Writes by whoever opened it take setuid and setgid away if `clears_setuid`.
    """

    __slots__ = ("clears_setuid", "errors_seen", "file", "flags", "reader", "wrote")

    def __init__(self, file: File, flags: int, reader: ReadAhead, clears_setuid: bool = False) -> None:
        self.file, self.flags, self.reader, self.clears_setuid = file, flags, reader, clears_setuid
        self.errors_seen = file.error_count
        self.wrote = False

    def raise_error(self) -> None:
        """Raise what background writes to the file failed with, once on this handle."""
        seen, self.errors_seen = self.errors_seen, self.file.error_count
        self.file.raise_error(seen)


class DirectoryHandle:
    """One opendir(3). `names` is a snapshot, taken at the start and at each rewind: positions in it stay what they are."""

    __slots__ = ("ino", "names")

    def __init__(self, ino: int) -> None:
        self.ino = ino
        self.names: list[bytes] = []


class Handles:
    """All open handles, and the `File` behind those of files; numbers are not used again."""

    def __init__(self, meta: MetaClient) -> None:
        self._meta = meta
        self._numbers = 0
        self._files: dict[int, FileHandle] = {}
        self._directories: dict[int, DirectoryHandle] = {}
        self._open_directories: Counter[int] = Counter()
        self.open_files: dict[int, File] = {}
        """ino -> File, while the inode has an open handle."""

    def file(self, fh: int) -> FileHandle:
        """The file handle. Raises EBADF."""
        try:
            return self._files[fh]
        except KeyError:
            raise FilesystemError(errno.EBADF, f"no file handle {fh}") from None

    def directory(self, fh: int) -> DirectoryHandle:
        """The directory handle. Raises EBADF."""
        try:
            return self._directories[fh]
        except KeyError:
            raise FilesystemError(errno.EBADF, f"no directory handle {fh}") from None

    def state_of(self, ino: int) -> File:
        """The inode's `File`: the one its handles share, or a passing one if it has none."""
        return self.open_files.get(ino) or File(ino, self._meta)

    @contextmanager
    def using(self, ino: int) -> Iterator[File]:
        """The inode's `File`, which stays the one that its handles share for as long as the context lasts."""
        file = self.open_files.setdefault(ino, self.state_of(ino))
        file.handles += 1
        try:
            yield file
        finally:
            self._let_go(file)

    def _let_go(self, file: File) -> None:
        file.handles -= 1
        if not file.handles:
            del self.open_files[file.ino]

    def add_file(self, handle: FileHandle) -> int:
        """Give the handle a number."""
        handle.file.handles += 1
        self.open_files[handle.file.ino] = handle.file
        self._numbers += 1
        self._files[self._numbers] = handle
        return self._numbers

    def remove_file(self, fh: int) -> None:
        """The kernel has let go of the handle; its `File` goes with the last one."""
        handle = self._files.pop(fh)
        handle.reader.close()
        self._let_go(handle.file)

    def add_directory(self, ino: int) -> int:
        """A new handle of directory `ino`."""
        self._numbers += 1
        self._directories[self._numbers] = DirectoryHandle(ino)
        self._open_directories[ino] += 1
        return self._numbers

    def remove_directory(self, fh: int) -> DirectoryHandle:
        """The kernel has let go of the handle."""
        handle = self._directories.pop(fh)
        self._open_directories[handle.ino] -= 1
        if not self._open_directories[handle.ino]:
            del self._open_directories[handle.ino]
        return handle

    def holds_directory(self, ino: int) -> bool:
        """True while some handle of directory `ino` is open."""
        return ino in self._open_directories
