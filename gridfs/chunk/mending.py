"""Making another copy of a chunk, for whoever mends: the healer of a mount, and a scrub while nothing is mounted."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable, Collection

from gridfs.chunk.client import ChunkClient
from gridfs.chunk.layout import pick
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId, PlacementMap

Holders = tuple[str, ...]
Replace = Callable[[Holders, Holders], Awaitable[Holders]]
"""Tells the inode table that what the first held is held by the second from now on; returns who holds the chunk then."""


def targets(placement: PlacementMap, chunk_id: ChunkId, holders: Collection[str]) -> list[str]:
    """Who could hold another copy of the chunk, best first."""
    nodes = pick(placement, *chunk_id, len(placement.nodes))
    return [node.server for node in nodes if node.server not in holders]


async def add_copy(
    chunks: ChunkClient, chunk_id: ChunkId, holders: Holders, source: str, target: str, replace: Replace
) -> Holders:
    """Copy the chunk from `source`, one of its `holders`, to `target`, and have it read and written there from then on.

    Returns who holds it then. Raises EAGAIN when others have changed that meanwhile, EBADMSG when the source's bytes are not
    what they were, EIO, ENOSPC, ENOENT, and what `replace` raises. What was copied in vain belongs to nobody.
    """
    after = (*holders, target)
    await chunks.copy(chunk_id, source, target)
    try:
        held = tuple(await replace(holders, after))
    finally:
        await chunks.unfollow(chunk_id, source, target)
    if held != after:
        raise FilesystemError(errno.EAGAIN, "its copies were changed meanwhile")
    return held
