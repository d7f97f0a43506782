"""Fetching a file's bytes from wherever they are."""

from __future__ import annotations

import trio

from gridfs.buffers import allocate
from gridfs.chunk.client import ChunkClient
from gridfs.chunk.layout import Piece, pieces
from gridfs.meta.client import MetaClient
from gridfs.types import ChunkId
from gridfs.vfs.budget import Budget
from gridfs.vfs.file import File


class Fetcher:
    """Reads ranges of files from chunk servers; holds no state."""

    def __init__(self, meta: MetaClient, chunks: ChunkClient, budget: Budget) -> None:
        self._meta, self._chunks, self._budget = meta, chunks, budget

    async def fetch(self, file: File, offset: int, length: int) -> bytearray:
        """The bytes [offset, offset + length), which must lie within the file; holes are zeros.

        Waits for room in the budget, and for bytes that are still on their way to a server. Raises EIO when a chunk's server
        is lost.
        """
        await self._budget.take(length)
        try:
            return await self.fetch_ahead(file, offset, length)
        finally:
            self._budget.give(length)

    async def fetch_ahead(self, file: File, offset: int, length: int) -> bytearray:
        """As `fetch`, into memory that the caller has from the budget."""
        if file.in_flight:
            await file.settle(offset, offset + length)
        buffer = allocate(length)
        view = memoryview(buffer)
        parts = list(pieces(offset, length))
        if len(parts) == 1:
            await self._fetch_piece(file.ino, parts[0], view)
            return buffer
        async with trio.open_nursery() as nursery:
            for piece in parts:
                nursery.start_soon(self._fetch_piece, file.ino, piece, view[piece.start : piece.start + piece.length])
        return buffer

    async def _fetch_piece(self, ino: int, piece: Piece, view: memoryview) -> None:
        servers = self._meta.table.directory.servers(ino, piece.index)
        if servers:
            await self._chunks.read(servers[0], ChunkId(ino, piece.index), piece.offset, view)
        else:
            view[:] = bytes(len(view))
