"""The chunks of one server: their bytes, open or sealed, and the space they take."""

from __future__ import annotations

import errno
import logging
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import xxhash

from gridfs.chunk.objects import Objects
from gridfs.chunk.pool import Buffer, BufferPool
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId

log = logging.getLogger(__name__)

QUIET_S = 1.0
"""A chunk that has not been written for this long is sealed."""
POOL_WAIT_S = 20.0
"""Shorter than a client's patience with a reply (30 s): it hears ENOSPC rather than lose the connection."""


class Chunk:
    """One chunk. Open: `buffer` holds its bytes [0, length). Sealed: `view` does, the memory of the object behind `ref`.

    `version` counts the writes; `writers` are receiving into the buffer just now, so it must stay where it is.
    """

    __slots__ = (
        *("buffer", "checksum", "dropped", "length", "lock", "ref"),
        *("sealing", "version", "view", "writers", "written_s"),
    )

    def __init__(self) -> None:
        self.length = 0
        self.buffer: Buffer | None = None
        self.ref: Any = None
        self.view: memoryview | None = None
        self.checksum = 0
        """xxh3 of the bytes, while sealed."""
        self.version = 0
        self.writers = 0
        self.written_s = 0.0
        self.sealing = False
        self.dropped = False
        self.lock: trio.Lock | None = None


class Chunks:
    """All chunks of a server.

    Owned by one trio thread. Between awaits: `used_bytes` is the sum of lengths of the chunks in `_chunks`, and every chunk has
    a buffer or a view (neither while its length is 0). A chunk's lock guards its growth and its change from sealed to open,
    which may wait for the pool; sealing takes no lock, and gives up when the chunk was written to meanwhile.
    """

    def __init__(self, objects: Objects, pool: BufferPool, clock: Callable[[], float] = trio.current_time) -> None:
        self._objects, self._pool, self._clock = objects, pool, clock
        self._chunks: dict[ChunkId, Chunk] = {}
        self._open: dict[ChunkId, Chunk] = {}
        """Chunks with a buffer, the one opened longest ago first."""
        self._freed = trio.Event()
        self._sealers = trio.CapacityLimiter(1)
        self.used_bytes = self.sealed_bytes = self.sealed_peak_bytes = 0

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def open_count(self) -> int:
        """How many chunks have a buffer."""
        return len(self._open)

    @property
    def retained_bytes(self) -> int:
        """Memory that the object store once took for sealed chunks and keeps for the next ones: it never gives any back."""
        return self.sealed_peak_bytes - self.sealed_bytes

    def inventory(self) -> Iterator[tuple[int, int, int]]:
        """(ino, index, length) of every chunk there is now."""
        return iter([(*chunk_id, chunk.length) for chunk_id, chunk in self._chunks.items()])

    def find(self, chunk_id: ChunkId) -> Chunk | None:
        """The chunk, if it has ever been written here."""
        return self._chunks.get(chunk_id)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, chunk_id: ChunkId, offset: int, length: int) -> tuple[memoryview, Callable[[], None] | None]:
        """The bytes there are of [offset, offset + length), without a copy, and what to call once they have been sent."""
        chunk = self._chunks.get(chunk_id)
        if chunk is None or chunk.length <= offset:
            return memoryview(b""), None
        end = min(offset + length, chunk.length)
        if chunk.buffer is None:
            assert chunk.view is not None
            return chunk.view[offset:end], None
        buffer = chunk.buffer
        buffer.pins += 1
        return buffer.view[offset:end], lambda: self._pool.unpin(buffer)

    def pin(self, chunk_id: ChunkId) -> Callable[[], None]:
        """Keep the memory of an open chunk as it is lent now until what is returned has been called."""
        chunk = self._chunks.get(chunk_id)
        buffer = chunk.buffer if chunk is not None else None
        if buffer is None:
            return lambda: None
        buffer.pins += 1
        return lambda: self._pool.unpin(buffer)

    @asynccontextmanager
    async def held(self, chunk_id: ChunkId) -> AsyncIterator[Chunk]:
        """Keep writes and truncations of the chunk away for as long as the context lasts. Raises ENOENT."""
        chunk = self._chunks.get(chunk_id)
        if chunk is not None:
            chunk.lock = chunk.lock or trio.Lock()
            async with chunk.lock:
                if not chunk.dropped:
                    yield chunk
                    return
        raise FilesystemError(errno.ENOENT, f"chunk {chunk_id} is not here")

    def growth(self, chunk_id: ChunkId, end: int) -> int:
        """By how many bytes a write up to `end` makes the chunk longer."""
        chunk = self._chunks.get(chunk_id)
        return max(0, end - (chunk.length if chunk else 0))

    async def write(self, chunk_id: ChunkId, offset: int, length: int, receive: Callable[[memoryview], Any]) -> int:
        """Let `receive` fill bytes [offset, offset + length); returns the chunk's length then.

        What lies between the old length and `offset` reads as zeros. If `receive` raises, the length stays; bytes that were
        overwritten may hold the old or the new. Raises ENOSPC when no buffer becomes free in time.
        """
        chunk = self._chunks.setdefault(chunk_id, Chunk())
        end = offset + length
        chunk.lock = chunk.lock or trio.Lock()
        async with chunk.lock:
            buffer = await self._buffer_for(chunk_id, chunk, end, length)
            if offset > chunk.length:
                buffer.view[chunk.length : offset] = bytes(offset - chunk.length)
            chunk.writers += 1
            buffer.pins += 1  # if the chunk is dropped meanwhile, nobody else may get the buffer yet
            try:
                await receive(buffer.view[offset:end])
            finally:
                chunk.writers -= 1
                chunk.version += 1
                chunk.written_s = self._clock()
                self._pool.unpin(buffer)
                if chunk.dropped:
                    self._close(chunk_id, chunk)
            if chunk.dropped:
                return 0
            self.used_bytes += max(0, end - chunk.length)
            chunk.length = max(chunk.length, end)
            return chunk.length

    async def truncate(self, chunk_id: ChunkId, length: int) -> None:
        """Cut the chunk to at most `length` bytes; what is cut reads as zeros if the chunk grows again."""
        chunk = self._chunks.get(chunk_id)
        if chunk is None or chunk.length <= length:
            return
        chunk.lock = chunk.lock or trio.Lock()
        async with chunk.lock:
            if chunk.dropped:
                return
            if chunk.buffer is None and length:
                await self._buffer_for(chunk_id, chunk, length, 0)
            elif chunk.buffer is None:
                self._unseal(chunk)
            if chunk.dropped:  # while it waited for a buffer
                self._close(chunk_id, chunk)
                return
            self.used_bytes -= max(0, chunk.length - length)
            chunk.length = min(chunk.length, length)
            chunk.version += 1

    def drop(self, chunk_id: ChunkId) -> None:
        """Forget the chunk and free its memory; one that is not there is no error."""
        chunk = self._chunks.pop(chunk_id, None)
        if chunk is None:
            return
        chunk.dropped = True
        self.used_bytes -= chunk.length
        chunk.version += 1
        self._close(chunk_id, chunk)
        self._unseal(chunk)

    async def _buffer_for(self, chunk_id: ChunkId, chunk: Chunk, length: int, piece_bytes: int) -> Buffer:
        """The chunk's buffer, made large enough for `length`; a sealed chunk is opened by a copy. The lock is held."""
        size = self._pool.size_for(max(length, chunk.length), piece_bytes)
        if chunk.buffer is not None and len(chunk.buffer) >= length:
            return chunk.buffer
        buffer = await self._lend(size)
        old = chunk.buffer.view if chunk.buffer is not None else chunk.view
        if old is not None:
            buffer.view[: chunk.length] = old[: chunk.length]
        self._close(chunk_id, chunk)
        self._unseal(chunk)
        chunk.buffer = buffer
        if not chunk.dropped:
            self._open[chunk_id] = chunk
        return buffer

    async def _lend(self, size: int) -> Buffer:
        """A buffer from the pool; while it is short, the chunks opened longest ago are sealed."""
        with trio.move_on_after(POOL_WAIT_S):
            while (buffer := self._pool.lend(size)) is None:
                oldest = next((i for i, c in self._open.items() if not c.writers and not c.sealing), None)
                if oldest is None or not await self.seal(oldest):
                    self._freed = trio.Event()
                    with trio.move_on_after(0.1):
                        await self._freed.wait()
            return buffer
        raise FilesystemError(errno.ENOSPC, "no memory for another open chunk")

    # -- sealing -----------------------------------------------------------------------------------------------------

    async def seal(self, chunk_id: ChunkId) -> bool:
        """Turn the chunk into an object, if nobody writes to it meanwhile; True when it is sealed afterwards."""
        chunk = self._chunks.get(chunk_id)
        if chunk is None or chunk.buffer is None or chunk.writers or chunk.sealing or not chunk.length:
            return chunk is not None and chunk.buffer is None
        version, buffer, content = chunk.version, chunk.buffer, chunk.buffer.view[: chunk.length]
        chunk.sealing = True
        buffer.pins += 1
        try:
            checksum, (ref, view) = await trio.to_thread.run_sync(self._put, content, limiter=self._sealers)
        except MemoryError as error:
            log.warning("chunk %d/%d stays open: %s", *chunk_id, error)
            return False
        finally:
            chunk.written_s = max(chunk.written_s, self._clock() - QUIET_S / 2)  # a failure is not tried again at once
            chunk.sealing = False
            self._pool.unpin(buffer)
        if chunk.version != version or chunk.writers:
            return False
        self._close(chunk_id, chunk)
        chunk.checksum, chunk.ref, chunk.view = checksum, ref, view
        self.sealed_bytes += chunk.length
        self.sealed_peak_bytes = max(self.sealed_peak_bytes, self.sealed_bytes)
        return True

    def _put(self, content: memoryview) -> tuple[int, tuple[Any, memoryview]]:
        """In a worker thread: xxhash and the object store let go of the interpreter while they read the bytes."""
        return xxhash.xxh3_64_intdigest(content), self._objects.put(content)

    def quiet(self) -> list[ChunkId]:
        """The open chunks that have not been written for QUIET_S: they may as well be sealed."""
        quiet_since_s = self._clock() - QUIET_S
        return [chunk_id for chunk_id, chunk in self._open.items() if chunk.written_s <= quiet_since_s]

    def is_untouched(self, chunk_id: ChunkId, since_s: float) -> bool:
        """True if the chunk has not been written after `since_s`, and nobody is about to; also if it is not here."""
        chunk = self._chunks.get(chunk_id)
        if chunk is None:
            return True
        return not chunk.writers and not (chunk.lock and chunk.lock.locked()) and chunk.written_s < since_s

    def is_full(self, chunk_id: ChunkId) -> bool:
        """True when the chunk cannot grow any more, so that it may as well be sealed at once."""
        chunk = self._chunks.get(chunk_id)
        return chunk is not None and chunk.length == CHUNK_SIZE_BYTES

    def _close(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """Give the chunk's buffer back, if it has one."""
        if chunk.buffer is not None:
            self._pool.give_back(chunk.buffer)
            chunk.buffer = None
            if self._open.get(chunk_id) is chunk:
                del self._open[chunk_id]
            self._freed.set()

    def _unseal(self, chunk: Chunk) -> None:
        """Let go of the chunk's object, if it has one."""
        if chunk.ref is not None:
            self.sealed_bytes -= len(chunk.view or b"")
            chunk.ref = chunk.view = None

    def check(self) -> list[str]:
        """The invariants that do not hold, one sentence each."""
        faults = []
        total = sum(chunk.length for chunk in self._chunks.values())
        if total != self.used_bytes:
            faults.append(f"used_bytes is {self.used_bytes}, the chunks' lengths make {total}")
        for chunk_id, chunk in self._chunks.items():
            if chunk.length and (chunk.buffer is None) == (chunk.view is None):
                faults.append(f"chunk {chunk_id} must have a buffer or a view")
            if (chunk.buffer is not None) != (chunk_id in self._open):
                faults.append(f"chunk {chunk_id} is not rightly listed as open")
        return faults
