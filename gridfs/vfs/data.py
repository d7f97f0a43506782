"""Bytes of files: open, read, write, truncate, and the promises of close and fsync."""

from __future__ import annotations

import errno
import logging
import os
from collections import defaultdict
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import trio

from gridfs.buffers import Buffer
from gridfs.chunk.client import ChunkClient
from gridfs.config import CHUNK_SIZE_BYTES, FILE_SIZE_MAX_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.meta.directory import Servers
from gridfs.offload.job import Input
from gridfs.stream.lock import Promptly
from gridfs.types import ChunkId
from gridfs.vfs.budget import Budget, Limits
from gridfs.vfs.fetch import Fetcher
from gridfs.vfs.handles import FileHandle, Handles
from gridfs.vfs.healer import Healer
from gridfs.vfs.placer import Placer
from gridfs.vfs.readahead import ReadAhead
from gridfs.vfs.writeback import Writeback

log = logging.getLogger(__name__)
T = TypeVar("T")


class Data:
    """The data half of a `Filesystem`, in the same trio thread."""

    def __init__(
        self,
        meta: MetaClient,
        chunks: ChunkClient,
        handles: Handles,
        clock_ns: Callable[[], int],
        limits: Limits,
        replicas: int,
    ) -> None:
        """`replicas` is for files that do not say how many copies they want."""
        self._meta, self._chunks, self._handles, self._clock_ns = meta, chunks, handles, clock_ns
        self.placer = Placer(meta, chunks, replicas)
        self.healer = Healer(meta, chunks, handles, self.placer)
        self._budget = Budget(limits.budget_bytes)
        self._writeback = Writeback(chunks, self.placer, self.healer, Budget(limits.window_bytes, self._budget))
        self._fetcher = Fetcher(meta, chunks, self._budget, self.healer.found_bad)
        self._nursery: trio.Nursery
        self._uncut: dict[int, list[tuple[str, ChunkId, int]]] = defaultdict(list)
        """Inode -> (server, chunk, length to keep) of what was cut off in the table and not yet there."""

    def start(self, nursery: trio.Nursery) -> None:
        """Fetches ahead, and what becomes of copies, run in `nursery`; nothing can be opened before."""
        self._nursery = nursery
        nursery.start_soon(self._writeback.run)
        nursery.start_soon(self.healer.run)

    # -- handles -----------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, clears_setuid: bool = False) -> int:
        """A handle of regular file `ino`; O_TRUNC is carried out. Raises ENOENT, EISDIR, EINVAL. See `FileHandle`."""
        await self._meta.readable()
        self._refuse_all_but_files(ino)
        if flags & os.O_TRUNC:
            await self.truncate(ino, 0)
        file = self._handles.state_of(ino)
        reader = ReadAhead(file, self._fetcher, self._budget, self._nursery)
        return self._handles.add_file(FileHandle(file, flags, reader, clears_setuid))

    def _refuse_all_but_files(self, ino: int) -> None:
        inode = self._meta.table.inode(ino)
        if not inode.is_regular:
            raise FilesystemError(errno.EISDIR if inode.is_directory else errno.EINVAL)

    async def release(self, fh: int) -> None:
        """The handle ends; what was written through it is settled first. Never raises."""
        file = self._handles.file(fh).file
        await file.settle()
        try:
            if file.dirty:
                await file.commit()
        except FilesystemError as error:
            log.warning("inode %d: closed without its size and time being told: %s", file.ino, error.strerror)
        finally:
            self._handles.remove_file(fh)

    # -- bytes -------------------------------------------------------------------------------------------------------

    async def read(self, fh: int, offset: int, length: int) -> Buffer:
        """The bytes [offset, offset + length), fewer at the end of the file. Raises EIO, EBADF."""
        await self._meta.readable()
        return await self._handles.file(fh).reader.read(offset, length)

    async def write(self, fh: int, offset: int, data: bytes) -> int:
        """Write at `offset`; returns how many bytes were taken, fewer than asked only when space ran out.

        The bytes are visible to every read from then on, and safe after `flush` or `fsync`. Raises ENOSPC, EFBIG, EIO, EBADF.
        """
        handle = self._handles.file(fh)
        if offset + len(data) > FILE_SIZE_MAX_BYTES:
            raise FilesystemError(errno.EFBIG)
        await self._meta.readable()
        handle.wrote = True
        async with Promptly(handle.file.lock):
            if handle.file.ino in self._uncut:
                await self._cut_what_is_left(handle.file.ino)
            return await self._writeback.write(handle.file, offset, data, self._clock_ns())

    async def flush(self, fh: int) -> None:
        """close(2): what this handle wrote is with the chunk servers. Raises a write's late error, once per handle.

        The inode table hears of it in the background; whoever needs it durable calls `fsync`.
        """
        handle = self._handles.file(fh)
        if handle.wrote:
            handle.wrote = False  # before it waits: what is written meanwhile is the next flush's to wait for
            await self._make_safe(handle)

    async def fsync(self, fh: int) -> None:
        """fsync(2): the file's bytes, size and names are safe and durable. Raises as `flush`."""
        handle = self._handles.file(fh)
        await self._make_safe(handle)
        await self._meta.settle()

    async def _make_safe(self, handle: FileHandle) -> None:
        """Bytes to the chunk servers first, then the size to the inode table."""
        await handle.file.settle()
        handle.raise_error()
        if handle.file.dirty:
            await handle.file.commit()

    async def snapshot(self, ino: int, name: str, submit: Callable[[Input], Awaitable[T]]) -> T:
        """What `submit` returns, told of the file as it is: all that was written here is safe and durable, and nobody writes.

        Raises ENOENT, EISDIR and EINVAL for what is no regular file, EIO for bytes that are lost meanwhile, and as `submit`.
        """
        await self._meta.readable()
        self._refuse_all_but_files(ino)
        with self._handles.using(ino) as file:
            async with file.lock:
                seen = file.error_count
                await file.settle()
                file.raise_error(seen)
                if file.dirty:
                    await file.commit()
                await self._cut_what_is_left(ino)
                await self._meta.settle()
                size, chunks = self._meta.table.inode(ino).size, self._meta.table.directory.chunks(ino)
                within = {index: tuple(servers) for index, servers in chunks.items() if index * CHUNK_SIZE_BYTES < size}
                return await submit(Input(ino, name, size, within))

    # -- sizes -------------------------------------------------------------------------------------------------------

    async def truncate(self, ino: int, size: int) -> None:
        """Set the size; a longer file ends in zeros. Raises EISDIR, EINVAL, EFBIG, EIO.

        The bytes that are cut go only once the table durably has the smaller size: a crash leaves the file as it was, or
        cut, and nothing in between. What it leaves on the servers beyond that is collected by the next mount.
        """
        await self._meta.readable()
        self._refuse_all_but_files(ino)
        with self._handles.using(ino) as file:
            async with file.lock:
                await file.settle()
                if file.dirty:
                    await file.commit()
                await self._cut_what_is_left(ino)
                shrinks = size < self._meta.table.inode(ino).size
                chunks = dict(self._meta.table.directory.chunks(ino))
                await self._meta.execute(("change", self._clock_ns(), ino, None, None, None, size))
                file.truncated(size)
                if shrinks and chunks:
                    await self._meta.settle()
                    await self._cut(ino, size, chunks)

    async def _cut(self, ino: int, size: int, chunks: Mapping[int, Servers]) -> None:
        """Take the bytes from `size` on away from the servers that held the file's `chunks`. Raises EIO."""
        last, within = divmod(size, CHUNK_SIZE_BYTES)
        for index, servers in chunks.items():
            if index > last or (index == last and not within):
                self._uncut[ino].extend((server, ChunkId(ino, index), 0) for server in servers)
            elif index == last:
                self._uncut[ino].extend((server, ChunkId(ino, index), within) for server in servers)
        await self._cut_what_is_left(ino)

    async def _cut_what_is_left(self, ino: int) -> None:
        """Cut what an earlier truncation could not, before the file may grow over it again. Raises EIO.

        A server that is lost is passed over: its bytes cannot be read.
        """
        left = self._uncut.get(ino, [])
        for server in {server for server, _, _ in left if self._chunks.is_alive(server)}:
            await self._chunks.drop(server, [chunk_id for holder, chunk_id, keep in left if holder == server and not keep])
            for holder, chunk_id, keep in left:
                if holder == server and keep:
                    await self._cut_chunk(chunk_id, server, keep)
            left[:] = [entry for entry in left if entry[0] != server]
        if not left:
            self._uncut.pop(ino, None)

    async def _cut_chunk(self, chunk_id: ChunkId, server: str, length: int) -> None:
        """Cut one copy; one that cannot be cut is withdrawn if there is another. Raises EIO."""
        try:
            await self._chunks.truncate(server, chunk_id, length)
        except FilesystemError:
            if len(self._meta.table.directory.servers(*chunk_id)) < 2:
                raise
            await self.placer.withdraw(*chunk_id, [server])

    async def commit_all(self) -> None:
        """Tell the table what is safe by now of every open file, for those who never close or sync."""
        for file in list(self._handles.open_files.values()):
            if file.dirty and not self._meta.failure:
                await file.commit()

    @property
    def is_clean(self) -> bool:
        """True while nothing was written that the table does not know of."""
        return not any(file.in_flight or file.dirty for file in self._handles.open_files.values())

    async def settle_all(self) -> None:
        """Everything written so far is safe when this returns; for a clean unmount."""
        for file in list(self._handles.open_files.values()):
            await file.settle()
        await self.commit_all()
        await self._meta.settle()
