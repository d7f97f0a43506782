"""What was overwritten of a sealed chunk since, beside the sealed bytes, so that a small write costs its own size."""

from __future__ import annotations

from gridfs.chunk.pool import Buffer
from gridfs.config import KIB

BLOCK_BYTES = 4 * KIB
"""A page: what programs that write at random write at least, as a rule."""
PATCHED_MIN_BYTES = 128 * KIB
"""A shorter chunk is opened by a copy when it is written: that costs little, and so does sealing it again."""
PATCHING_MAX_BYTES = 64 * KIB
"""A larger write opens the chunk: what writes so much at a time probably goes on with the rest of the chunk."""
_SLAB_MAX_BLOCKS = 1 << 16


class Patch:
    """Blocks that lie over a chunk's sealed bytes, each of them whole, in buffers from the pool (`slabs`).

    `under` lies between the two while it is being copied into a new object: it does not change. A write to one of its blocks
    makes a block here, so what is sealed meanwhile is neither disturbed nor in the way.
    """

    __slots__ = ("blocks", "free", "size_bytes", "slabs", "under")

    def __init__(self, under: Patch | None = None) -> None:
        self.under = under
        self.slabs: list[Buffer] = []
        self.size_bytes = 0
        """The memory of its slabs: kept, since it is asked of all patches for every write while the pool is short."""
        self.blocks: dict[int, int] = {}
        """Place in the chunk, in blocks -> slot: which slab, and which block of it. Numbers, since there are a great many."""
        self.free: list[int] = []
        """Slots without a block."""

    @property
    def is_empty(self) -> bool:
        """True if it has no blocks, nor anything under it."""
        return not self.blocks and self.under is None

    def shortage_bytes(self, offset: int, length: int) -> int:
        """How large a slab must be added before bytes [offset, offset + length) can be written; 0 if they can."""
        missing = sum(place not in self.blocks for place in _places(offset, offset + length))
        return max(0, missing - len(self.free)) * BLOCK_BYTES

    def add(self, slab: Buffer) -> None:
        """Have memory for more blocks."""
        first = len(self.slabs) * _SLAB_MAX_BLOCKS
        self.free += range(first, first + len(slab) // BLOCK_BYTES)
        self.slabs.append(slab)
        self.size_bytes += len(slab)

    def write(self, offset: int, content: memoryview, base: memoryview) -> None:
        """Put `content` at `offset` over the chunk's sealed bytes. There must be no shortage, and it must end within them."""
        end = offset + len(content)
        for place in _places(offset, end):
            start = place * BLOCK_BYTES
            if place in self.blocks:
                block = self._block(self.blocks[place])
            else:
                old = self.at(place)
                self.blocks[place] = self.free.pop()
                block = self._block(self.blocks[place])
                whole = base[start : start + BLOCK_BYTES] if old is None else old
                block[: len(whole)] = whole
            first, last = max(offset, start), min(end, start + BLOCK_BYTES)
            block[first - start : last - start] = content[first - offset : last - offset]

    def covers(self, offset: int, end: int) -> bool:
        """True if it lies over any of bytes [offset, end)."""
        return any(self.at(place) is not None for place in _places(offset, end))

    def pieces(self, base: memoryview, offset: int, end: int) -> list[memoryview]:
        """Bytes [offset, end) of the chunk, of which `base` are the sealed ones, in order."""
        pieces, at = [], offset
        for place in _places(offset, end):
            block = self.at(place)
            if block is None:
                continue
            start = place * BLOCK_BYTES
            if at < start:
                pieces.append(base[at:start])
                at = start
            stop = min(end, start + BLOCK_BYTES)
            pieces.append(block[at - start : stop - start])
            at = stop
        if at < end:
            pieces.append(base[at:end])
        return pieces

    def at(self, place: int) -> memoryview | None:
        """The block that lies there, here or else under this."""
        if (slot := self.blocks.get(place)) is not None:
            return self._block(slot)
        return self.under.at(place) if self.under is not None else None

    def merged(self) -> Patch:
        """This one and the one under it as one; neither is to be used any more."""
        under = self.under
        assert under is not None
        moved = len(under.slabs) * _SLAB_MAX_BLOCKS
        under.slabs += self.slabs
        under.size_bytes += self.size_bytes
        under.free += [slot + moved for slot in self.free]
        under.free += [under.blocks[place] for place in self.blocks if place in under.blocks]
        under.blocks.update((place, slot + moved) for place, slot in self.blocks.items())
        return under

    def _block(self, slot: int) -> memoryview:
        slab, number = divmod(slot, _SLAB_MAX_BLOCKS)
        return self.slabs[slab].view[number * BLOCK_BYTES : (number + 1) * BLOCK_BYTES]


def _places(offset: int, end: int) -> range:
    """The places of the blocks that bytes [offset, end) are in."""
    return range(offset // BLOCK_BYTES, -(-end // BLOCK_BYTES))
