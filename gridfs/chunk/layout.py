"""Where a file's bytes lie: which chunks a range touches, and which nodes take a new chunk."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import NamedTuple

import xxhash

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.types import PlacementMap, PlacementNode


class Piece(NamedTuple):
    """The part of a byte range that lies in one chunk."""

    index: int  # type: ignore[assignment]  # as in ChunkId
    offset: int
    """Within the chunk."""
    start: int
    """Within the range: the piece is range[start : start + length]."""
    length: int


def pieces(offset: int, length: int) -> Iterator[Piece]:
    """Cut the file's bytes [offset, offset + length) at chunk borders."""
    start = 0
    while start < length:
        index, within = divmod(offset + start, CHUNK_SIZE_BYTES)
        size = min(CHUNK_SIZE_BYTES - within, length - start)
        yield Piece(index, within, start, size)
        start += size


def claimed_bytes(size: int, index: int) -> int:
    """How many bytes of chunk `index` a file of `size` bytes lets it have."""
    return min(max(0, size - index * CHUNK_SIZE_BYTES), CHUNK_SIZE_BYTES)


def pick(placement: PlacementMap, ino: int, index: int, count: int = 1) -> list[PlacementNode]:
    """The `count` nodes for a new chunk, best first; fewer when fewer take chunks. Pure: the same on every client.

    Weighted rendezvous hashing: each node draws -ln(h) / weight with h uniform in (0, 1] from a hash of node and chunk, and the
    smallest draws win, so each node gets chunks in proportion to its weight (Efraimidis and Spirakis, Information Processing
    Letters 97, 2006). A change of one weight moves choices to or from that node only.
    """
    takers = [node for node in placement.nodes if node.weight > 0 and node.alive]
    return sorted(takers, key=lambda node: _draw(node, ino, index))[:count]


def _draw(node: PlacementNode, ino: int, index: int) -> float:
    digest = xxhash.xxh3_64_intdigest(f"{node.server}/{ino}/{index}".encode())
    return -math.log((digest + 1) / (1 << 64)) / node.weight
