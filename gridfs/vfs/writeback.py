"""Writeback: bytes on their way to chunk servers, within a bounded window."""

from __future__ import annotations

import errno
import logging

from gridfs.chunk.client import ChunkClient, NodeLink
from gridfs.chunk.layout import Piece, pick, pieces
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.stream.connection import Reply
from gridfs.types import ChunkId
from gridfs.vfs.budget import Budget
from gridfs.vfs.file import File

log = logging.getLogger(__name__)


class Writeback:
    """Sends what is written to the chunk servers.

    `window` is the budget for bytes written and not yet acknowledged, over all files: the memory they take, and the most that
    a crash of the mount can cost.

    A write returns once space has been granted for its bytes, they are in the window, and the request is with the kernel's
    socket or queued behind it. Writes of one file are serial (`File.lock`); those of one chunk go down one stream in order.
    """

    def __init__(self, meta: MetaClient, chunks: ChunkClient, window: Budget) -> None:
        self._meta, self._chunks, self._window = meta, chunks, window

    async def write(self, file: File, offset: int, data: bytes, now_ns: int) -> int:
        """Write `data` at `offset`; returns how many bytes were taken, fewer than asked only when space ran out.

        The caller holds `file.lock`. Raises ENOSPC when nothing could be taken, EIO when a chunk's server is lost.
        """
        view = memoryview(data)
        for piece in pieces(offset, len(data)):
            try:
                link = await self._find_space(file, piece)
            except FilesystemError:
                if piece.start:
                    return piece.start
                raise
            await self._window.take(piece.length)
            start = offset + piece.start
            self._send(link, file, piece, view[piece.start : piece.start + piece.length], start, now_ns)
        return len(data)

    def _send(self, link: NodeLink, file: File, piece: Piece, data: memoryview, start: int, now_ns: int) -> None:
        ticket = file.begin_write(start, start + piece.length, now_ns, data)
        end = piece.offset + piece.length
        charge = max(0, end - file.chunk_lengths.get(piece.index, piece.offset))
        file.chunk_lengths[piece.index] = max(end, file.chunk_lengths.get(piece.index, 0))

        def settled(reply: Reply) -> None:
            self._window.give(piece.length)
            if reply.error is not None:
                log.error("inode %d: %d bytes at %d were lost: %s", file.ino, piece.length, start, reply.error)
                file.chunk_lengths.pop(piece.index, None)
            file.end_write(ticket, _errno_of(reply.error))

        self._chunks.write(link, ChunkId(file.ino, piece.index), piece.offset, data, charge, settled)

    # -- space -------------------------------------------------------------------------------------------------------

    async def _find_space(self, file: File, piece: Piece) -> NodeLink:
        """The node that takes the piece, with its space taken from the grant; a new chunk is placed. Raises ENOSPC, EIO."""
        servers = self._meta.table.directory.servers(file.ino, piece.index)
        if servers:
            link = self._chunks.link(servers[0])
            if await self._take(file, piece, link, servers[0]):
                return link
        else:
            file.chunk_lengths[piece.index] = 0
            for _ in (1, 2):
                link_or_none = await self._place(file, piece)
                if link_or_none:
                    return link_or_none
                if not await self._chunks.drops_settled():
                    break
            del file.chunk_lengths[piece.index]
        raise FilesystemError(errno.ENOSPC, "no node has room")

    async def _place(self, file: File, piece: Piece) -> NodeLink | None:
        """Give a new chunk to a node with room for all of it, best first, or else to one with room for this piece.

        A chunk cannot grow past its node's space, so one begun on a nearly full node would end the file early.
        """
        placement = self._chunks.placement
        end = piece.offset + piece.length
        for room_bytes in (CHUNK_SIZE_BYTES, end):
            for node in pick(placement, file.ino, piece.index, len(placement.nodes)):
                try:
                    link = self._chunks.link(node.server)
                    if not await link.take(end, room_bytes):
                        continue
                except FilesystemError as error:
                    log.warning("a new chunk goes elsewhere: %s", error)
                    continue
                placed = await self._meta.execute(("place", file.ino, piece.index, (node.server,)))
                if placed[0] == node.server:
                    return link
                link.balance_bytes += end  # another mount was faster; the chunk is where it put it
                return await self._find_space(file, piece)
        return None

    async def _take(self, file: File, piece: Piece, link: NodeLink, server: str) -> bool:
        """Take the space by which the piece makes its chunk longer, asking for the chunk's length only when it matters."""
        end = piece.offset + piece.length
        known = file.chunk_lengths.get(piece.index)
        if known is None:
            known = file.chunk_lengths[piece.index] = await self._chunks.length(server, ChunkId(file.ino, piece.index))
        if await link.take(max(0, end - known)):
            return True
        return await self._chunks.drops_settled() and await link.take(max(0, end - known))


def _errno_of(error: Exception | None) -> int:
    """The errno a program hears of; 0 for no error."""
    if error is None:
        return 0
    return error.errno or errno.EIO if isinstance(error, FilesystemError) else errno.EIO
