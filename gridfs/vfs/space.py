"""Space that was taken of what the nodes have granted, for one piece of a file."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from gridfs.chunk.client import NodeLink
from gridfs.chunk.grants import Grants
from gridfs.chunk.layout import Piece
from gridfs.types import ChunkId


class Space(NamedTuple):
    """Where a piece is to be written, and how much of it: `charge_bytes` have been taken of the grant of each node."""

    links: list[NodeLink]
    grants: list[Grants]
    length: int
    charge_bytes: int

    def put_back(self) -> None:
        """Nothing is written with it."""
        for grants in self.grants:
            grants.put_back(self.charge_bytes)


def together(parts: Iterable[Space]) -> Space:
    """Space for one piece at the nodes of all `parts`, as long as the shortest."""
    several = list(parts)
    length, charge_bytes = min(part.length for part in several), min(part.charge_bytes for part in several)
    for part in several:
        for grants in part.grants:
            grants.put_back(part.charge_bytes - charge_bytes)
    links, all_grants = [link for part in several for link in part.links], [one for part in several for one in part.grants]
    return Space(links, all_grants, length, charge_bytes)


async def take(
    links: list[NodeLink], chunk_id: ChunkId, piece: Piece, known_bytes: int, room_bytes: int = 0, *, partly: bool
) -> Space | None:
    """Take the space by which the piece makes its chunk longer than `known_bytes`, at each node; if `partly`, what there is.

    None, and nothing taken, when there is not enough. Raises EIO when a node cannot be reached.
    """
    parts: list[Space] = []
    whole = False
    try:
        for link in links:
            part = await _take_at(link, chunk_id, piece, known_bytes, room_bytes, partly=partly)
            if part is None:
                return None
            parts.append(part)
        whole = True
    finally:
        if not whole:
            for part in parts:
                part.put_back()
    return together(parts)


async def _take_at(
    link: NodeLink, chunk_id: ChunkId, piece: Piece, known_bytes: int, room_bytes: int, *, partly: bool
) -> Space | None:
    growth = max(0, piece.offset + piece.length - known_bytes)
    grants = await link.granted()
    if await link.take(growth, room_bytes, chunk_id):
        return Space([link], [grants], piece.length, growth)
    taken = await link.take_some(growth) if partly else 0
    length = piece.length - (growth - taken)
    if length > 0 and partly:
        return Space([link], [grants], length, taken)
    if taken:
        grants.put_back(taken)
    return None
