"""Whatever is done to the chunks of a file, each hold of it reads as the file was."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import pytest

from gridfs.chunk.holds import Holds
from gridfs.config import KIB
from gridfs.types import ChunkId
from tests.unit.chunk_server import Server, overwrite
from tests.unit.test_chunks_held import PEER, hold, read

INO = 5


class Play:
    """A file's chunks and the holds of it, changed at random, beside what they ought to be."""

    def __init__(self, server: Server, holds: Holds, seed: int) -> None:
        self.server, self.holds, self.dice = server, holds, random.Random(seed)
        self.chunks: dict[int, bytearray] = {}
        self.jobs: dict[int, dict[int, bytes]] = {}
        self.steps = 0

    async def step(self) -> None:
        """Do something."""
        self.steps += 1
        index = self.dice.randrange(6)
        acts: list[Callable[[ChunkId, bytearray], Awaitable[None]]] = [
            *(self.write, self.write, self.patch, self.cut, self.drop),
            *(self.settle, self.hold, self.hold, self.release),
        ]
        await self.dice.choice(acts)(ChunkId(INO, index), self.chunks.get(index, bytearray()))

    async def write(self, chunk_id: ChunkId, model: bytearray) -> None:
        content = self.dice.randbytes(self.dice.choice((50, 300 * KIB)))
        self.chunks[chunk_id.index] = bytearray(content) + model[len(content) :]
        await self.server.write(chunk_id, 0, content)

    async def patch(self, chunk_id: ChunkId, model: bytearray) -> None:
        if len(model) > 100:
            await overwrite(self.server, model, self.dice.randrange(len(model) - 100), self.dice.randbytes(100), chunk_id)

    async def cut(self, chunk_id: ChunkId, model: bytearray) -> None:
        del model[len(model) // 2 :]
        await self.server.chunks.truncate(chunk_id, len(model))

    async def drop(self, chunk_id: ChunkId, _: bytearray) -> None:
        self.chunks.pop(chunk_id.index, None)
        self.server.chunks.drop(chunk_id)

    async def settle(self, *_: object) -> None:
        await self.server.chunks.seal_together([ChunkId(INO, index) for index in self.chunks])
        await self.server.chunks.repack()

    async def hold(self, *_: object) -> None:
        if self.chunks:
            await hold(self.holds, *(ChunkId(INO, index) for index in self.chunks), job=self.steps)
            self.jobs[self.steps] = {index: bytes(model) for index, model in self.chunks.items()}

    async def release(self, *_: object) -> None:
        if self.jobs:
            job, _chunks = self.jobs.popitem()
            await self.holds.release(PEER, job)


@pytest.mark.parametrize("seed", range(4))
async def test_whatever_is_written_held_and_released_each_hold_reads_as_it_was(server: Server, holds: Holds, seed: int) -> None:
    play = Play(server, holds, seed)
    for _ in range(300):
        await play.step()
        assert holds.check() == server.chunks.check() == []
        server.now_s += 1
    assert play.jobs
    for job, chunks in play.jobs.items():
        assert {index: await read(holds, ChunkId(INO, index), job=job) for index in chunks} == chunks
