"""The filesystem proper: names, attributes and lifetimes of inodes. It knows neither FUSE nor Ray.

`gridfs.vfs.data` holds what has to do with bytes.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple, Protocol

import trio

from gridfs.chunk.client import ChunkClient
from gridfs.chunk.layout import claimed_bytes
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.meta.inode import ROOT_INO, Inode, moves_atime, without_privileges
from gridfs.meta.lease import LEASE
from gridfs.meta.table import Changes, Table
from gridfs.meta.xattrs import REPLICAS
from gridfs.types import ChunkId
from gridfs.vfs.attributes import Attributes, attributes_of
from gridfs.vfs.budget import LIMITS, Limits
from gridfs.vfs.data import Data
from gridfs.vfs.handles import Handles
from gridfs.vfs.places import Places

log = logging.getLogger(__name__)

COMMIT_INTERVAL_S = 1.0
NEXT_INO = 0
"""In an op: the number that comes next where the op is applied first."""
_CLOCK_REALTIME_COARSE = 5  # linux/time.h


def kernel_time_ns() -> int:
    """The time as the kernel puts it on files: its `touch` comes to us as a time, which a finer clock would run ahead of."""
    return time.clock_gettime_ns(_CLOCK_REALTIME_COARSE)


class Caller(NamedTuple):
    """Who makes a new inode; a default ACL of its directory overrules the umask."""

    uid: int
    gid: int
    umask: int = 0


class Space(NamedTuple):
    """What statfs(2) tells; in bytes and inodes."""

    capacity_bytes: int
    free_bytes: int
    inodes: int


class Kernel(Protocol):
    """Whoever has been told names and attributes, and may answer with them for a while."""

    async def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """These inodes and names (directory, name) have changed."""

    async def forget_all(self, known: Iterable[tuple[int, bytes, int]]) -> None:
        """Anything may change from now on; `known` lists (directory, name, inode) of all that was told."""


class NoKernel:
    """Nobody has been told anything."""

    async def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """Nothing to do."""

    async def forget_all(self, known: Iterable[tuple[int, bytes, int]]) -> None:
        """Nothing to do."""


class Filesystem:
    """One mounted filesystem.

    Owned by one trio thread. Metadata operations change the replica in one step, without an await in between; they are async
    only to wait when too many ops are queued. `_lookups` counts what the kernel holds (lookup count): an inode without names
    lives while it is counted there or has an open handle, and is reaped when both end.
    """

    def __init__(
        self,
        meta: MetaClient,
        chunks: ChunkClient,
        clock_ns: Callable[[], int] = kernel_time_ns,
        limits: Limits = LIMITS,
        replicas: int = 1,
    ) -> None:
        self._meta, self._chunks, self._clock_ns = meta, chunks, clock_ns
        self._handles = Handles(meta)
        self._lookups: dict[int, int] = defaultdict(int)
        self._changed: set[int] = set()
        """Inodes known to the kernel that others have changed since they were opened here last."""
        self.data = Data(meta, chunks, self._handles, clock_ns, limits, replicas)
        self.places = Places()
        self.kernel: Kernel = NoKernel()
        meta.watcher = self

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Tidy up after an earlier mount, then keep the background work going until cancelled."""
        async with trio.open_nursery() as nursery:
            self.data.start(nursery)
            self.restarted()
            if self._meta.alone:
                await self._collect()
            task_status.started()
            while True:
                await trio.sleep(COMMIT_INTERVAL_S)
                try:
                    await self.data.commit_all()
                except FilesystemError as error:
                    log.warning("sizes of open files could not be told to the inode table: %s", error.strerror)

    async def _collect(self) -> None:
        """Drop chunks that a crash has left without an owner, and bytes beyond the sizes that the table knows.

        Done before anything is served: such bytes would come back to light where a file grows.
        """
        table = self._meta.table

        def wanted_bytes(chunk_id: ChunkId, server: str) -> int:
            if server not in table.directory.servers(*chunk_id):
                return 0
            return claimed_bytes(table.inodes[chunk_id.ino].size, chunk_id.index)

        count = await self._chunks.collect(wanted_bytes)
        if count:
            log.info("collected or cut %d chunks that a crash had left", count)

    # -- other mounts ------------------------------------------------------------------------------------------------

    async def changed(self, changed: Changes) -> None:
        """Others have changed these rows: forget what was known of them, here and in the kernel."""
        for ino in changed.inodes | {ino for ino, _ in changed.chunks}:
            file = self._handles.open_files.get(ino)
            if file is not None and ino in self._meta.table.inodes:
                file.changed_elsewhere()
            if ino in self._lookups:
                self._changed.add(ino)
            self._reap_if_unused(ino)
        for chunk_id in changed.chunks:
            self.data.healer.changed(ChunkId(*chunk_id))
        if self._meta.alone:
            await self.kernel.forget(changed.inodes, list(changed.names))

    async def joined(self) -> None:
        """Another mount attaches: what the kernel was told for long must go."""
        await self.kernel.forget_all(self._known())

    def reloaded(self) -> None:
        """The replica is another one."""
        for file in self._handles.open_files.values():
            if file.ino in self._meta.table.inodes:
                file.changed_elsewhere()
        self._changed.update(self._lookups)
        self.data.healer.look_at_everything()
        self.restarted()

    def restarted(self) -> None:
        """The server does not know which orphans are unused here."""
        for ino in list(self._meta.table.orphans):
            self._reap_if_unused(ino)

    def is_clean(self) -> bool:
        """True while nothing was written that the inode table does not know of."""
        return self.data.is_clean

    async def end(self) -> None:
        """Everything is safe and durable, and the session is given back; for a clean unmount. Raises EIO."""
        await self.data.settle_all()
        await self._meta.leave()

    def _known(self) -> Iterator[tuple[int, bytes, int]]:
        """(directory, name, inode) of all that the kernel may know."""
        inodes = self._meta.table.inodes
        for ino in [ino for ino in self._lookups if ino in inodes] + [ROOT_INO]:
            for name, child in list((inodes[ino].entries or {}).items()):
                if child in self._lookups:
                    yield ino, name, child

    @property
    def table(self) -> Table:
        """The replica, for reading, once `ready` has returned and until the next await."""
        return self._meta.table

    @property
    def alone(self) -> bool:
        """True while no other mount is attached."""
        return self._meta.alone

    # -- names -------------------------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes) -> Attributes:
        """The inode that `name` leads to; counted as held. Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        await self._meta.readable()
        inode = self._meta.table.lookup(parent, name)
        self.places.found(inode.ino, parent, name)
        return self._hold(inode)

    async def make(
        self, caller: Caller, parent: int, name: bytes, mode: int, rdev: int = 0, target: bytes | None = None
    ) -> Attributes:
        """A new inode of the type in `mode`; counted as held. Raises as `Table.make`."""
        who = (caller.uid, caller.gid)
        op = ("make", self._clock_ns(), NEXT_INO, parent, name, mode, *who, rdev, target, caller.umask)
        return self._hold(await self._meta.execute(op))

    async def link(self, ino: int, parent: int, name: bytes) -> Attributes:
        """Another name for `ino`; counted as held."""
        return self._hold(await self._meta.execute(("link", self._clock_ns(), ino, parent, name)))

    async def unlink(self, parent: int, name: bytes) -> None:
        """Remove a name; bytes stay readable for those who have the file open."""
        inode = await self._meta.execute(("unlink", self._clock_ns(), parent, name))
        self._reap_if_unused(inode.ino)

    async def rmdir(self, parent: int, name: bytes) -> None:
        """Remove an empty directory."""
        inode = await self._meta.execute(("rmdir", self._clock_ns(), parent, name))
        self._reap_if_unused(inode.ino)

    async def rename(self, parent: int, name: bytes, new_parent: int, new_name: bytes, flags: int) -> None:
        """rename(2), renameat2(2) with NOREPLACE or EXCHANGE."""
        replaced = await self._meta.execute(("rename", self._clock_ns(), parent, name, new_parent, new_name, flags))
        if replaced is not None:
            self._reap_if_unused(replaced.ino)

    async def readlink(self, ino: int) -> bytes:
        """A symlink's target. Raises EINVAL for anything else."""
        await self._meta.readable()
        target = self._meta.table.inode(ino).target
        if target is None:
            raise FilesystemError(errno.EINVAL)
        return target

    async def ready(self) -> None:
        """Return once what is not async here may be called: the replica is as new as any mount's. Raises EIO."""
        await self._meta.readable()

    def names(self, fh: int, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """What directory handle `fh` lists from position `start` on: (next position, name, attributes).

        The handle lists the names there were when it was at position 0, less those gone since. Nothing is counted as held.
        """
        handle = self._handles.directory(fh)
        entries = self._meta.table.directory_entries(handle.ino)
        if start == 0:
            handle.names = [b".", b"..", *entries]
            self._touch(handle.ino)
        special = {b".": handle.ino, b"..": self._meta.table.inode(handle.ino).parent}
        for position in range(start, len(handle.names)):
            name = handle.names[position]
            ino = entries.get(name) or special.get(name)
            if ino is not None:
                yield position + 1, name, self._attributes(self._meta.table.inode(ino))

    async def opendir(self, ino: int) -> int:
        """A handle of directory `ino`. Raises ENOENT, ENOTDIR."""
        await self._meta.readable()
        self._meta.table.directory_entries(ino)
        return self._handles.add_directory(ino)

    def releasedir(self, fh: int) -> None:
        """The kernel has closed the handle."""
        self._reap_if_unused(self._handles.remove_directory(fh).ino)

    async def fsync_names(self) -> None:
        """Return once every name and attribute changed so far is durable."""
        await self._meta.settle()

    # -- lifetimes ---------------------------------------------------------------------------------------------------

    def _hold(self, inode: Inode) -> Attributes:
        self._lookups[inode.ino] += 1
        return self._attributes(inode)

    def hold(self, ino: int) -> None:
        """The kernel has learnt of the inode in a listing."""
        self._lookups[ino] += 1

    def forget(self, ino: int, count: int) -> None:
        """The kernel lets go of `count` of the lookups it holds. Never raises."""
        left = self._lookups.pop(ino, 0) - count
        if left > 0:
            self._lookups[ino] = left
        else:
            self._changed.discard(ino)
            self._reap_if_unused(ino)

    def is_as_told(self, ino: int) -> bool:
        """Whether the kernel's copies of the file's bytes are good; asked when it is opened, which makes them good."""
        if ino not in self._changed:
            return True
        self._changed.discard(ino)
        return False

    def _reap_if_unused(self, ino: int) -> None:
        """End an orphan that nobody holds. Once the session is lost its next owner does it.

        With other mounts, who may hold it too, the server does it once all have disowned it. Then a file that the kernel only
        remembers does not count as held: nothing tells the kernel to forget it.
        """
        if ino not in self._meta.table.orphans or ino in self._handles.open_files or self._handles.holds_directory(ino):
            return
        if not self._meta.alone:
            self._meta.post(("disown", ino))
        elif ino not in self._lookups and not self._meta.failure:
            if self._meta.state is not LEASE:
                self._meta.post(("disown", ino))
                return
            for index, servers in self._meta.apply(("reap", ino)):
                for server in servers:
                    self._chunks.drop_soon(server, ChunkId(ino, index))

    # -- attributes --------------------------------------------------------------------------------------------------

    async def attributes(self, ino: int) -> Attributes:
        """What stat(2) tells. Raises ENOENT."""
        await self._meta.readable()
        return self._attributes(self._meta.table.inode(ino))

    def _attributes(self, inode: Inode) -> Attributes:
        chunks = self._meta.table.directory.count(inode.ino)
        return attributes_of(inode, self._handles.open_files.get(inode.ino), chunks)

    async def change(self, ino: int, *, size: int | None = None, clears_setuid: bool = False, **changes: int) -> Attributes:
        """chmod, chown, utimens (`mode`, `uid`, `gid`, `atime_ns`, `mtime_ns`) and truncate (`size`).

        `clears_setuid` is for a truncation by any user but root.
        """
        if size is not None:
            if clears_setuid:
                await self._clear_setuid(ino)
            await self.data.truncate(ino, size)
        if changes:
            file = self._handles.open_files.get(ino)
            if file is not None:
                await file.commit_times()
            fields = ("mode", "uid", "gid", "size", "atime_ns", "mtime_ns")
            await self._meta.execute(("change", self._clock_ns(), ino, *(changes.get(field) for field in fields)))
        return await self.attributes(ino)

    def _touch(self, ino: int) -> None:
        """Move atime as `relatime` does: when it is not newer than the last change, or a day old (mount(8))."""
        inode, file, now_ns = self._meta.table.inode(ino), self._handles.open_files.get(ino), self._clock_ns()
        written_ns = file.mtime_ns if file is not None else None
        if moves_atime(inode, now_ns, written_ns or 0):
            self._meta.post(("touch", now_ns, ino))

    async def space(self) -> Space:
        """What statfs(2) tells, asked of the nodes just now: for files with as many copies as the mount makes by default."""
        capacity, free = await self._chunks.space()
        copies = self.data.placer.replicas_default
        return Space(capacity // copies, free // copies, len(self._meta.table.inodes))

    # -- extended attributes -----------------------------------------------------------------------------------------

    async def get_xattr(self, ino: int, name: bytes) -> bytes:
        """getxattr(2). Raises ENODATA."""
        await self._meta.readable()
        value = (self._meta.table.inode(ino).xattrs or {}).get(name)
        if value is None:
            raise FilesystemError(errno.ENODATA)
        return value

    async def list_xattrs(self, ino: int) -> list[bytes]:
        """listxattr(2)."""
        await self._meta.readable()
        return list(self._meta.table.inode(ino).xattrs or {})

    async def set_xattr(self, ino: int, name: bytes, value: bytes, clears_setgid: bool = False) -> None:
        """setxattr(2). Raises as `Table.set_xattr`."""
        await self._meta.execute(("set_xattr", self._clock_ns(), ino, name, bytes(value), 0, clears_setgid))
        if name == REPLICAS:
            self.data.healer.look_at_file(ino)

    async def remove_xattr(self, ino: int, name: bytes) -> None:
        """removexattr(2). Raises ENODATA."""
        await self._meta.execute(("remove_xattr", self._clock_ns(), ino, name))
        if name == REPLICAS:
            self.data.healer.look_at_file(ino)

    # -- files -------------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, clears_setuid: bool = False) -> int:
        """A handle of regular file `ino`; O_TRUNC is carried out. Raises ENOENT, EISDIR, EINVAL.

        `clears_setuid` is for any user but root: O_TRUNC and writes through the handle take setuid and setgid away.
        """
        if clears_setuid and flags & os.O_TRUNC:
            await self._clear_setuid(ino)
        return await self.data.open(ino, flags, clears_setuid)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """As `Data.write`."""
        handle = self._handles.file(fh)
        if handle.clears_setuid:
            await self._clear_setuid(handle.file.ino)
        return await self.data.write(fh, offset, data)

    async def _clear_setuid(self, ino: int) -> None:
        """The bytes are about to be changed by another than root. The kernel must not go by the mode that it remembers."""
        await self._meta.readable()
        mode = self._meta.table.inode(ino).mode
        if without_privileges(mode) != mode:
            await self.change(ino, mode=without_privileges(mode))
            await self.kernel.forget([ino], [])

    async def read(self, fh: int, offset: int, length: int) -> Any:
        """Bytes of an open file, fewer than asked only at its end; atime moves. Raises EIO, EBADF."""
        await self._meta.readable()
        self._touch(self._handles.file(fh).file.ino)
        return await self.data.read(fh, offset, length)

    async def release(self, fh: int) -> None:
        """The kernel has closed the handle."""
        ino = self._handles.file(fh).file.ino
        await self.data.release(fh)
        self._reap_if_unused(ino)

    def layout(self, ino: int) -> dict[str, Any]:
        """Where a regular file's bytes are: chunk size, chunks, and how many of them each host holds. Raises ENODATA."""
        inode = self._meta.table.inode(ino)
        if not inode.is_regular:
            raise FilesystemError(errno.ENODATA)
        hosts = {node.server: node.host if node.alive else f"{node.host} (lost)" for node in self._meta.placement.nodes}
        nodes: dict[str, int] = defaultdict(int)
        chunks = self._meta.table.directory.chunks(ino)
        for servers in chunks.values():
            for server in servers:
                nodes[hosts.get(server, f"{server} (lost)")] += 1
        size = self._attributes(inode).size
        return {
            "chunk_size": CHUNK_SIZE_BYTES,
            "size": size,
            "chunks": len(chunks),
            "replicas": self.data.placer.wanted(ino),
            "nodes": dict(sorted(nodes.items())),
        }
