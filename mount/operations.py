"""What the kernel asks for, handed to the vfs: every handler unpacks, calls, packs."""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import os
import stat
from collections.abc import Awaitable, Callable, Sequence, Set
from typing import Any, TypeVar

import pyfuse3

from gridfs.config import NAME_MAX_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.acl import ACCESS
from gridfs.offload.client import JobsClient
from gridfs.offload.job import Submitter
from gridfs.vfs.attributes import Attributes
from gridfs.vfs.filesystem import Caller, Filesystem
from mount import virtual
from mount.control import Control
from mount.entry import BLOCK_BYTES, packed
from mount.kernel import KEEP_BRIEFLY_S, KEEP_S
from mount.offload import Offload
from mount.tree import Tree
from mount.virtual import Virtual

log = logging.getLogger(__name__)

_FREE_INODES = 1 << 32
"""Inodes are bounded by the master's memory alone; statfs(2) wants a number."""

H = TypeVar("H", bound=Callable[..., Awaitable[Any]])


def answers_errno(handler: H) -> H:
    """The one boundary where errors become errnos: what is raised on purpose keeps its errno, a bug is EIO with a traceback.

    pyfuse3 catches FUSEError alone; anything else would end the mount. Cancellation passes: it is a BaseException.
    What the kernel asks of virtual inodes goes to the handler of that name in `Virtual`.
    """
    name, places = handler.__name__, virtual.places(handler)

    @functools.wraps(handler)
    async def guarded(self: Operations, *arguments: Any) -> Any:
        try:
            if virtual.concerns(places, arguments):
                return await self.virtual.answer(name, *arguments)
            return await handler(self, *arguments)
        except FilesystemError as error:
            if error.errno == errno.EIO:
                log.warning("%s: %s", name, error.strerror)
            raise pyfuse3.FUSEError(error.errno or errno.EIO) from None
        except Exception:
            log.exception("%s failed", name)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return guarded  # type: ignore[return-value]


class Operations(pyfuse3.Operations):
    """The kernel's requests. `forget` and `release` never raise but for a bug in them."""

    supports_dot_lookup = False
    enable_writeback_cache = False
    enable_acl = True

    def __init__(self, filesystem: Filesystem, jobs: JobsClient) -> None:
        super().__init__()
        self._filesystem = filesystem
        offload = Offload(filesystem, jobs)
        self._control = Control(filesystem, offload)
        self.virtual = Virtual(Tree(jobs, offload.errors))

    # -- names -------------------------------------------------------------------------------------------------------

    @answers_errno
    async def lookup(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        try:
            return self._entry(await self._filesystem.lookup(parent, name))
        except FilesystemError as error:
            if error.errno != errno.ENOENT:
                raise
            return self._negative_entry()

    @answers_errno
    async def forget(self, inode_list: Sequence[tuple[int, int]]) -> None:
        for ino, count in inode_list:
            self._filesystem.forget(ino, count)

    @answers_errno
    async def mknod(
        self, parent: int, name: bytes, mode: int, rdev: int, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.make(_caller(ctx), parent, name, mode, rdev))

    @answers_errno
    async def mkdir(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.make(_caller(ctx), parent, name, stat.S_IFDIR | stat.S_IMODE(mode)))

    @answers_errno
    async def symlink(self, parent: int, name: bytes, target: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        mode = stat.S_IFLNK | 0o777
        return self._entry(await self._filesystem.make(_caller(ctx), parent, name, mode, target=bytes(target)))

    @answers_errno
    async def readlink(self, ino: int, ctx: pyfuse3.RequestContext) -> bytes:
        return await self._filesystem.readlink(ino)

    @answers_errno
    async def link(self, ino: int, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.link(ino, parent, name))

    @answers_errno
    async def unlink(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._filesystem.unlink(parent, name)

    @answers_errno
    async def rmdir(self, parent: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        await self._filesystem.rmdir(parent, name)

    @answers_errno
    async def rename(
        self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int, ctx: pyfuse3.RequestContext
    ) -> None:
        await self._filesystem.rename(parent, name, new_parent, new_name, flags)

    # -- directories -------------------------------------------------------------------------------------------------

    @answers_errno
    async def opendir(self, ino: int, ctx: pyfuse3.RequestContext) -> int:
        return await self._filesystem.opendir(ino)

    @answers_errno
    async def readdir(self, fh: int, start: int, token: pyfuse3.ReaddirToken) -> None:
        await self._filesystem.ready()
        for position, name, attributes in self._filesystem.names(fh, start):
            if not pyfuse3.readdir_reply(token, name, self._entry(attributes), position):
                break
            if name not in (b".", b".."):  # these two the kernel does not count
                self._filesystem.hold(attributes.ino)

    @answers_errno
    async def releasedir(self, fh: int) -> None:
        self._filesystem.releasedir(fh)

    @answers_errno
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        await self._filesystem.fsync_names()

    # -- attributes --------------------------------------------------------------------------------------------------

    @answers_errno
    async def getattr(self, ino: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        return self._entry(await self._filesystem.attributes(ino))

    @answers_errno
    async def setattr(
        self,
        ino: int,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: int | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        changes = {name: getattr(attr, f"st_{name}") for name in _CHANGES if getattr(fields, _CHANGES[name])}
        return self._entry(await self._filesystem.change(ino, clears_setuid=ctx.uid != 0, **changes))

    @answers_errno
    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        space, data = await self._filesystem.space(), pyfuse3.StatvfsData()
        data.f_bsize = data.f_frsize = BLOCK_BYTES
        data.f_blocks = space.capacity_bytes // BLOCK_BYTES
        data.f_bfree = data.f_bavail = space.free_bytes // BLOCK_BYTES
        data.f_files, data.f_ffree = space.inodes + _FREE_INODES, _FREE_INODES
        data.f_favail, data.f_namemax = _FREE_INODES, NAME_MAX_BYTES
        return data

    @answers_errno
    async def getxattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        attribute = self._control.find(name)
        if attribute is not None:
            return await attribute.get(ino, ctx.uid, ctx.pid)
        return await self._filesystem.get_xattr(ino, name)

    @answers_errno
    async def setxattr(self, ino: int, name: bytes, value: bytes, ctx: pyfuse3.RequestContext) -> None:
        attribute = self._control.find(name)
        if attribute is not None:
            return await attribute.set(ino, bytes(value), _submitter(ctx), ctx.pid)
        clears_setgid = name == ACCESS and not _may_keep_setgid(ctx, await self._filesystem.attributes(ino))
        return await self._filesystem.set_xattr(ino, name, value, clears_setgid)

    @answers_errno
    async def listxattr(self, ino: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await self._filesystem.list_xattrs(ino)

    @answers_errno
    async def removexattr(self, ino: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        attribute = self._control.find(name)
        if attribute is not None:
            return await attribute.remove(ino, ctx.uid, ctx.pid)
        return await self._filesystem.remove_xattr(ino, name)

    # -- files -------------------------------------------------------------------------------------------------------

    @answers_errno
    async def open(self, ino: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return self._opened(ino, await self._filesystem.open(ino, flags, clears_setuid=ctx.uid != 0))

    @answers_errno
    async def create(
        self, parent: int, name: bytes, mode: int, flags: int, ctx: pyfuse3.RequestContext
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        attributes = await self._filesystem.make(_caller(ctx), parent, name, stat.S_IFREG | stat.S_IMODE(mode))
        fh = await self._filesystem.open(attributes.ino, flags & ~os.O_TRUNC, clears_setuid=ctx.uid != 0)
        return self._opened(attributes.ino, fh), self._entry(attributes)

    @answers_errno
    async def read(self, fh: int, off: int, size: int) -> Any:
        return await self._filesystem.read(fh, off, size)

    @answers_errno
    async def write(self, fh: int, off: int, buf: bytes) -> int:
        return await self._filesystem.write(fh, off, buf)

    @answers_errno
    async def flush(self, fh: int) -> None:
        await self._filesystem.data.flush(fh)

    @answers_errno
    async def fsync(self, fh: int, datasync: bool) -> None:
        await self._filesystem.data.fsync(fh)

    @answers_errno
    async def release(self, fh: int) -> None:
        await self._filesystem.release(fh)

    # -- what the kernel is told -------------------------------------------------------------------------------------

    def _entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        """The attributes, and how long they may be kept."""
        if not self._filesystem.alone:
            return packed(attributes)
        return packed(attributes, KEEP_S, KEEP_BRIEFLY_S if stat.S_ISDIR(attributes.mode) else KEEP_S)

    def _negative_entry(self) -> pyfuse3.EntryAttributes:
        """Tells the kernel that there is no such name, and that it may remember so."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = KEEP_BRIEFLY_S if self._filesystem.alone else 0.0
        return entry

    def _opened(self, ino: int, fh: int) -> pyfuse3.FileInfo:
        """Cached pages stay valid from open to open, unless the file has been changed elsewhere."""
        return pyfuse3.FileInfo(fh=fh, keep_cache=self._filesystem.is_as_told(ino))


_CHANGES = {
    "mode": "update_mode",
    "uid": "update_uid",
    "gid": "update_gid",
    "size": "update_size",
    "atime_ns": "update_atime",
    "mtime_ns": "update_mtime",
}
"""What setattr may change -> the flag that says it does. ctime is the table's own business."""


def _caller(ctx: pyfuse3.RequestContext) -> Caller:
    """The umask may be off the mode already, by the kernel's doing; taking it off again does no harm."""
    return Caller(ctx.uid, ctx.gid, ctx.umask)


def _may_keep_setgid(ctx: pyfuse3.RequestContext, attributes: Attributes) -> bool:
    """Whether the caller is root or in the file's group: the kernel knows, and has no way to tell libfuse."""
    if not attributes.mode & stat.S_ISGID or ctx.uid == 0 or ctx.gid == attributes.gid:
        return True
    return attributes.gid in _groups(ctx)


def _submitter(ctx: pyfuse3.RequestContext) -> Submitter:
    return Submitter(ctx.uid, ctx.gid, tuple(sorted(_groups(ctx))))


def _groups(ctx: pyfuse3.RequestContext) -> Set[int]:
    """The supplementary groups of the caller; none if that cannot be told."""
    with contextlib.suppress(OSError):  # the caller may have ended, or live where our /proc does not show it
        return pyfuse3.get_sup_groups(ctx.pid)
    return frozenset()
