"""Writeback: bytes on their way to chunk servers, within a bounded window."""

from __future__ import annotations

import errno
import logging
from typing import NamedTuple

import trio

from gridfs.chunk.client import ChunkClient, NodeLink
from gridfs.chunk.layout import Piece, pick, pieces
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.stream.connection import Reply
from gridfs.types import ChunkId
from gridfs.vfs.file import File

log = logging.getLogger(__name__)

WINDOW_BYTES = 64 * MIB
"""Bytes written and not yet acknowledged, over all files: the memory they take, and the most a crash of the mount can cost."""


class Space(NamedTuple):
    """Where a piece is to be written, and how much of it: what has been taken of the node's grant is `charge_bytes`."""

    link: NodeLink
    length: int
    charge_bytes: int


class Writeback:
    """Sends what is written to the chunk servers and keeps the window.

    A write returns once space has been granted for its bytes, they are in the window, and the request is with the kernel's
    socket or queued behind it. Writes of one file are serial (`File.lock`); those of one chunk go down one stream in order.
    """

    def __init__(self, meta: MetaClient, chunks: ChunkClient) -> None:
        self._meta, self._chunks = meta, chunks
        self._window_bytes = 0
        self._room = trio.Event()

    async def write(self, file: File, offset: int, data: bytes, now_ns: int) -> int:
        """Write `data` at `offset`; returns how many bytes were taken, fewer than asked only when space ran out.

        The caller holds `file.lock`. Raises ENOSPC when nothing could be taken, EIO when a chunk's server is lost.
        """
        view = memoryview(data)
        for piece in pieces(offset, len(data)):
            try:
                space = await self._find_space(file, piece)
            except FilesystemError:
                if piece.start:
                    return piece.start
                raise
            await self._make_room(space.length)
            fitting = piece._replace(length=space.length)
            self._send(space, file, fitting, view[piece.start : piece.start + space.length], offset + piece.start, now_ns)
            if fitting != piece:
                return piece.start + space.length
        return len(data)

    def _send(self, space: Space, file: File, piece: Piece, data: memoryview, start: int, now_ns: int) -> None:
        ticket = file.begin_write(start, start + piece.length, now_ns)
        end = piece.offset + piece.length
        file.chunk_lengths[piece.index] = max(end, file.chunk_lengths.get(piece.index, 0))
        self._window_bytes += piece.length

        def settled(reply: Reply) -> None:
            self._window_bytes -= piece.length
            room, self._room = self._room, trio.Event()
            room.set()
            if reply.error is not None:
                log.error("inode %d: %d bytes at %d were lost: %s", file.ino, piece.length, start, reply.error)
                file.chunk_lengths.pop(piece.index, None)
            file.end_write(ticket, _errno_of(reply.error))

        self._chunks.write(space.link, ChunkId(file.ino, piece.index), piece.offset, data, space.charge_bytes, settled)

    async def _make_room(self, length: int) -> None:
        """Wait until the window takes `length` more; bounded by the connections' reply timeout."""
        while self._window_bytes and self._window_bytes + length > WINDOW_BYTES:
            await self._room.wait()

    # -- space -------------------------------------------------------------------------------------------------------

    async def _find_space(self, file: File, piece: Piece) -> Space:
        """The node that takes the piece, or the part of it that still fits; a new chunk is placed. Raises ENOSPC, EIO."""
        since_s = trio.current_time()
        while True:
            space = await self._look_for_space(file, piece)
            if space:
                return space
            if not await self._chunks.more_space(since_s, removing=bool(self._meta.table.orphans)):
                break
        space = await self._look_for_space(file, piece, partly=True)
        if space is None:
            raise FilesystemError(errno.ENOSPC, "no node has room")
        return space

    async def _look_for_space(self, file: File, piece: Piece, *, partly: bool = False) -> Space | None:
        """Space for the piece where its chunk is, or where a new one is placed; if `partly`, for its beginning at least."""
        servers = self._meta.table.directory.servers(file.ino, piece.index)
        if not servers:
            return await self._place(file, piece, partly=partly)
        chunk_id = ChunkId(file.ino, piece.index)
        known = file.chunk_lengths.get(piece.index)
        if known is None:
            known = file.chunk_lengths[piece.index] = await self._chunks.length(servers[0], chunk_id)
        return await _take(self._chunks.link(servers[0]), chunk_id, piece, known, partly=partly)

    async def _place(self, file: File, piece: Piece, *, partly: bool) -> Space | None:
        """Give a new chunk to a node with room for all of it, best first, or else to the one with the most room.

        A chunk cannot grow past its node's space, so one begun on a nearly full node would end the file early.
        """
        placement, chunk_id = self._chunks.placement, ChunkId(file.ino, piece.index)
        nodes = pick(placement, *chunk_id, len(placement.nodes))
        for room_bytes in (CHUNK_SIZE_BYTES, 0):
            for node in nodes if room_bytes else self._chunks.roomiest(nodes):
                try:
                    link = self._chunks.link(node.server)
                    space = await _take(link, chunk_id, piece, 0, room_bytes, partly=partly and not room_bytes)
                except FilesystemError as error:
                    log.warning("a new chunk goes elsewhere: %s", error)
                    continue
                if space is not None:
                    return await self._placed(file, piece, space)
        return None

    async def _placed(self, file: File, piece: Piece, space: Space) -> Space | None:
        """Tell the table of a new chunk for which space has been taken; where it is, if another mount was faster."""
        grants, here = space.link.grants, False
        try:
            servers = await self._meta.execute(("place", file.ino, piece.index, (space.link.node.server,)))
            here = servers[0] == space.link.node.server
        finally:
            if not here and grants:
                grants.put_back(space.charge_bytes)
        if here:
            file.chunk_lengths[piece.index] = 0
            return space
        file.chunk_lengths.pop(piece.index, None)
        return await self._look_for_space(file, piece)


async def _take(
    link: NodeLink, chunk_id: ChunkId, piece: Piece, known_bytes: int, room_bytes: int = 0, *, partly: bool
) -> Space | None:
    """Take the space by which the piece makes its chunk longer than `known_bytes`; if `partly`, what there is of it."""
    growth = max(0, piece.offset + piece.length - known_bytes)
    if await link.take(growth, room_bytes, chunk_id):
        return Space(link, piece.length, growth)
    taken = await link.take_some(growth) if partly else 0
    length = piece.length - (growth - taken)
    if length > 0 and partly:
        return Space(link, length, taken)
    if taken and link.grants:
        link.grants.put_back(taken)
    return None


def _errno_of(error: Exception | None) -> int:
    """The errno a program hears of; 0 for no error."""
    if error is None:
        return 0
    return error.errno or errno.EIO if isinstance(error, FilesystemError) else errno.EIO
