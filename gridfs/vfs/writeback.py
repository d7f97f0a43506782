"""Writeback: bytes on their way to chunk servers, within a bounded window."""

from __future__ import annotations

import errno
import logging
from contextlib import suppress
from dataclasses import dataclass

import trio

from gridfs.chunk.client import WRITE, ChunkClient, NodeLink
from gridfs.chunk.layout import Piece, pieces
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.stream.connection import Reply
from gridfs.types import ChunkId
from gridfs.vfs.budget import Budget
from gridfs.vfs.file import File
from gridfs.vfs.healer import Healer
from gridfs.vfs.placer import Placer
from gridfs.vfs.space import Space

log = logging.getLogger(__name__)


@dataclass(slots=True)
class Sent:
    """One piece on its way to the servers of `space`."""

    file: File
    piece: Piece
    data: memoryview
    space: Space
    ticket: int

    @property
    def chunk_id(self) -> ChunkId:
        """The chunk that it belongs to."""
        return ChunkId(self.file.ino, self.piece.index)


class Writeback:
    """Sends what is written to the chunk servers.

    `window` is the budget for bytes written and not yet acknowledged, over all files: the memory they take, and the most that
    a crash of the mount can cost.

    A write returns once space has been granted for its bytes, they are in the window, and the request is with the kernel's
    socket or queued behind it. Writes of one file are serial (`File.lock`); those of one chunk go down one stream in order.

    When a copy fails, its server is withdrawn from the chunk, and if that was the one who passes bytes on, they are sent to the
    next: by one task for each file, in the order of the writes, and before any other write of the file (`File.broken`).
    """

    def __init__(self, chunks: ChunkClient, placer: Placer, healer: Healer, window: Budget) -> None:
        self._chunks, self._placer, self._healer, self._window = chunks, placer, healer, window
        self._broken: list[File] = []
        """Files that have got broken writes, and nobody yet to set them right; bounded by the open files."""
        self._more_broken = trio.Event()

    async def run(self) -> None:
        """Set broken writes right until cancelled: a task for each file that has some."""
        async with trio.open_nursery() as nursery:
            while True:
                await self._more_broken.wait()
                self._more_broken, files, self._broken = trio.Event(), self._broken, []
                for file in files:
                    nursery.start_soon(self._set_right, file)

    async def write(self, file: File, offset: int, data: bytes, now_ns: int) -> int:
        """Write `data` at `offset`; returns how many bytes were taken, fewer than asked only when space ran out.

        The caller holds `file.lock`. Raises ENOSPC when nothing could be taken, EIO when a chunk's last server is lost.
        """
        view = memoryview(data)
        for piece in pieces(offset, len(data)):
            try:
                await file.whole()
                space = await self._placer.find(file, piece)
            except FilesystemError:
                if piece.start:
                    return piece.start
                raise
            await self._window.take(space.length)
            await file.whole()
            start, data_of_piece = offset + piece.start, view[piece.start : piece.start + space.length]
            ticket = file.begin_write(start, start + space.length, now_ns, data_of_piece)
            is_whole = space.length == piece.length
            self._send(Sent(file, piece if is_whole else piece._replace(length=space.length), data_of_piece, space, ticket))
            if not is_whole:
                return piece.start + space.length
        return len(data)

    def _send(self, sent: Sent) -> None:
        file, piece, links = sent.file, sent.piece, sent.space.links
        end = piece.offset + piece.length
        file.chunk_lengths[piece.index] = max(end, file.chunk_lengths.get(piece.index, 0))

        def replied(reply: Reply) -> None:
            if len(links) > 1 and (reply.result or _is_of_the_copy(reply.error)):
                self._set_right_soon(sent, reply)
            else:
                self._end(sent, reply.error)

        reply = self._chunks.write(links, sent.chunk_id, piece.offset, sent.data, sent.space.charge_bytes, replied)
        file.sent(sent.ticket, reply)

    def _end(self, sent: Sent, error: Exception | None) -> None:
        """The piece is safe, or lost."""
        file, piece = sent.file, sent.piece
        self._window.give(piece.length)
        if error is not None:
            start = piece.index * CHUNK_SIZE_BYTES + piece.offset
            log.error("inode %d: %d bytes at %d were lost: %s", file.ino, piece.length, start, error)
            file.chunk_lengths.pop(piece.index, None)
        file.end_write(sent.ticket, _errno_of(error))

    # -- copies that fail --------------------------------------------------------------------------------------------

    def _set_right_soon(self, sent: Sent, reply: Reply) -> None:
        sent.file.broken.append((sent, reply))
        if len(sent.file.broken) == 1:
            self._broken.append(sent.file)
            self._more_broken.set()

    async def _set_right(self, file: File) -> None:
        """Set the file's broken writes right, one after the other, until none is left."""
        while file.broken:
            sent, reply = file.broken[0]
            error: Exception | None = None
            try:
                await self._write_elsewhere(sent, reply)
            except FilesystemError as failure:
                error = failure
            file.broken.popleft()
            self._end(sent, error)
            self._healer.look_at(sent.chunk_id)

    async def _write_elsewhere(self, sent: Sent, reply: Reply) -> None:
        """Withdraw the copies that failed, and if the first of them did, send the bytes to the others. Raises EIO."""
        links = sent.space.links
        while failed := _failed(links, reply):
            hosts = ", ".join(link.node.host for link in failed)
            log.warning("chunk %d/%d is not on %s any more: %s", *sent.chunk_id, hosts, reply.error or reply.result[0][2])
            await self._placer.withdraw(*sent.chunk_id, [link.node.server for link in failed])
            if reply.error is None:
                return
            links = [link for link in links if link not in failed]
            if not links:
                raise FilesystemError(errno.EIO, "every server that held the chunk is lost")
            with suppress(FilesystemError):  # then the write fails too, and the next one is tried
                await links[0].connection(WRITE)
            reply = self._chunks.write(links, sent.chunk_id, sent.piece.offset, sent.data, sent.space.charge_bytes)
            with suppress(ConnectionLost, FilesystemError):  # `_failed` looks at what became of it
                await reply.wait()


def _failed(links: list[NodeLink], reply: Reply) -> list[NodeLink]:
    """The links whose servers have not got the bytes. Raises what the first server refused them with."""
    if _is_of_the_copy(reply.error):
        return links[:1]
    if reply.error is not None:
        raise reply.error
    refused = {(host, port) for host, port, _ in reply.result}
    return [link for link in links if link.node.address in refused]


def _is_of_the_copy(error: Exception | None) -> bool:
    """Whether the first server alone is to blame: it cannot be reached, or its bytes are not what they were."""
    return isinstance(error, ConnectionLost) or (isinstance(error, FilesystemError) and error.errno == errno.EBADMSG)


def _errno_of(error: Exception | None) -> int:
    """The errno a program hears of; 0 for no error."""
    if error is None:
        return 0
    return error.errno or errno.EIO if isinstance(error, FilesystemError) else errno.EIO
