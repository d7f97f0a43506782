"""Where written bytes go: the servers that hold a chunk or are to hold it, with space taken at each of them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection

import trio

from gridfs.chunk.client import WRITE, ChunkClient, NodeLink
from gridfs.chunk.layout import Piece, pick
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.meta.directory import Servers
from gridfs.meta.xattrs import replicas
from gridfs.types import ChunkId
from gridfs.vfs.file import File
from gridfs.vfs.space import Space, take, together

log = logging.getLogger(__name__)


class Placer:
    """Finds space for pieces, and says which copies count. The caller of `find` holds the file's lock."""

    def __init__(self, meta: MetaClient, chunks: ChunkClient, replicas_default: int) -> None:
        self._meta, self._chunks = meta, chunks
        self.replicas_default = replicas_default

    def wanted(self, ino: int) -> int:
        """How many copies each chunk of the file is to have."""
        return replicas(self._meta.table.inode(ino)) or self.replicas_default

    async def find(self, file: File, piece: Piece) -> Space:
        """Space for the piece, or for the part of it that still fits; a new chunk is placed.

        Raises ENOSPC, and EIO when every server that held the chunk is lost.
        """
        if (space := self._at_hand(file, piece)) is not None:
            return space
        since_s = trio.current_time()
        while True:
            space = await self._look(file, piece)
            if space is not None:
                return space
            if not await self._chunks.more_space(since_s, removing=bool(self._meta.table.orphans)):
                break
        space = await self._look(file, piece, partly=True)
        if space is None:
            raise FilesystemError(errno.ENOSPC, "no node has room")
        return space

    def _at_hand(self, file: File, piece: Piece) -> Space | None:
        """Space for a piece that makes its chunk no longer, if all who hold that are connected: there is nothing to take."""
        if piece.offset + piece.length > file.chunk_lengths.get(piece.index, 0):
            return None
        links = self._chunks.connected(WRITE, self._meta.table.directory.servers(file.ino, piece.index))
        return Space(links, [], piece.length, 0) if links else None

    async def withdraw(self, ino: int, index: int, failed: Collection[str]) -> Servers:
        """Have these copies not be read any more, as they lack what was written last; returns who is left.

        Raises EIO when nobody would be.
        """
        while True:
            held = self._meta.table.directory.servers(ino, index)
            left = tuple(server for server in held if server not in failed)
            if not left:
                raise FilesystemError(errno.EIO, f"every server that held chunk {ino}/{index} is lost")
            if left == held:
                return left
            await self._meta.execute(("replace", ino, index, held, left))

    async def _look(self, file: File, piece: Piece, *, partly: bool = False) -> Space | None:
        """Space where the chunk is, or where a new one is placed; if `partly`, for the piece's beginning at least."""
        chunk_id = ChunkId(file.ino, piece.index)
        while servers := self._meta.table.directory.servers(*chunk_id):
            links = await self._reachable(chunk_id, servers)
            try:
                known = file.chunk_lengths.get(piece.index)
                if known is None:
                    server = links[0].node.server
                    known = file.chunk_lengths[piece.index] = await self._chunks.length(server, chunk_id)
                return await take(links, chunk_id, piece, known, partly=partly)
            except FilesystemError as error:
                if len(links) == 1:
                    raise
                log.warning("chunk %d/%d: one of %d copies does not answer: %s", *chunk_id, len(links), error.strerror)
                lost = [link.node.server for link in links if link.ready(WRITE) is None]
                await self.withdraw(*chunk_id, lost or [links[-1].node.server])
        return await self._place(file, piece, partly=partly)

    async def _reachable(self, chunk_id: ChunkId, servers: Servers) -> list[NodeLink]:
        """Who is to get what is written. A copy that cannot be reached would be behind when it can: it is withdrawn.

        Raises EIO when none can be reached.
        """
        links, failure = [], FilesystemError(errno.EIO)
        for server in servers:
            try:
                link = self._chunks.link(server)
                await link.connection(WRITE)
                links.append(link)
            except FilesystemError as error:
                failure = error
        if not links:
            raise failure
        if len(links) < len(servers):
            log.warning("chunk %d/%d has %d copies left of %d: %s", *chunk_id, len(links), len(servers), failure.strerror)
            await self.withdraw(*chunk_id, set(servers) - {link.node.server for link in links})
        return links

    async def _place(self, file: File, piece: Piece, *, partly: bool) -> Space | None:
        """Give a new chunk to the nodes that are best for it and have room for all of it, or else to those with the most room.

        A chunk cannot grow past its node's space, so one begun on a nearly full node would end the file early. There are fewer
        copies than wanted only when fewer nodes can be reached.
        """
        placement, chunk_id = self._chunks.placement, ChunkId(file.ino, piece.index)
        nodes = pick(placement, *chunk_id, len(placement.nodes))
        wanted = self.wanted(file.ino)
        parts: dict[str, Space] = {}
        unreachable: set[str] = set()
        for room_bytes in (CHUNK_SIZE_BYTES, 0):
            for node in nodes if room_bytes else self._chunks.roomiest(nodes):
                if len(parts) < wanted and node.server not in parts and node.server not in unreachable:
                    try:
                        links = [self._chunks.link(node.server)]
                        part = await take(links, chunk_id, piece, 0, room_bytes, partly=partly and not room_bytes)
                    except FilesystemError as error:
                        log.warning("a new chunk goes elsewhere: %s", error)
                        unreachable.add(node.server)
                        continue
                    if part is not None:
                        parts[node.server] = part
        if not parts or len(parts) < min(wanted, len(nodes) - len(unreachable)):
            for part in parts.values():
                part.put_back()
            return None
        return await self._placed(file, piece, together(parts.values()))

    async def _placed(self, file: File, piece: Piece, space: Space) -> Space | None:
        """Tell the table of a new chunk for which space has been taken; where it is, if another mount was faster."""
        chosen, here = tuple(link.node.server for link in space.links), False
        try:
            here = await self._meta.execute(("place", file.ino, piece.index, chosen)) == chosen
        finally:
            if not here:
                space.put_back()
        if here:
            file.chunk_lengths[piece.index] = 0
            return space
        file.chunk_lengths.pop(piece.index, None)
        return await self._look(file, piece)
