"""Which sealed chunks share an object, and which objects are worth making anew."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.types import ChunkId

SMALL_MAX_BYTES = MIB
"""A chunk up to this length shares its object with others; a longer one has an object of its own."""
PACK_MAX_BYTES = CHUNK_SIZE_BYTES
PACK_MAX_CHUNKS = 512
WASTE_MAX_SHARE = 1 / 8
"""Of the memory of all packs, at most this share may be bytes of chunks that are gone."""
THIN_PACKS_MAX = 16
"""Packs that are far from full, as chunks that are written now and then leave behind; more are put together."""


class Pack:
    """One object with the bytes of one or more chunks, one behind the other. `live_...` counts those that are still in it."""

    __slots__ = ("chunk_ids", "live_bytes", "live_chunks", "ref", "view")

    def __init__(self, ref: Any, view: memoryview, chunk_ids: tuple[ChunkId, ...]) -> None:
        """`chunk_ids` are those whose bytes `view`, the object's memory, begins with; none of them is in it yet."""
        self.ref, self.view, self.chunk_ids = ref, view, chunk_ids
        self.live_bytes = self.live_chunks = 0

    @property
    def is_shared(self) -> bool:
        """True if the object may hold more than one chunk's bytes."""
        return len(self.chunk_ids) > 1

    @property
    def live_share(self) -> float:
        """How much of the object's memory is of use."""
        return self.live_bytes / len(self.view)

    @property
    def is_thin(self) -> bool:
        """True if two like it fit in one."""
        return self.live_bytes < PACK_MAX_BYTES // 2 and self.live_chunks < PACK_MAX_CHUNKS // 2


class Packs:
    """The packs that have chunks in them or are held, and the memory they take.

    Between calls: `size_bytes` is the size of their objects, of which `live_bytes` are chunks as they are now.
    """

    def __init__(self) -> None:
        self.size_bytes = self.peak_bytes = self.live_bytes = 0
        self.small: set[Pack] = set()
        """Those with small chunks; the others hold one chunk, and go with it."""
        self.held = Counter[Pack]()
        """Those that are to stay as they are, whatever becomes of their chunks, and by how many holds."""

    @property
    def wasted_bytes(self) -> int:
        """Memory of chunks that are gone, in objects that are still needed: for others, or by holds."""
        return self.size_bytes - self.live_bytes

    @property
    def retained_bytes(self) -> int:
        """Memory that the object store once took and keeps for the next objects: it never gives any back."""
        return self.peak_bytes - self.size_bytes

    def enter(self, pack: Pack, length: int) -> None:
        """A chunk of `length` bytes is in the pack from now on."""
        if not pack.live_chunks:
            self.size_bytes += len(pack.view)
            self.peak_bytes = max(self.peak_bytes, self.size_bytes)
            if pack.is_shared or len(pack.view) <= SMALL_MAX_BYTES:
                self.small.add(pack)
        pack.live_chunks += 1
        pack.live_bytes += length
        self.live_bytes += length

    def leave(self, pack: Pack, length: int) -> None:
        """A chunk is no longer in the pack; with the last one the pack is forgotten, and its object with it, unless held."""
        pack.live_chunks -= 1
        pack.live_bytes -= length
        self.live_bytes -= length
        self._forget_if_unused(pack)

    def hold(self, pack: Pack) -> None:
        """The pack, which has chunks in it, and its object stay until `let_go`, which is called as often."""
        self.held[pack] += 1

    def let_go(self, pack: Pack) -> None:
        """One hold of the pack has ended."""
        self.held[pack] -= 1
        if not self.held[pack]:
            del self.held[pack]
            self._forget_if_unused(pack)

    def _forget_if_unused(self, pack: Pack) -> None:
        if not pack.live_chunks and pack not in self.held:
            self.size_bytes -= len(pack.view)
            self.small.discard(pack)

    def to_repack(self) -> list[Pack]:
        """The packs whose chunks should move to new ones, the emptiest first.

        They are those that are less than half of use, more of them while too much of all is wasted, and the thin ones when
        there are too many. To move chunks out of one that is held would free nothing.
        """
        held_waste = sum(len(pack.view) - pack.live_bytes for pack in self.held)
        movable = self.small.difference(self.held)
        chosen, wasted, size = [], self.wasted_bytes - held_waste, self.size_bytes - held_waste
        for pack in sorted(movable, key=lambda pack: pack.live_share):
            dead = len(pack.view) - pack.live_bytes
            if not dead or (pack.live_share >= 0.5 and wasted <= size * WASTE_MAX_SHARE):
                break
            chosen.append(pack)
            wasted -= dead
            size -= dead
        thin = [pack for pack in movable.difference(chosen) if pack.is_thin]
        return chosen + (thin if len(thin) > THIN_PACKS_MAX else [])

    def check(self, sealed: Mapping[ChunkId, tuple[Pack, int, int]]) -> list[str]:
        """What is not true of the packs if those are all sealed chunks, each with its pack, start and length."""
        faults = []
        members = defaultdict[Pack, list[tuple[int, int, ChunkId]]](list)
        for chunk_id, (pack, start, length) in sealed.items():
            members[pack].append((start, length, chunk_id))
        for pack, rows in members.items():
            name = f"the pack of chunk {rows[0][2]}"
            if (len(rows), sum(length for _, length, _ in rows)) != (pack.live_chunks, pack.live_bytes):
                faults.append(f"{name} has not counted its chunks rightly")
            if not {chunk_id for *_, chunk_id in rows} <= set(pack.chunk_ids):
                faults.append(f"{name} does not know all of its chunks")
            ends = [*sorted((start, start + length) for start, length, _ in rows), (len(pack.view), 0)]
            if any(end > start for (_, end), (start, _) in pairwise(ends)):
                faults.append(f"{name} has chunks beyond its end or on top of each other")
        size_bytes = sum(len(pack.view) for pack in members.keys() | self.held.keys())
        live_bytes = sum(pack.live_bytes for pack in members)
        if (self.size_bytes, self.live_bytes) != (size_bytes, live_bytes):
            faults.append(f"the packs take {size_bytes} bytes, {live_bytes} of use, not {self.size_bytes}, {self.live_bytes}")
        return faults
