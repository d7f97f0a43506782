"""The chunks of one server: their bytes, open or sealed, and the space they take."""

from __future__ import annotations

import errno
import logging
import math
from collections import deque
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import trio
import xxhash

from gridfs.chunk.chunk import Chunk, Member, State, bad
from gridfs.chunk.objects import Objects
from gridfs.chunk.packs import PACK_MAX_BYTES, PACK_MAX_CHUNKS, SMALL_MAX_BYTES, Pack, Packs
from gridfs.chunk.pool import Buffer, BufferPool
from gridfs.config import CHUNK_SIZE_BYTES, KIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId

log = logging.getLogger(__name__)

QUIET_S = 1.0
"""A chunk that has not been written for this long is sealed."""
POOL_WAIT_S = 20.0
"""Shorter than a client's patience with a reply (30 s): it hears ENOSPC rather than lose the connection."""
VERIFIED_S = 60.0
"""So long a sealed chunk is taken to be as it was when it was last verified."""
LARGE_READ_BYTES = 128 * KIB
"""A read of more than this is worth verifying the chunk for."""
HASHED_AT_ONCE_BYTES = 128 * KIB
"""Hashing this much takes less time than handing it to another thread."""


class Chunks:
    """All chunks of a server.

    Owned by one trio thread. Between awaits: `used_bytes` is the sum of lengths of the chunks in `_chunks`, and every chunk has
    a buffer or a pack (neither while its length is 0, or when it is bad). A chunk's lock guards its growth and its change from
    sealed to open, which may wait for the pool. Packs are made one at a time, without those locks: a chunk that was written to
    meanwhile stays what it is, and its part of the pack is void.
    """

    def __init__(self, objects: Objects, pool: BufferPool, clock: Callable[[], float] = trio.current_time) -> None:
        self._objects, self._pool, self._clock = objects, pool, clock
        self._chunks: dict[ChunkId, Chunk] = {}
        self._open: dict[ChunkId, Chunk] = {}
        """Chunks with a buffer, the one opened longest ago first."""
        self._freed = trio.Event()
        self._packing = trio.Lock()
        """Held while a pack is made."""
        self._hashers = trio.CapacityLimiter(2)
        self.packs = Packs()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self._chunks)

    @property
    def open_count(self) -> int:
        """How many chunks have a buffer."""
        return len(self._open)

    def inventory(self) -> Iterator[tuple[int, int, int]]:
        """(ino, index, length) of every chunk there is now."""
        return iter([(*chunk_id, chunk.length) for chunk_id, chunk in self._chunks.items()])

    def find(self, chunk_id: ChunkId) -> Chunk | None:
        """The chunk, if it has ever been written here."""
        return self._chunks.get(chunk_id)

    # -- reading and writing -----------------------------------------------------------------------------------------

    def read(self, chunk_id: ChunkId, offset: int, length: int) -> tuple[memoryview, Callable[[], None] | None]:
        """The bytes there are of [offset, offset + length), without a copy, and what to call once they have been sent.

        Raises EBADMSG if the chunk is known to be bad.
        """
        chunk = self._chunks.get(chunk_id)
        if chunk is None or chunk.length <= offset:
            return memoryview(b""), None
        if chunk.bad:
            raise bad(chunk_id)
        end = min(offset + length, chunk.length)
        if chunk.buffer is None:
            assert chunk.pack is not None
            return chunk.pack.view[chunk.start + offset : chunk.start + end], None
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
            async with chunk.locked():
                if not chunk.dropped:
                    yield chunk
                    return
        raise FilesystemError(errno.ENOENT, f"chunk {chunk_id} is not here")

    async def verified_read(self, chunk_id: ChunkId, offset: int, length: int) -> tuple[memoryview, Callable[[], None] | None]:
        """As `read`. Before a large read, or one of the whole chunk, a sealed chunk is verified if it was not lately."""
        chunk = self._chunks.get(chunk_id)
        if chunk is not None and chunk.pack is not None:
            much = length > LARGE_READ_BYTES or (offset == 0 and length >= chunk.length)
            if much and self._clock() - chunk.verified_s > VERIFIED_S:
                await self._verify(chunk_id, chunk)
        return self.read(chunk_id, offset, length)

    def growth(self, chunk_id: ChunkId, end: int) -> int:
        """By how many bytes a write up to `end` makes the chunk longer."""
        chunk = self._chunks.get(chunk_id)
        return max(0, end - (chunk.length if chunk else 0))

    async def write(self, chunk_id: ChunkId, offset: int, length: int, receive: Callable[[memoryview], Any]) -> int:
        """Let `receive` fill bytes [offset, offset + length); returns the chunk's length then.

        What lies between the old length and `offset` reads as zeros. If `receive` raises, the length stays; bytes that were
        overwritten may hold the old or the new. Raises ENOSPC when no buffer becomes free in time, and EBADMSG if the chunk is
        bad and this does not write all of it.
        """
        chunk = self._chunks.get(chunk_id)
        if chunk is None:
            chunk = self._chunks[chunk_id] = Chunk()
        end = offset + length
        async with chunk.locked():
            buffer = await self._buffer_for(chunk_id, chunk, end, length)
            if chunk.bad and (offset or end < chunk.length):
                self._close(chunk_id, chunk)
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
                chunk.written_s = self._clock()
                self._pool.unpin(buffer)
                if chunk.dropped or chunk.bad:
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
        async with chunk.locked():
            if chunk.pack is not None and length:
                await self._buffer_for(chunk_id, chunk, length, 0)
            if chunk.dropped:  # perhaps while it waited for a buffer
                self._close(chunk_id, chunk)
                return
            self._unseal(chunk)
            if chunk.bad:
                self._close(chunk_id, chunk)
            self.used_bytes -= max(0, chunk.length - length)
            chunk.length = min(chunk.length, length)
            chunk.bad = chunk.bad and chunk.length > 0
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
        """The chunk's buffer, made large enough for `length`; a sealed chunk is opened by a copy. The lock is held.

        The source of that copy is verified. If the chunk is bad, the buffer's content is undefined.
        """
        if chunk.buffer is not None and len(chunk.buffer) >= length:
            return chunk.buffer
        buffer = await self._lend(self._pool.size_for(max(length, chunk.length), piece_bytes))
        try:
            await self._verify(chunk_id, chunk)
        except BaseException:
            self._pool.give_back(buffer)
            raise
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
            while True:
                if (buffer := self._pool.lend(size)) is not None:
                    return buffer
                async with self._packing:
                    if (buffer := self._pool.lend(size)) is not None:
                        return buffer
                    if await self._seal_in_pack(self._opened_longest_ago()):
                        continue
                self._freed = trio.Event()
                with trio.move_on_after(0.1):
                    await self._freed.wait()
        raise FilesystemError(errno.ENOSPC, "no memory for another open chunk")

    def _opened_longest_ago(self) -> list[Member]:
        """Chunks to seal so that buffers come back: one pack of them, and no more than half of what is lent."""
        pending, lent_bytes = deque[ChunkId](), 0
        for chunk_id, chunk in self._open.items():
            if not chunk.length or chunk.writers or (pending and chunk.length > SMALL_MAX_BYTES):
                continue
            lent_bytes += len(chunk.buffer or b"")
            if pending and (lent_bytes > self._pool.lent_bytes // 2 or len(pending) == PACK_MAX_CHUNKS):
                break
            pending.append(chunk_id)
            if chunk.length > SMALL_MAX_BYTES:
                break
        return self._next_pack(pending)

    # -- sealing -----------------------------------------------------------------------------------------------------

    async def seal(self, chunk_id: ChunkId) -> bool:
        """Turn the chunk into an object, if nobody writes to it meanwhile; True when it is sealed afterwards."""
        await self.seal_together([chunk_id])
        return self.is_sealed(chunk_id)

    def is_sealed(self, chunk_id: ChunkId) -> bool:
        """True if the chunk is at rest in an object."""
        chunk = self._chunks.get(chunk_id)
        return chunk is not None and chunk.pack is not None

    async def seal_together(self, chunk_ids: Iterable[ChunkId]) -> None:
        """Seal the chunks that are open and that nobody writes to meanwhile; the small ones share objects."""
        await self._pack_up([chunk_id for chunk_id in chunk_ids if not self.is_sealed(chunk_id)])

    async def seal_alone(self, chunk_id: ChunkId) -> bool:
        """As `seal`, but the chunk's object holds nothing else; one that shares an object is copied into its own."""
        async with self._packing:
            member = self._member(chunk_id)
            if member is not None and (member.pack is None or member.pack.is_shared):
                await self._seal_in_pack([member])
        chunk = self._chunks.get(chunk_id)
        return chunk is not None and chunk.pack is not None and not chunk.pack.is_shared

    async def repack(self) -> None:
        """Move chunks out of packs that are mostly waste, or too small to be worth an object, so that those can go."""
        chosen = self.packs.to_repack()
        await self._pack_up([chunk_id for pack in chosen for chunk_id in pack.chunk_ids], chosen)

    async def _pack_up(self, chunk_ids: list[ChunkId], sources: Iterable[Pack] = ()) -> None:
        """Copy the chunks that are in one of `sources`, or else those that are open, into as few packs as they fit in.

        When the object store is full the rest stays where it is.
        """
        wanted: set[Pack | None] = set(sources) or {None}

        def length(chunk_id: ChunkId) -> int:
            chunk = self._chunks.get(chunk_id)
            return chunk.length if chunk is not None and chunk.pack in wanted else 0

        small_first = sorted(filter(length, chunk_ids), key=lambda chunk_id: length(chunk_id) > SMALL_MAX_BYTES)
        pending = deque(small_first)
        while pending:
            async with self._packing:
                members = [member for member in self._next_pack(pending) if member.pack in wanted]
                if members and not await self._seal_in_pack(members):
                    break

    def _next_pack(self, pending: deque[ChunkId]) -> list[Member]:
        """Take as many chunks from the left of `pending` as fit in one pack, passing over those that cannot be sealed."""
        members: list[Member] = []
        size_bytes = 0
        while pending and len(members) < PACK_MAX_CHUNKS:
            member = self._member(pending[0])
            if member is not None:
                length = member.chunk.length
                if members and (length > SMALL_MAX_BYTES or size_bytes + length > PACK_MAX_BYTES):
                    break
                members.append(member)
                size_bytes += length
            pending.popleft()
            if size_bytes > SMALL_MAX_BYTES and len(members) == 1:
                break
        return members

    def _member(self, chunk_id: ChunkId) -> Member | None:
        """The chunk as a pack may take it; None if it is not here, empty, bad, or being written."""
        chunk = self._chunks.get(chunk_id)
        if chunk is None or not chunk.length or chunk.writers or chunk.bad:
            return None
        return Member(chunk_id, chunk, chunk.version, chunk.buffer, chunk.pack)

    async def _seal_in_pack(self, members: list[Member]) -> bool:
        """Copy chunks into one object, and seal in it those that did not change meanwhile. `_packing` is held.

        False, and nothing done, if there are no chunks, or no room for the object.
        """
        if not members:
            return False
        pinned = [member.buffer for member in members if member.buffer is not None]
        for buffer in pinned:
            buffer.pins += 1
        try:
            checksums, (ref, view) = await trio.to_thread.run_sync(self._put, [member.content for member in members])
        except MemoryError as error:
            log.warning("chunk %d/%d and %d others stay as they are: %s", *members[0].chunk_id, len(members) - 1, error)
            return False
        finally:
            for buffer in pinned:
                self._pool.unpin(buffer)
            tried_s = self._clock() - QUIET_S / 2  # a failure is not tried again at once
            for member in members:
                if member.buffer is not None:
                    member.chunk.written_s = max(member.chunk.written_s, tried_s)
        pack, start = Pack(ref, view, tuple(member.chunk_id for member in members)), 0
        for member, (checksum, length) in zip(members, checksums, strict=True):
            self._enter(member, pack, start, checksum)
            start += length
        return True

    def _enter(self, member: Member, pack: Pack, start: int, checksum: int) -> None:
        """Have the chunk in the pack, unless it was changed meanwhile, or sealed bytes that were copied were not good."""
        chunk = member.chunk
        if not member.is_unchanged:
            return
        if member.pack is not None and checksum != chunk.checksum:
            self._find_bad(member.chunk_id, chunk)
            return
        self._close(member.chunk_id, chunk)
        self._unseal(chunk)
        chunk.pack, chunk.start, chunk.checksum, chunk.verified_s = pack, start, checksum, -math.inf
        self.packs.enter(pack, chunk.length)

    def _put(self, contents: list[memoryview]) -> tuple[list[tuple[int, int]], tuple[Any, memoryview]]:
        """In a worker thread: join, xxhash and the object store let go of the interpreter while they read the bytes."""
        joined = contents[0] if len(contents) == 1 else memoryview(b"".join(contents))
        checksums, start = [], 0
        for length in map(len, contents):
            checksums.append((xxhash.xxh3_64_intdigest(joined[start : start + length]), length))
            start += length
        return checksums, self._objects.put(joined)

    # -- verifying ---------------------------------------------------------------------------------------------------

    async def verify(self, chunk_id: ChunkId) -> State:
        """Whether the chunk's bytes fit their checksum. A chunk that is bad stays so until it is dropped or written anew."""
        await trio.lowlevel.checkpoint()
        chunk = self._chunks.get(chunk_id)
        return "missing" if chunk is None else await self._verify(chunk_id, chunk)

    async def _verify(self, chunk_id: ChunkId, chunk: Chunk) -> State:
        while (pack := chunk.pack) is not None:
            assert chunk.view is not None
            checksum = await self._hash(chunk.view)
            if chunk.pack is not pack:
                continue  # it was opened or moved meanwhile
            if checksum == chunk.checksum:
                chunk.verified_s = self._clock()
                return "good"
            self._find_bad(chunk_id, chunk)
        return "missing" if chunk.dropped else "bad" if chunk.bad else "open"

    async def _hash(self, content: memoryview) -> int:
        if len(content) <= HASHED_AT_ONCE_BYTES:
            return xxhash.xxh3_64_intdigest(content)
        return await trio.to_thread.run_sync(xxhash.xxh3_64_intdigest, content, limiter=self._hashers)

    def _find_bad(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """Nobody is to see these bytes: their memory is freed."""
        log.error("chunk %d/%d is bad: its bytes do not fit their checksum", *chunk_id)
        self._unseal(chunk)
        chunk.bad = True

    # -- state -------------------------------------------------------------------------------------------------------

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
        """Let go of the chunk's part of its pack, if it has one."""
        if chunk.pack is not None:
            self.packs.leave(chunk.pack, chunk.length)
            chunk.pack = None

    def check(self) -> list[str]:
        """The invariants that do not hold, one sentence each."""
        faults = []
        total = sum(chunk.length for chunk in self._chunks.values())
        if total != self.used_bytes:
            faults.append(f"used_bytes is {self.used_bytes}, the chunks' lengths make {total}")
        for chunk_id, chunk in self._chunks.items():
            holders = (chunk.buffer is not None) + (chunk.pack is not None)
            if chunk.bad and holders and not chunk.writers:
                faults.append(f"chunk {chunk_id} is bad and must have no bytes")
            if holders != 1 and not chunk.bad and chunk.length:
                faults.append(f"chunk {chunk_id} must have a buffer or a pack")
            if (chunk.buffer is not None) != (chunk_id in self._open):
                faults.append(f"chunk {chunk_id} is not rightly listed as open")
        sealed = {chunk_id: (chunk.pack, chunk.start, chunk.length) for chunk_id, chunk in self._chunks.items() if chunk.pack}
        return faults + self.packs.check(sealed)
