"""Chunks over fake objects, and bytes that arrive when they are told to."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable

import trio

from gridfs.chunk.chunks import Chunks
from gridfs.chunk.patch import PATCHED_MIN_BYTES
from gridfs.chunk.pool import BufferPool
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.types import ChunkId
from tests.vfs.cluster import FakeObjects

ONE, TWO, THREE = ChunkId(5, 0), ChunkId(5, 1), ChunkId(6, 0)
PATCHABLE_BYTES = PATCHED_MIN_BYTES + 1000
"""The length of a chunk that small writes do not open; its last block is a short one."""


class Server:
    """Chunks over fake objects, with a clock that stands until it is moved."""

    def __init__(self, limit_bytes: int = 64 * MIB) -> None:
        self.now_s = 1000.0
        self.objects = FakeObjects()
        self.pool = BufferPool(limit_bytes, limit_bytes)
        self.chunks = Chunks(self.objects, self.pool, lambda: self.now_s)

    async def write(self, chunk_id: ChunkId, offset: int, content: bytes) -> int:
        return await self.chunks.write(chunk_id, offset, len(content), giving(content))

    def read(self, chunk_id: ChunkId, offset: int = 0, length: int = CHUNK_SIZE_BYTES) -> bytes:
        view, sent = self.chunks.read(chunk_id, offset, length)
        content = bytes(view)
        if sent is not None:
            sent()
        return content

    async def sealed(self, chunk_id: ChunkId, content: bytes) -> None:
        await self.write(chunk_id, 0, content)
        assert await self.chunks.seal(chunk_id)

    def check(self) -> None:
        """Assert the invariants of chunks and pool."""
        assert self.chunks.check() == []
        chunks = self.chunks.chunks.values()
        patches_bytes = sum(chunk.patch.size_bytes for chunk in chunks if chunk.patch is not None)
        assert self.pool.lent_bytes == sum(len(chunk.buffer or b"") for chunk in chunks) + patches_bytes

    def is_sealed(self, chunk_id: ChunkId) -> bool:
        return self.chunks.is_sealed(chunk_id)


async def at_rest(server: Server, chunk_id: ChunkId = ONE, size: int = PATCHABLE_BYTES) -> bytearray:
    """A chunk at rest, and what it holds."""
    content = random.Random(size).randbytes(size)
    await server.sealed(chunk_id, content)
    return bytearray(content)


async def overwrite(server: Server, model: bytearray, offset: int, content: bytes, chunk_id: ChunkId = ONE) -> None:
    """Write to the chunk and to its model."""
    model[offset : offset + len(content)] = content
    assert await server.write(chunk_id, offset, content) == len(model)


def giving(content: bytes) -> Callable[[memoryview], Awaitable[None]]:
    """Receives `content` at once."""

    async def receive(view: memoryview) -> None:
        view[:] = content

    return receive


class Slow:
    """Receives `content` when told to."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.asked, self.go = trio.Event(), trio.Event()

    async def __call__(self, view: memoryview) -> None:
        self.asked.set()
        await self.go.wait()
        view[:] = self.content
