"""Having the chunk servers verify what they hold, all of them at once and at a bounded rate."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

import trio

from gridfs.chunk.client import FETCH, WRITE, ChunkClient
from gridfs.config import MIB
from gridfs.errors import FilesystemError
from gridfs.fsck.pace import Pace
from gridfs.types import ChunkId, PlacementMap

log = logging.getLogger(__name__)

BATCH_BYTES = 8 * MIB
"""A server verifies so much for one request, or one chunk if that is more: little enough to be answered in time."""
BATCH_CHUNKS = 256

BAD, MISSING, OPEN, SILENT = "bad", "missing", "open", "silent"
"""What a copy may be that was not found to be good: the first three as the chunk server says."""

Copies = dict[str, list[ChunkId]]
"""Server -> the chunks that it is to hold."""
Advance = Callable[[int, int], None]
"""Takes how many bytes are done, of how many."""


@dataclass(slots=True)
class Walked:
    """What was found. A copy that is not in `states` is good, if it was asked for."""

    copies: int = 0
    size_bytes: int = 0
    """Of the copies that were verified, good or bad."""
    open_copies: int = 0
    states: dict[ChunkId, dict[str, str]] = field(default_factory=lambda: defaultdict(dict))
    silent: dict[str, str] = field(default_factory=dict)
    """Server -> why it could not be asked."""

    def enter(self, server: str, chunk_id: ChunkId, state: str, size_bytes: int) -> None:
        """What a server has said of its copy."""
        if state in (BAD, MISSING, OPEN):
            self.states[chunk_id][server] = state
        if state == OPEN:
            self.open_copies += 1
        elif state != MISSING:
            self.copies += 1
            self.size_bytes += size_bytes


class Walker:
    """Asks chunk servers, as a client without a session. Owned by one task; nothing works outside `Walker.serving`.

    `inventories` are taken on each server's write stream: on that stream the server refuses to `trim` what was written since.
    """

    def __init__(self, chunks: ChunkClient, pace: Pace, advance: Advance) -> None:
        self.chunks, self.pace, self._advance = chunks, pace, advance
        self.inventories: dict[str, dict[ChunkId, int]] = {}
        self._done_bytes = self._total_bytes = 0

    @staticmethod
    @asynccontextmanager
    async def serving(
        secret: bytes, placement: Callable[[], PlacementMap], pace: Pace, advance: Advance
    ) -> AsyncIterator[Walker]:
        """A walker for the length of the context. `placement` gives the newest map."""
        identity = {"role": "client", "client": uuid4().hex, "epoch": 0}
        chunks = ChunkClient(secret, lambda: identity, placement, trio.lowlevel.checkpoint)
        failure: BaseException | None = None
        async with trio.open_nursery() as nursery:
            await nursery.start(chunks.run)
            try:
                yield Walker(chunks, pace, advance)
            except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised below: the nursery would make it a group
                failure = error
            nursery.cancel_scope.cancel()
        if failure is not None:
            raise failure

    async def walk(self, copies: Copies) -> Walked:
        """Have all of the copies verified. Servers that do not answer are told of in the result, and so are their copies."""
        walked = Walked()
        async with trio.open_nursery() as nursery:
            for server in copies:
                nursery.start_soon(self._take_inventory, server, walked)
        lengths = {server: self.inventories.get(server, {}) for server in copies}
        self._done_bytes = 0
        self._total_bytes = sum(lengths[server].get(chunk_id, 0) for server in copies for chunk_id in copies[server])
        async with trio.open_nursery() as nursery:
            for server, chunk_ids in copies.items():
                nursery.start_soon(self._verify, server, chunk_ids, walked)
        return walked

    async def ask(self, server: str, stream: str, method: str, *arguments: Any) -> Any:
        """The answer of a chunk server. Raises FilesystemError."""
        return (await self.chunks.link(server).call(stream, method, *arguments)).result

    async def _take_inventory(self, server: str, walked: Walked) -> None:
        if server in self.inventories:
            return
        lengths: dict[ChunkId, int] = {}
        try:
            while page := await self.ask(server, WRITE, "inventory"):
                lengths.update((ChunkId(ino, index), length) for ino, index, length in page)
            self.inventories[server] = lengths
        except FilesystemError as error:
            walked.silent[server] = str(error.strerror)

    async def _verify(self, server: str, chunk_ids: list[ChunkId], walked: Walked) -> None:
        lengths, asked = self.inventories.get(server, {}), 0
        if server not in walked.silent:
            try:
                for batch in batches(chunk_ids, lengths):
                    size_bytes = sum(lengths.get(chunk_id, 0) for chunk_id in batch)
                    await self.pace.keep(size_bytes)
                    for chunk_id, state in zip(batch, await self._states(server, batch), strict=True):
                        walked.enter(server, chunk_id, state, lengths.get(chunk_id, 0))
                    asked += len(batch)
                    self._progress(size_bytes)
            except FilesystemError as error:
                log.info("%s is asked no more: %s", server, error.strerror)
                walked.silent[server] = str(error.strerror)
        for chunk_id in chunk_ids[asked:]:
            walked.states[chunk_id][server] = SILENT
            self._progress(lengths.get(chunk_id, 0))

    async def _states(self, server: str, batch: list[ChunkId]) -> list[str]:
        """What each copy is; those that are open are sealed first, if nobody writes to them."""
        states: list[str] = await self.ask(server, FETCH, "verify", batch)
        opened = [chunk_id for chunk_id, state in zip(batch, states, strict=True) if state == OPEN]
        if not opened:
            return states
        await self.ask(server, FETCH, "seal", opened)
        again = dict(zip(opened, await self.ask(server, FETCH, "verify", opened), strict=True))
        return [again.get(chunk_id, state) for chunk_id, state in zip(batch, states, strict=True)]

    def _progress(self, size_bytes: int) -> None:
        self._done_bytes += size_bytes
        self._advance(self._done_bytes, self._total_bytes)


def batches(chunk_ids: Iterable[ChunkId], lengths: dict[ChunkId, int]) -> Iterator[list[ChunkId]]:
    """The chunks in order, as many together as one request may be about."""
    batch: list[ChunkId] = []
    size_bytes = 0
    for chunk_id in chunk_ids:
        length = lengths.get(chunk_id, 0)
        if batch and (size_bytes + length > BATCH_BYTES or len(batch) == BATCH_CHUNKS):
            yield batch
            batch, size_bytes = [], 0
        batch.append(chunk_id)
        size_bytes += length
    if batch:
        yield batch
