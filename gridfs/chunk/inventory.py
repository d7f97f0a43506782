"""Which chunks a server has, in which state each is, and the space they take."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator

import trio

from gridfs.chunk.chunk import Chunk
from gridfs.chunk.packs import Packs
from gridfs.chunk.patch import Patch
from gridfs.chunk.pool import Buffer, BufferPool
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.types import ChunkId

log = logging.getLogger(__name__)

QUIET_S = 5.0
"""A chunk that has not been written for this long is sealed. What lives only briefly is never copied, and what is read or
written right after is not disturbed by it."""
HASTY_QUIET_S = 1.0
"""The same while more than half of the pool is lent; not for a patched chunk, all of which is copied for a little."""


class Inventory:
    """The chunks, and their changes of state, none of which awaits.

    Between awaits: `used_bytes` is the sum of lengths of all chunks, and every chunk has a buffer or a pack (neither while its
    length is 0, or when it is bad); with the pack it may have a patch. Only this, `Chunks` and `Sealer`
    change `chunks` and `opened`.
    """

    def __init__(self, pool: BufferPool, clock: Callable[[], float] = trio.current_time) -> None:
        self.pool, self.clock = pool, clock
        self.chunks: dict[ChunkId, Chunk] = {}
        self.opened: dict[ChunkId, Chunk] = {}
        """Chunks with a buffer or a patch, the one opened longest ago first."""
        self.freed = trio.Event()
        """Set when a buffer is given back."""
        self.packs = Packs()
        self.used_bytes = 0

    def __len__(self) -> int:
        return len(self.chunks)

    @property
    def open_count(self) -> int:
        """How many chunks have a buffer or a patch."""
        return len(self.opened)

    def inventory(self) -> Iterator[tuple[int, int, int]]:
        """(ino, index, length) of every chunk there is now."""
        return iter([(*chunk_id, chunk.length) for chunk_id, chunk in self.chunks.items()])

    def find(self, chunk_id: ChunkId) -> Chunk | None:
        """The chunk, if it has ever been written here."""
        return self.chunks.get(chunk_id)

    def growth(self, chunk_id: ChunkId, end: int) -> int:
        """By how many bytes a write up to `end` makes the chunk longer."""
        chunk = self.chunks.get(chunk_id)
        return max(0, end - (chunk.length if chunk else 0))

    def is_sealed(self, chunk_id: ChunkId) -> bool:
        """True if all of the chunk is at rest in an object."""
        chunk = self.chunks.get(chunk_id)
        return chunk is not None and chunk.is_sealed

    def quiet(self) -> list[ChunkId]:
        """The open chunks that have not been written for QUIET_S, or HASTY_QUIET_S: they may as well be sealed."""
        now_s, is_hasty = self.clock(), self.pool.lent_bytes > self.pool.limit_bytes // 2

        def is_quiet(chunk: Chunk) -> bool:
            return chunk.written_s <= now_s - (HASTY_QUIET_S if is_hasty and chunk.patch is None else QUIET_S)

        return [chunk_id for chunk_id, chunk in self.opened.items() if is_quiet(chunk)]

    def is_untouched(self, chunk_id: ChunkId, since_s: float) -> bool:
        """True if the chunk has not been written after `since_s`, and nobody is about to; also if it is not here."""
        chunk = self.chunks.get(chunk_id)
        if chunk is None:
            return True
        return not chunk.writers and not (chunk.lock and chunk.lock.locked()) and chunk.written_s < since_s

    def is_full(self, chunk_id: ChunkId) -> bool:
        """True when the chunk is in a buffer and cannot grow any more, so that it may as well be sealed at once."""
        chunk = self.chunks.get(chunk_id)
        return chunk is not None and chunk.buffer is not None and chunk.length == CHUNK_SIZE_BYTES

    def close(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """Give the chunk's buffer back, if it has one."""
        if chunk.buffer is not None:
            self.pool.give_back(chunk.buffer)
            chunk.buffer = None
            self._is_not_open(chunk_id, chunk)
            self.freed.set()

    def add_slab(self, chunk_id: ChunkId, chunk: Chunk, slab: Buffer) -> None:
        """Have memory for a sealed chunk's patch, which it has from now on."""
        if chunk.patch is None:
            chunk.patch = Patch()
            self.opened[chunk_id] = chunk
        chunk.patch.add(slab)

    def freeze(self, chunk: Chunk) -> None:
        """Leave the chunk's patch as it is for now: further blocks lie over it."""
        chunk.patch = Patch(under=chunk.patch)

    def thaw(self, chunk: Chunk, patch: Patch) -> None:
        """Undo `freeze`, if the chunk still has what it froze."""
        if chunk.patch is not None and chunk.patch.under is patch:
            chunk.patch = chunk.patch.merged()

    def take_over(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """What was frozen is in the sealed bytes now."""
        if chunk.patch is not None and chunk.patch.under is not None:
            self._give_back(chunk.patch.under)
            chunk.patch.under = None
            self.drop_patch_if_empty(chunk_id, chunk)

    def drop_patch_if_empty(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """A chunk has a patch only if something lies over its sealed bytes."""
        if chunk.patch is not None and chunk.patch.is_empty:
            self._drop_patch(chunk_id, chunk)

    def unseal(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """Let go of the chunk's part of its pack, if it has one, and of what lies over it."""
        self.leave_pack(chunk)
        self._drop_patch(chunk_id, chunk)

    def leave_pack(self, chunk: Chunk) -> None:
        """Let go of the chunk's part of its pack, if it has one."""
        if chunk.pack is not None:
            self.packs.leave(chunk.pack, chunk.length)
            chunk.pack = None

    def _drop_patch(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        if chunk.patch is not None:
            self._give_back(chunk.patch)
            chunk.patch = None
            self._is_not_open(chunk_id, chunk)

    def _give_back(self, patch: Patch) -> None:
        for slab in patch.slabs:
            self.pool.give_back(slab)
        if patch.under is not None:
            self._give_back(patch.under)
        self.freed.set()

    def _is_not_open(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        if self.opened.get(chunk_id) is chunk:
            del self.opened[chunk_id]

    def find_bad(self, chunk_id: ChunkId, chunk: Chunk) -> None:
        """Nobody is to see these bytes: their memory is freed."""
        log.error("chunk %d/%d is bad: its bytes do not fit their checksum", *chunk_id)
        self.unseal(chunk_id, chunk)
        chunk.bad = True

    def check(self) -> list[str]:
        """The invariants that do not hold, one sentence each."""
        faults = []
        total = sum(chunk.length for chunk in self.chunks.values())
        if total != self.used_bytes:
            faults.append(f"used_bytes is {self.used_bytes}, the chunks' lengths make {total}")
        for chunk_id, chunk in self.chunks.items():
            holders = (chunk.buffer is not None) + (chunk.pack is not None)
            if chunk.bad and holders and not chunk.writers:
                faults.append(f"chunk {chunk_id} is bad and must have no bytes")
            if holders != 1 and not chunk.bad and chunk.length:
                faults.append(f"chunk {chunk_id} must have a buffer or a pack")
            if chunk.patch is not None and (chunk.pack is None or (chunk.patch.is_empty and chunk.lock is None)):
                faults.append(f"chunk {chunk_id} must not have that patch")
            if (chunk.buffer is not None or chunk.patch is not None) != (chunk_id in self.opened):
                faults.append(f"chunk {chunk_id} is not rightly listed as open")
        sealed = {chunk_id: (chunk.pack, chunk.start, chunk.length) for chunk_id, chunk in self.chunks.items() if chunk.pack}
        return faults + self.packs.check(sealed)
