"""The calls made of the vfs object, as the kernel makes them of the mount: names are looked up one by one, and forgotten again.

The whole filesystem of `tests.vfs.cluster` runs in one trio thread; whoever makes the calls sits in another and waits for each.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from inspect import isawaitable
from pathlib import Path
from typing import Any, NamedTuple

import trio

from gridfs.config import GIB
from gridfs.meta.inode import ROOT_INO
from gridfs.stream.thread import TrioThread
from gridfs.vfs.filesystem import Caller, Filesystem
from tests.calls import Attributes
from tests.vfs.cluster import Cluster, running

CALL_S = 20.0
NODES = 2
CAPACITY_BYTES = 4 * GIB
CREATE = os.O_CREAT | os.O_EXCL


async def answer(method: Callable[..., Any], *arguments: Any) -> Any:
    """What a method of the filesystem returns, be it a coroutine function or not."""
    result = method(*arguments)
    return await result if isawaitable(result) else result


class VfsCalls:
    """See `Calls`; `filesystem` lives in `thread`."""

    def __init__(self, thread: TrioThread, filesystem: Filesystem) -> None:
        self._thread, self._filesystem = thread, filesystem
        self._caller = Caller(os.geteuid(), os.getegid())
        self._handles: dict[int, _Handle] = {}

    def _do(self, action: Callable[..., Awaitable[Any]], *arguments: Any) -> Any:
        async def within_time() -> Any:
            with trio.fail_after(CALL_S):
                return await action(*arguments)

        return self._thread.call_async(within_time)

    # -- walking -----------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def _walk(self, path: str) -> AsyncIterator[tuple[int, bytes]]:
        """The directory that `path` is in, and its last name. What was looked up is forgotten at the end."""
        async with AsyncExitStack() as held:
            ino, (*above, name) = ROOT_INO, os.fsencode(path).split(b"/")
            for part in above:
                ino = await self._lookup(held, ino, part, directory=True)
            yield ino, name

    async def _lookup(self, held: AsyncExitStack, parent: int, name: bytes, directory: bool = False) -> int:
        found = await answer(self._filesystem.lookup, parent, name)
        held.callback(self._filesystem.forget, found.ino, 1)
        if directory and not stat.S_ISDIR(found.mode):
            raise OSError(errno.ENOTDIR, "on the way")
        return int(found.ino)

    @asynccontextmanager
    async def _at(self, path: str) -> AsyncIterator[int]:
        """The inode that `path` leads to, looked up for the length of the context."""
        async with AsyncExitStack() as held:
            if not path:
                yield ROOT_INO
                return
            parent, name = await held.enter_async_context(self._walk(path))
            yield await self._lookup(held, parent, name)

    # -- names -------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._do(self._make, path, stat.S_IFDIR | mode)

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        self._do(self._make, path, mode, rdev)

    def symlink(self, target: bytes, path: str) -> None:
        self._do(self._make, path, stat.S_IFLNK | 0o777, 0, target)

    async def _make(self, path: str, mode: int, rdev: int = 0, target: bytes | None = None) -> None:
        async with self._walk(path) as (parent, name):
            made = await self._filesystem.make(self._caller, parent, name, mode, rdev, target)
            self._filesystem.forget(made.ino, 1)

    def readlink(self, path: str) -> bytes:
        async def readlink() -> bytes:
            async with self._at(path) as ino:
                return bytes(await answer(self._filesystem.readlink, ino))

        return bytes(self._do(readlink))

    def link(self, old: str, new: str) -> None:
        async def link() -> None:
            async with self._at(old) as ino, self._walk(new) as (parent, name):
                await self._filesystem.link(ino, parent, name)
                self._filesystem.forget(ino, 1)

        self._do(link)

    def unlink(self, path: str) -> None:
        self._do(self._remove, path, self._filesystem.unlink)

    def rmdir(self, path: str) -> None:
        self._do(self._remove, path, self._filesystem.rmdir)

    async def _remove(self, path: str, remove: Callable[[int, bytes], Awaitable[None]]) -> None:
        """The kernel has looked up what it asks to remove, and forgets it afterwards."""
        async with self._at(path), self._walk(path) as (parent, name):
            await remove(parent, name)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        async def rename() -> None:
            async with self._walk(old) as (parent, name), self._walk(new) as (new_parent, new_name):
                await self._filesystem.rename(parent, name, new_parent, new_name, flags)

        self._do(rename)

    def listdir(self, path: str) -> list[str]:
        async def listdir() -> list[str]:
            async with self._at(path) as ino:
                fh = await answer(self._filesystem.opendir, ino)
                try:
                    return await self._names(fh)
                finally:
                    await answer(self._filesystem.releasedir, fh)

        return list(self._do(listdir))

    async def _names(self, fh: int) -> list[str]:
        names = [name for _, name, _ in await answer(self._filesystem.names, fh, 0)]
        assert sorted(names)[:2] == [b".", b".."]
        return sorted(os.fsdecode(name) for name in names if name not in (b".", b".."))

    # -- attributes --------------------------------------------------------------------------------------------------

    def stat(self, path: str) -> Attributes:
        async def look() -> Attributes:
            async with self._at(path) as ino:
                return await self._attributes(ino)

        return Attributes(*self._do(look))

    async def _attributes(self, ino: int) -> Attributes:
        told = await answer(self._filesystem.attributes, ino)
        found = Attributes(*(getattr(told, field) for field in Attributes._fields))
        return found._replace(size=0) if found.is_directory else found

    def chmod(self, path: str, mode: int) -> None:
        self._do(self._change, path, {"mode": mode})

    def chown(self, path: str, uid: int, gid: int) -> None:
        self._do(self._change, path, {name: new for name, new in (("uid", uid), ("gid", gid)) if new != -1})

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        self._do(self._change, path, {"atime_ns": atime_ns, "mtime_ns": mtime_ns})

    def truncate(self, path: str, size: int) -> None:
        self._do(self._change, path, {"size": size})

    async def _change(self, path: str, changes: dict[str, Any]) -> None:
        async with self._at(path) as ino:
            await self._filesystem.change(ino, **changes)

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        self._do(self._of, path, self._filesystem.set_xattr, os.fsencode(name), value)

    def getxattr(self, path: str, name: str) -> bytes:
        return bytes(self._do(self._of, path, self._filesystem.get_xattr, os.fsencode(name)))

    def listxattr(self, path: str) -> list[str]:
        return sorted(map(os.fsdecode, self._do(self._of, path, self._filesystem.list_xattrs)))

    def removexattr(self, path: str, name: str) -> None:
        self._do(self._of, path, self._filesystem.remove_xattr, os.fsencode(name))

    async def _of(self, path: str, method: Callable[..., Any], *arguments: Any) -> Any:
        async with self._at(path) as ino:
            return await answer(method, ino, *arguments)

    def statfs(self) -> tuple[int, int]:
        space = self._do(self._filesystem.space)
        return space.capacity_bytes, space.free_bytes

    # -- handles -----------------------------------------------------------------------------------------------------

    def open(self, handle: int, path: str, flags: int, mode: int = 0o644) -> None:
        assert handle not in self._handles
        self._handles[handle] = self._do(self._open, path, flags, stat.S_IFREG | mode)

    async def _open(self, path: str, flags: int, mode: int) -> _Handle:
        """As the kernel: what is there is looked up and opened, what is not there is made with O_CREAT.

        The kernel keeps the lookup as long as the file is open. Here it is forgotten at once: the handle alone must do.
        """
        async with AsyncExitStack() as held:
            parent, name = await held.enter_async_context(self._walk(path))
            try:
                ino = await self._lookup(held, parent, name)
            except OSError as error:
                if error.errno != errno.ENOENT or not flags & os.O_CREAT:
                    raise
                ino = (await self._filesystem.make(self._caller, parent, name, mode)).ino
                held.callback(self._filesystem.forget, ino, 1)
                flags &= ~os.O_TRUNC
            else:
                if flags & CREATE == CREATE:
                    raise FileExistsError(errno.EEXIST, path)
            return _Handle(ino, await self._open_inode(ino, flags), bool(flags & os.O_DIRECTORY))

    async def _open_inode(self, ino: int, flags: int) -> int:
        if flags & os.O_DIRECTORY:
            return int(await answer(self._filesystem.opendir, ino))
        return await self._filesystem.open(ino, flags)

    def _handle(self, handle: int, directory: bool | None = None) -> _Handle:
        """The handle. Raises EBADF, and ENOTDIR or EISDIR where the kernel does not ask the filesystem."""
        if handle not in self._handles:
            raise OSError(errno.EBADF, f"no handle {handle}")
        found = self._handles[handle]
        if directory is not None and found.directory != directory:
            raise OSError(errno.ENOTDIR if directory else errno.EISDIR, f"handle {handle}")
        return found

    def close(self, handle: int) -> None:
        opened = self._handle(handle)
        del self._handles[handle]
        self._do(self._close, opened)

    async def _close(self, opened: _Handle) -> None:
        if opened.directory:
            await answer(self._filesystem.releasedir, opened.fh)
            return
        try:
            await self._filesystem.data.flush(opened.fh)
        finally:
            await self._filesystem.release(opened.fh)

    def read(self, handle: int, offset: int, length: int) -> bytes:
        async def read() -> bytes:
            return bytes(await self._filesystem.read(self._handle(handle, directory=False).fh, offset, length))

        return bytes(self._do(read))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        return int(self._do(self._filesystem.data.write, self._handle(handle, directory=False).fh, offset, data))

    def ftruncate(self, handle: int, size: int) -> None:
        self._do(partial(self._filesystem.change, self._handle(handle).ino, size=size))

    def fstat(self, handle: int) -> Attributes:
        return Attributes(*self._do(self._attributes, self._handle(handle).ino))

    def fsync(self, handle: int) -> None:
        opened = self._handle(handle)
        if opened.directory:
            self._do(self._filesystem.fsync_names)
        else:
            self._do(self._filesystem.data.fsync, opened.fh)

    def entries(self, handle: int) -> list[str]:
        return list(self._do(self._names, self._handle(handle, directory=True).fh))

    def close_all(self) -> None:
        """Leave no handle open."""
        for handle in list(self._handles):
            self.close(handle)


class _Handle(NamedTuple):
    """An open file or directory."""

    ino: int
    fh: int
    directory: bool


class Bed:
    """A cluster in a thread of its own, mounted `mounts` times."""

    def __init__(self, directory: Path, mounts: int) -> None:
        self._directory, self._mounts = directory, mounts
        self._filesystems: list[Filesystem] = []
        self._cluster: Cluster
        self.thread = TrioThread("vfs", self._serve)
        self.mounts = [VfsCalls(self.thread, filesystem) for filesystem in self._filesystems]

    async def _serve(self, started: Callable[[], None]) -> None:
        async with running(self._directory, NODES, CAPACITY_BYTES) as self._cluster, AsyncExitStack() as mounted:
            for _ in range(self._mounts):
                self._filesystems.append(await mounted.enter_async_context(self._cluster.mounted()))
            started()
            await trio.sleep_forever()

    def check(self) -> None:
        """Assert every server's invariants."""
        self.thread.call(self._cluster.check)

    def check_empty(self) -> None:
        """Assert that nothing is left but the root directory, and no bytes, once background work is through."""
        self._eventually_nothing(self._left)

    def check_reaped(self) -> None:
        """Assert that no file without a name is left, once background work is through."""
        self._eventually_nothing(lambda: sorted(self._cluster.meta.engine.table.orphans))

    def _eventually_nothing(self, left: Callable[[], list[Any]]) -> None:
        async def until_nothing() -> None:
            for filesystem in self._filesystems:
                await filesystem.fsync_names()
            with trio.move_on_after(CALL_S):
                while left():
                    await trio.sleep(0.005)

        self.thread.call_async(until_nothing)
        assert self.thread.call(left) == []

    def _left(self) -> list[str]:
        inodes = [f"inode {ino}" for ino in self._cluster.meta.engine.table.inodes if ino != ROOT_INO]
        return inodes + ([f"{self._cluster.used_bytes} bytes"] if self._cluster.used_bytes else [])


@contextmanager
def bed(directory: Path, mounts: int = 1) -> Iterator[Bed]:
    """A running cluster for the length of the context, with its store in `directory`."""
    made = Bed(directory, mounts)
    try:
        yield made
        made.check()
    finally:
        made.thread.stop()
