"""Sealing: chunks are copied into objects, when they have been quiet, when memory is short, or on request."""

from __future__ import annotations

import errno
import logging
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import trio
import xxhash

from gridfs.chunk.chunk import Chunk, Member
from gridfs.chunk.inventory import QUIET_S, Inventory
from gridfs.chunk.objects import Objects
from gridfs.chunk.packs import PACK_MAX_BYTES, PACK_MAX_CHUNKS, SMALL_MAX_BYTES, Pack
from gridfs.chunk.pool import Buffer
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId

log = logging.getLogger(__name__)

POOL_WAIT_S = 20.0
"""Shorter than a client's patience with a reply (30 s): it hears ENOSPC rather than lose the connection."""


class Sealer:
    """Makes packs of an inventory's chunks, one at a time, and without the chunks' locks.

    A chunk that was changed meanwhile stays what it is, and its part of the pack is void.
    """

    def __init__(self, inventory: Inventory, objects: Objects) -> None:
        self._inventory, self._objects = inventory, objects
        self._packing = trio.Lock()
        """Held while a pack is made."""

    async def lend(self, size: int) -> Buffer:
        """A buffer from the pool, without yielding if it has one; while it is short, chunks are sealed.

        Raises ENOSPC when none becomes free in time.
        """
        if (buffer := self._inventory.pool.lend(size)) is not None:
            return buffer  # a time limit would take longer than all else in a small write
        with trio.move_on_after(POOL_WAIT_S):
            while True:
                if (buffer := self._inventory.pool.lend(size)) is not None:
                    return buffer
                async with self._packing:
                    if (buffer := self._inventory.pool.lend(size)) is not None:
                        return buffer
                    if await self._seal_in_pack(self._for_memory()):
                        continue
                self._inventory.freed = trio.Event()
                with trio.move_on_after(0.1):
                    await self._inventory.freed.wait()
        raise FilesystemError(errno.ENOSPC, "no memory for another open chunk")

    def _for_memory(self) -> list[Member]:
        """Chunks to seal so that buffers come back: of patches or of whole chunks, whichever take more."""
        patched = [(chunk.patch.size_bytes, chunk_id) for chunk_id, chunk in self._inventory.opened.items() if chunk.patch]
        patched_bytes = sum(size_bytes for size_bytes, _ in patched)
        members = self._opened_longest_ago() if patched_bytes <= self._inventory.pool.lent_bytes // 2 else []
        return members or self._next_pack(deque([max(patched)[1]] if patched else []))

    def _opened_longest_ago(self) -> list[Member]:
        """Chunks with buffers to seal: one pack of them, and no more than half of what is lent."""
        pending, lent_bytes = deque[ChunkId](), 0
        for chunk_id, chunk in self._inventory.opened.items():
            if chunk.buffer is None or not chunk.length or chunk.writers or (pending and chunk.length > SMALL_MAX_BYTES):
                continue
            lent_bytes += len(chunk.buffer)
            if pending and (lent_bytes > self._inventory.pool.lent_bytes // 2 or len(pending) == PACK_MAX_CHUNKS):
                break
            pending.append(chunk_id)
            if chunk.length > SMALL_MAX_BYTES:
                break
        return self._next_pack(pending)

    async def seal_together(self, chunk_ids: Iterable[ChunkId]) -> bool:
        """Seal the chunks that are open and that nobody writes to meanwhile; the small ones share objects.

        False if there was no room for one of them.
        """
        return await self._pack_up(chunk_ids, lambda chunk: not chunk.is_sealed)

    async def seal_alone(self, chunk_id: ChunkId) -> bool:
        """As `seal`, but the chunk's object holds nothing else; one that shares an object is copied into its own."""
        async with self._packing:
            member = self._member(chunk_id)
            if member is not None and (not member.chunk.is_sealed or (member.pack is not None and member.pack.is_shared)):
                await self._seal_in_pack([member])
        chunk = self._inventory.chunks.get(chunk_id)
        return chunk is not None and chunk.is_sealed and chunk.pack is not None and not chunk.pack.is_shared

    async def repack(self) -> None:
        """Move chunks out of packs that are mostly waste, or too small to be worth an object, so that those can go."""
        chosen = self._inventory.packs.to_repack()
        chunk_ids = [chunk_id for pack in chosen for chunk_id in pack.chunk_ids]
        sources = set(chosen)
        await self._pack_up(chunk_ids, lambda chunk: chunk.pack in sources)

    async def _pack_up(self, chunk_ids: Iterable[ChunkId], is_wanted: Callable[[Chunk], bool]) -> bool:
        """Copy the chunks that are wanted, also when it is their turn, into as few packs as they fit in.

        When the object store is full the rest stays where it is: False.
        """

        def length(chunk_id: ChunkId) -> int:
            chunk = self._inventory.chunks.get(chunk_id)
            return chunk.length if chunk is not None and is_wanted(chunk) else 0

        small_first = sorted(filter(length, chunk_ids), key=lambda chunk_id: length(chunk_id) > SMALL_MAX_BYTES)
        pending = deque(small_first)
        while pending:
            async with self._packing:
                members = [member for member in self._next_pack(pending) if is_wanted(member.chunk)]
                if members and not await self._seal_in_pack(members):
                    return False
        return True

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
        chunk = self._inventory.chunks.get(chunk_id)
        if chunk is None or not chunk.length or chunk.writers or chunk.bad:
            return None
        return Member(chunk_id, chunk, chunk.version, chunk.buffer, chunk.pack, chunk.patch)

    async def _seal_in_pack(self, members: list[Member]) -> bool:
        """Copy chunks into one object, and seal in it those that did not change meanwhile. `_packing` is held.

        False, and nothing done, if there are no chunks, or no room for the object.
        """
        if not members:
            return False
        try:
            with self._kept(members):
                copies, (ref, view) = await trio.to_thread.run_sync(self._put, [_Source.of(member) for member in members])
                pack, start = Pack(ref, view, tuple(member.chunk_id for member in members)), 0
                for member, copy in zip(members, copies, strict=True):
                    self._enter(member, pack, start, copy)
                    start += copy.length
            return True
        except MemoryError as error:
            log.warning("chunk %d/%d and %d others stay as they are: %s", *members[0].chunk_id, len(members) - 1, error)
            return False

    @contextmanager
    def _kept(self, members: list[Member]) -> Iterator[None]:
        """Keep the memory of open chunks for the context: buffers are not recycled, and patches do not change."""
        pinned = [member.buffer for member in members if member.buffer is not None]
        for buffer in pinned:
            buffer.pins += 1
        for member in members:
            if member.patch is not None:
                self._inventory.freeze(member.chunk)
        try:
            yield
        finally:
            for buffer in pinned:
                self._inventory.pool.unpin(buffer)
            tried_s = self._inventory.clock() - QUIET_S / 2  # a failure is not tried again at once
            for member in members:
                if member.patch is not None:
                    self._inventory.thaw(member.chunk, member.patch)
                if member.patch is not None or member.buffer is not None:
                    member.chunk.written_s = max(member.chunk.written_s, tried_s)

    def _enter(self, member: Member, pack: Pack, start: int, copy: _Copy) -> None:
        """Have the chunk in the pack, unless it was changed meanwhile, or sealed bytes that were copied were not good."""
        chunk = member.chunk
        if not member.is_unchanged:
            return
        if member.pack is not None and copy.sealed_checksum != chunk.checksum:
            self._inventory.find_bad(member.chunk_id, chunk)
            return
        self._inventory.close(member.chunk_id, chunk)
        self._inventory.leave_pack(chunk)
        chunk.pack, chunk.start, chunk.checksum, chunk.verified_s = pack, start, copy.checksum, -math.inf
        self._inventory.packs.enter(pack, chunk.length)
        self._inventory.take_over(member.chunk_id, chunk)

    def _put(self, sources: list[_Source]) -> tuple[list[_Copy], tuple[Any, memoryview]]:
        """In a worker thread: xxhash and the object store let go of the interpreter while they read the bytes."""
        pieces = [piece for source in sources for piece in source.pieces]
        joined = pieces[0] if len(pieces) == 1 else memoryview(b"".join(pieces))
        copies, start = [], 0
        for source in sources:
            length = sum(map(len, source.pieces))
            checksum = xxhash.xxh3_64_intdigest(joined[start : start + length])
            sealed_checksum = checksum if source.patched is None else xxhash.xxh3_64_intdigest(source.patched)
            copies.append(_Copy(length, checksum, sealed_checksum))
            start += length
        return copies, self._objects.put(joined)


class _Source(NamedTuple):
    """The bytes of a chunk that is to be copied, in order, and the sealed ones of a patched chunk."""

    pieces: list[memoryview]
    patched: memoryview | None

    @staticmethod
    def of(member: Member) -> _Source:
        chunk = member.chunk
        return _Source(chunk.pieces(0, chunk.length), chunk.view if member.patch is not None else None)


class _Copy(NamedTuple):
    """A chunk as it was copied. `sealed_checksum` is that of the bytes that were sealed before, if there were any."""

    length: int
    checksum: int
    sealed_checksum: int
