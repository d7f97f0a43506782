"""Fetching a file's bytes from wherever they are."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable
from contextlib import suppress

import trio

from gridfs.buffers import allocate
from gridfs.chunk.client import ChunkClient
from gridfs.chunk.layout import Piece, pieces
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.types import ChunkId
from gridfs.vfs.budget import Budget
from gridfs.vfs.file import File

log = logging.getLogger(__name__)


class Fetcher:
    """Reads ranges of files from chunk servers; holds no state."""

    def __init__(
        self, meta: MetaClient, chunks: ChunkClient, budget: Budget, found_bad: Callable[[ChunkId, str], None]
    ) -> None:
        """`found_bad` hears of a copy whose bytes are not what they were."""
        self._meta, self._chunks, self._budget, self._found_bad = meta, chunks, budget, found_bad

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
        while True:
            buffer = allocate(length)
            with suppress(trio.TooSlowError):  # a late reply may still write to that buffer: it is left alone
                await self._fetch_into(file.ino, offset, memoryview(buffer))
                return buffer

    async def _fetch_into(self, ino: int, offset: int, view: memoryview) -> None:
        """Raises EIO, and TooSlowError when a server stalls that is not the last one to ask: the next time it is asked last."""
        parts = list(pieces(offset, len(view)))
        if len(parts) == 1:
            await self._fetch_piece(ino, parts[0], view)
            return
        failures: list[Exception] = []

        async def fetch(piece: Piece) -> None:
            try:
                await self._fetch_piece(ino, piece, view[piece.start : piece.start + piece.length])
            except (FilesystemError, trio.TooSlowError) as error:
                failures.append(error)

        async with trio.open_nursery() as nursery:
            for piece in parts:
                nursery.start_soon(fetch, piece)
        for failure in sorted(failures, key=lambda failure: isinstance(failure, trio.TooSlowError)):
            raise failure

    async def _fetch_piece(self, ino: int, piece: Piece, view: memoryview) -> None:
        """From the first server that answers in time; a hole is zeros. Raises EIO when none is left."""
        chunk_id = ChunkId(ino, piece.index)
        servers = self._meta.table.directory.servers(*chunk_id)
        if not servers:
            view[:] = bytes(len(view))
            return
        failure = FilesystemError(errno.EIO, "no server that holds the bytes is left")
        candidates = self._chunks.candidates(servers)
        for place, (server, patience_s) in enumerate(candidates, 1):
            try:
                await self._chunks.read(server, chunk_id, piece.offset, view, patience_s)
            except FilesystemError as error:
                failure = FilesystemError(errno.EIO, str(error.strerror))
                if place < len(candidates):
                    log.warning("chunk %d/%d cannot be read from %s: %s", *chunk_id, server, error.strerror)
                if error.errno == errno.EBADMSG:
                    self._found_bad(chunk_id, server)
            else:
                if await self._counts(chunk_id, server):
                    return
                await self._fetch_piece(ino, piece, view)
                return
        raise failure

    async def _counts(self, chunk_id: ChunkId, server: str) -> bool:
        """False if the server has been withdrawn from the chunk since it was asked: what it has dropped reads as zeros."""
        await self._meta.readable()
        servers = self._meta.table.directory.servers(*chunk_id)
        return server in servers or not servers
