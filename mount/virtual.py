"""What the kernel asks of virtual inodes: the handlers of `Operations` that they answer. All others are EPERM.

The kernel keeps nothing of what it is told here.
"""

from __future__ import annotations

import errno
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import pyfuse3

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.access import CONTROL_NAME
from mount.control import OFFLOAD
from mount.entry import packed
from mount.offload import shortened
from mount.tree import FIRST, Tree

_DIRECTORIES = ("parent", "new_parent")
_ANSWERED = frozenset(
    (
        *("lookup", "getattr", "opendir", "readdir", "releasedir", "open", "read", "release"),
        *("getxattr", "listxattr", "removexattr", "flush", "fsync", "fsyncdir"),
    )
)


def places(handler: Callable[..., Any]) -> tuple[int, ...]:
    """Where among a handler's arguments the numbers of inodes and handles stand that say whom it concerns."""
    names = list(inspect.signature(handler).parameters)[1:]
    first = [0] if names[0] in ("ino", "fh", *_DIRECTORIES) else []
    return tuple(first + [at for at, name in enumerate(names) if at and name in _DIRECTORIES])


def concerns(places: tuple[int, ...], arguments: Sequence[Any]) -> bool:
    """Whether a request is one about virtual inodes, or about the name that leads to them."""
    for at in places:
        number = arguments[at]
        if number >= FIRST or (number == ROOT_INO and len(arguments) > at + 1 and arguments[at + 1] == CONTROL_NAME):
            return True
    return False


class Virtual:
    """The handlers. They raise FilesystemError, as those of `Operations`, which has them called."""

    def __init__(self, tree: Tree) -> None:
        self._tree = tree

    async def answer(self, handler: str, *arguments: Any) -> Any:
        """What the handler of that name answers. Raises EPERM where there is none: nothing can be changed here."""
        if handler not in _ANSWERED:
            raise FilesystemError(errno.EPERM)
        return await getattr(self, handler)(*arguments)

    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """See `Tree.lookup`."""
        return packed(await self._tree.lookup(parent, name, ctx.uid))

    async def getattr(self, ino: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """See `Tree.attributes`."""
        return packed(await self._tree.attributes(ino, ctx.uid))

    async def opendir(self, ino: int, ctx: pyfuse3.RequestContext) -> int:
        """See `Tree.opendir`."""
        return await self._tree.opendir(ino, ctx.uid)

    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        """See `Tree.names`."""
        for position, name, attributes in self._tree.names(fh, start):
            if not pyfuse3.readdir_reply(token, name, packed(attributes), position):
                break

    async def releasedir(self, fh: int) -> None:
        """See `Tree.release`."""
        self._tree.release(fh)

    async def open(self, ino: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """See `Tree.open`. Nothing goes through the page cache: no size is told, and the content is another each time."""
        return pyfuse3.FileInfo(fh=await self._tree.open(ino, flags, ctx.uid), direct_io=True, keep_cache=False)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        """See `Tree.read`."""
        return self._tree.read(fh, off, size)

    async def release(self, fh: int) -> None:
        """See `Tree.release`."""
        self._tree.release(fh)

    async def flush(self, fh: int) -> None:
        """Nothing is ever written."""

    async def fsync(self, fh: int, datasync: bool) -> None:
        """Nothing is ever written."""

    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        """Nothing is ever written."""

    async def getxattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        """The status of a job is an attribute of its directory. Raises ENODATA for any other."""
        if name != OFFLOAD:
            raise FilesystemError(errno.ENODATA)
        return shortened(await self._tree.status(ino, ctx.uid))

    async def listxattr(self, ino: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        """None, as control attributes are not listed."""
        return []

    async def removexattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        """Cancels a job. Raises ENODATA for any other attribute."""
        if name != OFFLOAD:
            raise FilesystemError(errno.ENODATA)
        await self._tree.cancel(ino, ctx.uid)
