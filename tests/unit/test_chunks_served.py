"""What a chunk server answers about packed, bad and verified chunks."""

from __future__ import annotations

import errno
from typing import Any

import pytest

from gridfs.chunk.server import ChunkService
from gridfs.config import GIB, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId, NodeSample
from tests.unit.chunk_server import ONE, THREE, TWO, giving
from tests.vfs.cluster import FakeObjects, corrupt

PEER: Any = None


@pytest.fixture
def service() -> ChunkService:
    return ChunkService(MIB, FakeObjects(), b"secret", lambda: NodeSample(64 * GIB, 32 * GIB, 0.0))


async def seal(service: ChunkService, chunk_ids: list[ChunkId], content: bytes) -> list[bool]:
    """Write those chunks and have them sealed."""
    for chunk_id in chunk_ids:
        await service.chunks.write(chunk_id, 0, len(content), giving(content))
    sealed: list[bool] = (await service.methods["seal"](PEER, [tuple(chunk_id) for chunk_id in chunk_ids])).result
    return sealed


async def test_chunks_that_are_sealed_on_request_share_an_object(service: ChunkService) -> None:
    assert await seal(service, [ONE, TWO, THREE], b"hello") == [True] * 3
    one, two = service.chunks.find(ONE), service.chunks.find(TWO)
    assert one is not None
    assert two is not None
    assert one.pack is two.pack is not None


async def test_dead_bytes_of_packs_are_not_free(service: ChunkService) -> None:
    await seal(service, [ONE, TWO, THREE], bytes(100 * KIB))
    assert service.free_bytes == MIB - 300 * KIB
    service.chunks.drop(ONE)
    service.chunks.drop(TWO)
    assert service.free_bytes == MIB - 300 * KIB
    await service.chunks.repack()
    assert service.free_bytes == MIB - 100 * KIB


@pytest.mark.expected_log("is bad")
async def test_chunks_are_verified_on_request_and_bad_ones_are_not_read(service: ChunkService) -> None:
    await seal(service, [ONE, TWO], b"hello")
    await service.chunks.write(THREE, 0, 5, giving(b"hello"))
    corrupt(service.chunks, ONE)
    chunk_ids = [tuple(ONE), tuple(TWO), tuple(THREE), (99, 0)]
    assert (await service.methods["verify"](PEER, chunk_ids)).result == ["bad", "good", "open", "missing"]
    with pytest.raises(FilesystemError) as raised:
        await service.methods["read"](PEER, *ONE, 0, 1)
    assert raised.value.errno == errno.EBADMSG


@pytest.mark.expected_log("is bad")
async def test_a_ref_is_of_an_object_that_holds_that_chunk_alone(service: ChunkService) -> None:
    await seal(service, [ONE, TWO, THREE], b"hello")
    assert (await service.chunks.ref(TWO)).memory == b"hello"
    corrupt(service.chunks, THREE)
    with pytest.raises(FilesystemError) as raised:
        await service.chunks.ref(THREE)
    assert raised.value.errno == errno.EBADMSG


async def test_an_idle_chunk_has_no_lock(service: ChunkService) -> None:
    """There are many chunks, and few are written at a time."""

    async def breaks_off(view: memoryview) -> None:
        raise ConnectionError

    await seal(service, [ONE], b"hello")
    with pytest.raises(ConnectionError):
        await service.chunks.write(ONE, 0, 1, breaks_off)
    one = service.chunks.find(ONE)
    assert one is not None
    assert one.lock is None
