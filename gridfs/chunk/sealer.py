"""Sealing: chunks are copied into objects, when they have been quiet, when memory is short, or on request."""

from __future__ import annotations

import errno
import logging
import math
from collections import deque
from collections.abc import Iterable
from typing import Any

import trio
import xxhash

from gridfs.chunk.chunk import Member
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
        """A buffer from the pool; while it is short, the chunks opened longest ago are sealed."""
        with trio.move_on_after(POOL_WAIT_S):
            while True:
                if (buffer := self._inventory.pool.lend(size)) is not None:
                    return buffer
                async with self._packing:
                    if (buffer := self._inventory.pool.lend(size)) is not None:
                        return buffer
                    if await self._seal_in_pack(self._opened_longest_ago()):
                        continue
                self._inventory.freed = trio.Event()
                with trio.move_on_after(0.1):
                    await self._inventory.freed.wait()
        raise FilesystemError(errno.ENOSPC, "no memory for another open chunk")

    def _opened_longest_ago(self) -> list[Member]:
        """Chunks to seal so that buffers come back: one pack of them, and no more than half of what is lent."""
        pending, lent_bytes = deque[ChunkId](), 0
        for chunk_id, chunk in self._inventory.opened.items():
            if not chunk.length or chunk.writers or (pending and chunk.length > SMALL_MAX_BYTES):
                continue
            lent_bytes += len(chunk.buffer or b"")
            if pending and (lent_bytes > self._inventory.pool.lent_bytes // 2 or len(pending) == PACK_MAX_CHUNKS):
                break
            pending.append(chunk_id)
            if chunk.length > SMALL_MAX_BYTES:
                break
        return self._next_pack(pending)

    async def seal_together(self, chunk_ids: Iterable[ChunkId]) -> None:
        """Seal the chunks that are open and that nobody writes to meanwhile; the small ones share objects."""
        await self._pack_up([chunk_id for chunk_id in chunk_ids if not self._inventory.is_sealed(chunk_id)])

    async def seal_alone(self, chunk_id: ChunkId) -> bool:
        """As `seal`, but the chunk's object holds nothing else; one that shares an object is copied into its own."""
        async with self._packing:
            member = self._member(chunk_id)
            if member is not None and (member.pack is None or member.pack.is_shared):
                await self._seal_in_pack([member])
        chunk = self._inventory.chunks.get(chunk_id)
        return chunk is not None and chunk.pack is not None and not chunk.pack.is_shared

    async def repack(self) -> None:
        """Move chunks out of packs that are mostly waste, or too small to be worth an object, so that those can go."""
        chosen = self._inventory.packs.to_repack()
        await self._pack_up([chunk_id for pack in chosen for chunk_id in pack.chunk_ids], chosen)

    async def _pack_up(self, chunk_ids: list[ChunkId], sources: Iterable[Pack] = ()) -> None:
        """Copy the chunks that are in one of `sources`, or else those that are open, into as few packs as they fit in.

        When the object store is full the rest stays where it is.
        """
        wanted: set[Pack | None] = set(sources) or {None}

        def length(chunk_id: ChunkId) -> int:
            chunk = self._inventory.chunks.get(chunk_id)
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
        chunk = self._inventory.chunks.get(chunk_id)
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
                self._inventory.pool.unpin(buffer)
            tried_s = self._inventory.clock() - QUIET_S / 2  # a failure is not tried again at once
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
            self._inventory.find_bad(member.chunk_id, chunk)
            return
        self._inventory.close(member.chunk_id, chunk)
        self._inventory.unseal(chunk)
        chunk.pack, chunk.start, chunk.checksum, chunk.verified_s = pack, start, checksum, -math.inf
        self._inventory.packs.enter(pack, chunk.length)

    def _put(self, contents: list[memoryview]) -> tuple[list[tuple[int, int]], tuple[Any, memoryview]]:
        """In a worker thread: join, xxhash and the object store let go of the interpreter while they read the bytes."""
        joined = contents[0] if len(contents) == 1 else memoryview(b"".join(contents))
        checksums, start = [], 0
        for length in map(len, contents):
            checksums.append((xxhash.xxh3_64_intdigest(joined[start : start + length]), length))
            start += length
        return checksums, self._objects.put(joined)
