"""Healing: every chunk gets as many copies as its file wants, on servers that live and with bytes that are what they were."""

from __future__ import annotations

import errno
import logging
import math
from collections.abc import Collection, Iterable

import trio

from gridfs.chunk.client import ChunkClient
from gridfs.chunk.mending import Holders, add_copy, targets
from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.types import ChunkId
from gridfs.vfs.handles import Handles
from gridfs.vfs.placer import Placer

log = logging.getLogger(__name__)

CHECK_INTERVAL_S = 0.5
RETRY_S = 20.0
"""After something could not be mended, for want of space as a rule."""
SCAN_SLICE = 1000
"""Inodes that are looked at without letting others run."""


class Healer:
    """Looks at chunks one after the other, in the background, and mends what is wrong with their copies.

    Of several mounts only the eldest does: two that copied one chunk to one server would undo each other's work. `_waiting`
    maps each chunk that is to be looked at to the servers whose copies were found bad; it is bounded by the chunks there are.
    A chunk is mended under its file's lock, so no write of this mount comes between; those of others are sent on to the copy.
    """

    def __init__(self, meta: MetaClient, chunks: ChunkClient, handles: Handles, placer: Placer) -> None:
        self._meta, self._chunks, self._handles, self._placer = meta, chunks, handles, placer
        self._waiting: dict[ChunkId, set[str]] = {}
        self._living: frozenset[str] = frozenset()
        self._again_s = math.inf
        """When everything is looked at again because something could not be mended."""
        self._made = 0

    def look_at(self, chunk_id: ChunkId) -> None:
        """Something may be wrong with the chunk's copies."""
        self._waiting.setdefault(chunk_id, set())

    def found_bad(self, chunk_id: ChunkId, server: str) -> None:
        """The server has said that its bytes of the chunk are not what they were."""
        self._waiting.setdefault(chunk_id, set()).add(server)

    def changed(self, chunk_id: ChunkId) -> None:
        """Others have changed who holds the chunk. The eldest mount alone mends; one that becomes it looks at everything."""
        count = len(self._meta.table.directory.servers(*chunk_id))
        if not self._meta.eldest or not count or chunk_id.ino not in self._meta.table.inodes:
            return
        if count < min(self._placer.wanted(chunk_id.ino), len(self._living)):
            self.look_at(chunk_id)

    def look_at_everything(self) -> None:
        """Nobody knows what others have changed."""
        self._living = frozenset()

    def look_at_file(self, ino: int) -> None:
        """The file may want another number of copies."""
        for index in self._meta.table.directory.chunks(ino):
            self.look_at(ChunkId(ino, index))

    async def run(self) -> None:
        """Mend until cancelled; looks at everything at first, whenever a server is lost or found, and again after a failure."""
        while True:
            await trio.sleep(CHECK_INTERVAL_S)
            if self._meta.failure or not self._meta.eldest:
                continue
            living = frozenset(node.server for node in self._chunks.placement.nodes if node.alive)
            if living != self._living or trio.current_time() >= self._again_s:
                self._living, self._again_s = living, math.inf
                await self._scan()
            made_before = self._made
            while self._waiting and not self._meta.failure:
                chunk_id = next(iter(self._waiting))
                await self._look(chunk_id, self._waiting.pop(chunk_id))
            if self._made > made_before:
                log.info("made %d copies of chunks that lacked them", self._made - made_before)

    async def _scan(self) -> None:
        """Look at every chunk that has not its copies, and could have."""
        table = self._meta.table
        for number, ino in enumerate(table.directory.inos()):
            if number % SCAN_SLICE == 0:
                await trio.lowlevel.checkpoint()
            if ino in table.inodes:
                count = min(self._placer.wanted(ino), len(self._living))
                for index, servers in table.directory.chunks(ino).items():
                    alive = sum(server in self._living for server in servers)
                    if alive and (alive < count or alive < len(servers)):
                        self.look_at(ChunkId(ino, index))

    async def _look(self, chunk_id: ChunkId, bad: set[str]) -> None:
        if chunk_id.ino not in self._meta.table.inodes:
            return
        with self._handles.using(chunk_id.ino) as file:
            async with file.lock:
                try:
                    await file.settle()
                    await self._mend(chunk_id, bad)
                except FilesystemError as error:
                    log.warning("chunk %d/%d could not be healed: %s", *chunk_id, error.strerror)
                    self._again_s = min(self._again_s, trio.current_time() + RETRY_S)

    async def _mend(self, chunk_id: ChunkId, bad: Collection[str]) -> None:
        """Withdraw copies that are lost or bad, make those that are wanting, drop those that are too many."""
        servers = self._meta.table.directory.servers(*chunk_id)
        good = tuple(server for server in servers if server not in bad and self._chunks.is_alive(server))
        if not good:
            return  # nothing to mend it from: it is EIO to read, and comes back if a server does
        await self._placer.withdraw(*chunk_id, set(servers) - set(good))
        wanted = self._placer.wanted(chunk_id.ino)
        for target in targets(self._chunks.placement, chunk_id, good)[: max(0, wanted - len(good))]:
            good = await self._add_copy(chunk_id, good, target)
            self._made += 1
        if len(good) > wanted:
            await self._placer.withdraw(*chunk_id, good[wanted:])
            await self._drop(chunk_id, good[wanted:])

    async def _add_copy(self, chunk_id: ChunkId, good: Holders, target: str) -> Holders:
        """As `add_copy`. A copy that turns out to be bad is not to be read any more, and the next one is copied then."""

        async def replace(before: Holders, after: Holders) -> Holders:
            held: Holders = await self._meta.execute(("replace", *chunk_id, before, after))
            return held

        try:
            return await add_copy(self._chunks, chunk_id, good, good[0], target, replace)
        except FilesystemError as error:
            if error.errno == errno.EBADMSG:
                self.found_bad(chunk_id, good[0])
            raise

    async def _drop(self, chunk_id: ChunkId, servers: Iterable[str]) -> None:
        """Free the memory of copies that are too many, once the table durably has no use for them."""
        await self._meta.settle()
        for server in servers:
            await self._chunks.drop(server, [chunk_id])
