"""Where written bytes go: the servers that hold a chunk or are to hold it, with space taken at each of them."""

from __future__ import annotations

import errno
import logging
from collections.abc import Collection

from gridfs.chunk.client import WRITE, ChunkClient, NodeLink
from gridfs.chunk.layout import Piece, pick
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.meta.directory import Servers
from gridfs.meta.xattrs import replicas
from gridfs.types import ChunkId
from gridfs.vfs.file import File

log = logging.getLogger(__name__)


class Placer:
    """Finds space for pieces, and says which copies count. The caller of `find` holds the file's lock."""

    def __init__(self, meta: MetaClient, chunks: ChunkClient, replicas_default: int) -> None:
        self._meta, self._chunks = meta, chunks
        self.replicas_default = replicas_default

    def wanted(self, ino: int) -> int:
        """How many copies each chunk of the file is to have."""
        return replicas(self._meta.table.inode(ino)) or self.replicas_default

    async def find(self, file: File, piece: Piece) -> list[NodeLink]:
        """The nodes that take the piece, the first of which passes it on to the others; its space is taken at each.

        A new chunk is placed. Raises ENOSPC, and EIO when every server that held the chunk is lost.
        """
        if self._meta.table.directory.servers(file.ino, piece.index):
            links = await self._take_where_it_is(file, piece)
            if links:
                return links
        else:
            file.chunk_lengths[piece.index] = 0
            for _ in (1, 2):
                placed = await self._place(file, piece)
                if placed:
                    return placed
                if not await self._chunks.drops_settled():
                    break
            del file.chunk_lengths[piece.index]
        raise FilesystemError(errno.ENOSPC, "no node has room")

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

    async def _take_where_it_is(self, file: File, piece: Piece) -> list[NodeLink]:
        """The nodes that hold the chunk, with the piece's space taken; empty without room. Raises EIO when none answers."""
        chunk_id = ChunkId(file.ino, piece.index)
        while True:
            servers = self._meta.table.directory.servers(*chunk_id)
            links = await self._reachable(chunk_id, servers)
            try:
                return links if await self._take(file, piece, links) else []
            except FilesystemError as error:
                if len(links) == 1:
                    raise
                log.warning("chunk %d/%d: one of %d copies does not answer: %s", *chunk_id, len(links), error.strerror)
                lost = [link.node.server for link in links if link.ready(WRITE) is None]
                await self.withdraw(*chunk_id, lost or [links[-1].node.server])

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

    async def _place(self, file: File, piece: Piece) -> list[NodeLink] | None:
        """Give a new chunk to the nodes that are best for it, and have room for all of it, or else for this piece.

        A chunk cannot grow past its node's space, so one begun on a nearly full node would end the file early. There are fewer
        copies than wanted only when there are fewer nodes.
        """
        placement = self._chunks.placement
        nodes = pick(placement, file.ino, piece.index, len(placement.nodes))
        end, count = piece.offset + piece.length, min(self.wanted(file.ino), len(nodes))
        links: list[NodeLink] = []
        for room_bytes in (CHUNK_SIZE_BYTES, end):
            for node in nodes:
                if len(links) < count and node.server not in [link.node.server for link in links]:
                    try:
                        link = self._chunks.link(node.server)
                        if await link.take(end, room_bytes):
                            links.append(link)
                    except FilesystemError as error:
                        log.warning("a new chunk goes elsewhere: %s", error)
        if not count or len(links) < count:
            _give_back(links, end)
            return None
        chosen = tuple(link.node.server for link in links)
        if await self._meta.execute(("place", file.ino, piece.index, chosen)) == chosen:
            return links
        _give_back(links, end)  # another mount was faster; the chunk is where it put it
        return await self.find(file, piece)

    async def _take(self, file: File, piece: Piece, links: list[NodeLink]) -> bool:
        """Take the space by which the piece makes its chunk longer, asking for the chunk's length only when it matters."""
        end = piece.offset + piece.length
        known = file.chunk_lengths.get(piece.index)
        if known is None:
            server, chunk_id = links[0].node.server, ChunkId(file.ino, piece.index)
            known = file.chunk_lengths[piece.index] = await self._chunks.length(server, chunk_id)
        charge_bytes = max(0, end - known)
        if await _take_at_each(links, charge_bytes):
            return True
        return await self._chunks.drops_settled() and await _take_at_each(links, charge_bytes)


async def _take_at_each(links: list[NodeLink], charge_bytes: int) -> bool:
    """Take the space at all of the nodes, or at none."""
    for position, link in enumerate(links):
        if not await link.take(charge_bytes):
            _give_back(links[:position], charge_bytes)
            return False
    return True


def _give_back(links: list[NodeLink], charge_bytes: int) -> None:
    for link in links:
        link.balance_bytes += charge_bytes
