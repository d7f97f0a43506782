"""The chunks of one server: reading, writing, cutting and verifying them."""

from __future__ import annotations

import errno
from collections.abc import AsyncIterator, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Any

import trio
import xxhash

from gridfs.buffers import allocate
from gridfs.chunk.chunk import Chunk, State, bad
from gridfs.chunk.inventory import Inventory
from gridfs.chunk.objects import Objects
from gridfs.chunk.patch import PATCHED_MIN_BYTES, PATCHING_MAX_BYTES, Patch
from gridfs.chunk.pool import Buffer, BufferPool
from gridfs.chunk.sealer import Sealer
from gridfs.config import KIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId

VERIFIED_S = 60.0
"""So long a sealed chunk is taken to be as it was when it was last verified."""
LARGE_READ_BYTES = 128 * KIB
"""A read of more than this is worth verifying the chunk for."""
HASHED_AT_ONCE_BYTES = 128 * KIB
"""Hashing this much takes less time than handing it to another thread."""


class Chunks(Inventory):
    """All chunks of a server.

    Owned by one trio thread. A chunk's lock guards its growth and its change from sealed to open, which may wait for the pool.
    """

    def __init__(self, objects: Objects, pool: BufferPool, clock: Callable[[], float] = trio.current_time) -> None:
        super().__init__(pool, clock)
        self._sealer = Sealer(self, objects)
        self._hashers = trio.CapacityLimiter(2)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, chunk_id: ChunkId, offset: int, length: int) -> tuple[memoryview, Callable[[], None] | None]:
        """The bytes there are of [offset, offset + length), and what to call once they have been sent.

        They are not copied unless some lie over sealed ones. Raises EBADMSG if the chunk is known to be bad.
        """
        chunk = self.chunks.get(chunk_id)
        if chunk is None or chunk.length <= offset:
            return memoryview(b""), None
        if chunk.bad:
            raise bad(chunk_id)
        end = min(offset + length, chunk.length)
        pieces = chunk.pieces(offset, end)
        if chunk.patch is not None and chunk.patch.covers(offset, end):
            return memoryview(b"".join(pieces)), None
        if chunk.buffer is None:
            return pieces[0], None
        return pieces[0], self.pin(chunk_id)

    def pin(self, chunk_id: ChunkId) -> Callable[[], None]:
        """Keep the chunk's buffer, if it has one, until what is returned has been called.

        What is sealed stays anyhow, and so does what `write` has received for a patch: that is memory of its own.
        """
        chunk = self.chunks.get(chunk_id)
        buffer = chunk.buffer if chunk is not None else None
        if buffer is None:
            return lambda: None
        buffer.pins += 1
        return lambda: self.pool.unpin(buffer)

    @asynccontextmanager
    async def locked(self, chunk_id: ChunkId) -> AsyncIterator[Chunk]:
        """Keep writes and truncations of the chunk away for as long as the context lasts. Raises ENOENT."""
        chunk = self.chunks.get(chunk_id)
        if chunk is not None:
            async with chunk.locked():
                if not chunk.dropped:
                    yield chunk
                    return
        raise FilesystemError(errno.ENOENT, f"chunk {chunk_id} is not here")

    async def verified_read(self, chunk_id: ChunkId, offset: int, length: int) -> tuple[memoryview, Callable[[], None] | None]:
        """As `read`. Before a large read, or one of the whole chunk, a sealed chunk is verified if it was not lately."""
        chunk = self.chunks.get(chunk_id)
        if chunk is not None and chunk.pack is not None:
            much = length > LARGE_READ_BYTES or (offset == 0 and length >= chunk.length)
            if much and self._is_to_verify(chunk):
                await self._verify(chunk_id, chunk)
        return self.read(chunk_id, offset, length)

    async def write(self, chunk_id: ChunkId, offset: int, length: int, receive: Callable[[memoryview], Any]) -> int:
        """Let `receive` fill bytes [offset, offset + length); returns the chunk's length then.

        What lies between the old length and `offset` reads as zeros. If `receive` raises, the length stays; bytes that were
        overwritten may hold the old or the new. Raises ENOSPC when no buffer becomes free in time, and EBADMSG if the chunk is
        bad and this does not write all of it.
        """
        chunk = self.chunks.get(chunk_id)
        if chunk is None:
            chunk = self.chunks[chunk_id] = Chunk()
        end = offset + length
        async with chunk.locked():
            if chunk.pack is not None and self._is_small(chunk, end, length):
                return await self._write_patch(chunk_id, chunk, offset, length, receive)
            buffer = await self._buffer_for(chunk_id, chunk, end, length)
            if chunk.bad and (offset or end < chunk.length):
                self.close(chunk_id, chunk)
                raise bad(chunk_id)
            if offset > chunk.length:
                buffer.view[chunk.length : offset] = bytes(offset - chunk.length)
            chunk.writers += 1
            buffer.pins += 1  # if the chunk is dropped meanwhile, nobody else may get the buffer yet
            try:
                await receive(buffer.view[offset:end])
                chunk.bad = False
            finally:
                chunk.writers -= 1
                chunk.version += 1
                chunk.written_s = self.clock()
                self.pool.unpin(buffer)
                if chunk.dropped or chunk.bad:
                    self.close(chunk_id, chunk)
            if chunk.dropped:
                return 0
            self.used_bytes += max(0, end - chunk.length)
            chunk.length = max(chunk.length, end)
            return chunk.length

    @staticmethod
    def _is_small(chunk: Chunk, end: int, length: int) -> bool:
        """True if a write to a sealed chunk is to go beside it: it does not grow it, and is little of it."""
        return 0 < length <= PATCHING_MAX_BYTES and end <= chunk.length and chunk.length > PATCHED_MIN_BYTES

    async def _write_patch(
        self, chunk_id: ChunkId, chunk: Chunk, offset: int, length: int, receive: Callable[[memoryview], Any]
    ) -> int:
        """As `write`, beside the sealed bytes, which are verified if they were not lately. The lock is held.

        What is received becomes part of the chunk at once, when it is all there. The chunk may be sealed meanwhile.
        """
        if chunk.patch is None and self._is_to_verify(chunk):
            await self._verify(chunk_id, chunk)
        chunk.written_s = self.clock()
        content = memoryview(allocate(length))
        try:
            await self._make_room(chunk_id, chunk, offset, length)
            await receive(content)
            await self._make_room(chunk_id, chunk, offset, length)  # sealing may have taken it
            if chunk.dropped:
                return 0
            assert chunk.patch is not None
            assert chunk.view is not None
            chunk.patch.write(offset, content, chunk.view)
        finally:
            chunk.written_s = self.clock()
            self.drop_patch_if_empty(chunk_id, chunk)
        return chunk.length

    async def _make_room(self, chunk_id: ChunkId, chunk: Chunk, offset: int, length: int) -> None:
        """Have memory for a patch of those bytes, unless the chunk was dropped. Raises ENOSPC and EBADMSG as `write`."""
        while chunk.pack is not None and (size := (chunk.patch or Patch()).shortage_bytes(offset, length)):
            slab = await self._sealer.lend(self.pool.size_for(size, 0))
            if chunk.pack is None:
                self.pool.give_back(slab)
            else:
                self.add_slab(chunk_id, chunk, slab)
        if chunk.bad:
            raise bad(chunk_id)

    async def truncate(self, chunk_id: ChunkId, length: int) -> None:
        """Cut the chunk to at most `length` bytes; what is cut reads as zeros if the chunk grows again."""
        chunk = self.chunks.get(chunk_id)
        if chunk is None or chunk.length <= length:
            return
        async with chunk.locked():
            if chunk.pack is not None and length:
                await self._buffer_for(chunk_id, chunk, length, 0)
            if chunk.dropped:  # perhaps while it waited for a buffer
                self.close(chunk_id, chunk)
                return
            self.unseal(chunk_id, chunk)
            if chunk.bad:
                self.close(chunk_id, chunk)
            self.used_bytes -= max(0, chunk.length - length)
            chunk.length = min(chunk.length, length)
            chunk.bad = chunk.bad and chunk.length > 0
            chunk.version += 1

    def drop(self, chunk_id: ChunkId) -> None:
        """Forget the chunk and free its memory; one that is not there is no error."""
        chunk = self.chunks.pop(chunk_id, None)
        if chunk is None:
            return
        chunk.dropped = True
        self.used_bytes -= chunk.length
        chunk.version += 1
        self.close(chunk_id, chunk)
        self.unseal(chunk_id, chunk)

    async def _buffer_for(self, chunk_id: ChunkId, chunk: Chunk, length: int, piece_bytes: int) -> Buffer:
        """The chunk's buffer, made large enough for `length`; a sealed chunk is opened by a copy. The lock is held.

        The source of that copy is verified. If the chunk is bad, the buffer's content is undefined.
        """
        if chunk.buffer is not None and len(chunk.buffer) >= length:
            return chunk.buffer
        buffer = await self._sealer.lend(self.pool.size_for(max(length, chunk.length), piece_bytes))
        try:
            await self._verify(chunk_id, chunk)
        except BaseException:
            self.pool.give_back(buffer)
            raise
        start = 0
        for piece in chunk.pieces(0, chunk.length):
            buffer.view[start : start + len(piece)] = piece
            start += len(piece)
        self.close(chunk_id, chunk)
        self.unseal(chunk_id, chunk)
        chunk.buffer = buffer
        if not chunk.dropped:
            self.opened[chunk_id] = chunk
        return buffer

    # -- sealing -----------------------------------------------------------------------------------------------------

    async def seal(self, chunk_id: ChunkId) -> bool:
        """Turn the chunk into an object, if nobody writes to it meanwhile; True when it is sealed afterwards."""
        await self.seal_together([chunk_id])
        return self.is_sealed(chunk_id)

    async def seal_together(self, chunk_ids: Iterable[ChunkId]) -> bool:
        """Seal the chunks that are open and that nobody writes to meanwhile; the small ones share objects.

        False if there was no room for one of them.
        """
        return await self._sealer.seal_together(chunk_ids)

    async def seal_alone(self, chunk_id: ChunkId) -> bool:
        """As `seal`, but the chunk's object holds nothing else; one that shares an object is copied into its own."""
        return await self._sealer.seal_alone(chunk_id)

    async def ref(self, chunk_id: ChunkId) -> Any:
        """Seal the chunk in an object of its own and give that one's ref.

        Raises ENOENT, EBUSY while it is being written, and EBADMSG if it is bad.
        """
        if (found := self.chunks.get(chunk_id)) is None:
            raise FilesystemError(errno.ENOENT, f"chunk {chunk_id} is not here")
        if not await self.seal_alone(chunk_id):
            if found.bad:
                raise bad(chunk_id)
            raise FilesystemError(errno.EBUSY, f"chunk {chunk_id} is being written")
        chunk = self.chunks.get(chunk_id)
        return chunk.ref if chunk else None

    async def repack(self) -> None:
        """Move chunks out of packs that are mostly waste, or too small to be worth an object, so that those can go."""
        await self._sealer.repack()

    # -- verifying ---------------------------------------------------------------------------------------------------

    async def verify(self, chunk_id: ChunkId) -> State:
        """Whether the chunk's sealed bytes fit their checksum; "open" if they do and others lie over them.

        A chunk that is bad stays so until it is dropped or written anew.
        """
        await trio.lowlevel.checkpoint()
        chunk = self.chunks.get(chunk_id)
        state = "missing" if chunk is None else await self._verify(chunk_id, chunk)
        return "open" if state == "good" and not self.is_sealed(chunk_id) else state

    def _is_to_verify(self, chunk: Chunk) -> bool:
        return self.clock() - chunk.verified_s > VERIFIED_S

    async def _verify(self, chunk_id: ChunkId, chunk: Chunk) -> State:
        while (pack := chunk.pack) is not None:
            assert chunk.view is not None
            checksum = await self.hash(chunk.view)
            if chunk.pack is not pack:
                continue  # it was opened or moved meanwhile
            if checksum == chunk.checksum:
                chunk.verified_s = self.clock()
                return "good"
            self.find_bad(chunk_id, chunk)
        return "missing" if chunk.dropped else "bad" if chunk.bad else "open"

    async def hash(self, content: memoryview) -> int:
        """The checksum of those bytes, which must not change."""
        if len(content) <= HASHED_AT_ONCE_BYTES:
            return xxhash.xxh3_64_intdigest(content)
        return await trio.to_thread.run_sync(xxhash.xxh3_64_intdigest, content, limiter=self._hashers)
