"""Sealed chunks fit their checksums, or nobody gets their bytes."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gridfs.chunk.chunks import LARGE_READ_BYTES, VERIFIED_S
from gridfs.chunk.packs import SMALL_MAX_BYTES
from gridfs.config import KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId
from tests.unit.chunk_server import ONE, THREE, TWO, Server, Slow
from tests.vfs.cluster import corrupt

SIZES = (5, 16 * KIB, SMALL_MAX_BYTES + 1)
"""Of which the last is hashed in a thread."""
IS_BAD = r"chunk \d/\d+ is bad: its bytes do not fit their checksum"


async def sealed(server: Server, size: int = 2 * MIB) -> bytes:
    """ONE and TWO, sealed together, with that content each."""
    content = random.Random(size).randbytes(size)
    for chunk_id in (ONE, TWO):
        await server.write(chunk_id, 0, content)
    await server.chunks.seal_together([ONE, TWO])
    return content


async def bad(server: Server, size: int = 1000) -> bytes:
    """As `sealed`, and ONE is known to be bad."""
    content = await sealed(server, size)
    corrupt(server.chunks, ONE)
    assert await server.chunks.verify(ONE) == "bad"
    return content


@asynccontextmanager
async def refused() -> AsyncIterator[None]:
    with pytest.raises(FilesystemError) as raised:
        yield
    assert raised.value.errno == errno.EBADMSG


async def read(server: Server, chunk_id: ChunkId, offset: int, length: int) -> bytes:
    """As the server reads for a client."""
    view, sent = await server.chunks.verified_read(chunk_id, offset, length)
    assert sent is None
    return bytes(view)


# -- verify ----------------------------------------------------------------------------------------------------------


async def test_verifying_tells_what_there_is_of_a_chunk(server: Server) -> None:
    await sealed(server, 100)
    await server.write(THREE, 0, b"x")
    chunk_ids = (ONE, THREE, ChunkId(99, 0))
    assert [await server.chunks.verify(chunk_id) for chunk_id in chunk_ids] == ["good", "open", "missing"]


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("place", [0.0, 0.5, 1.0])
async def test_one_wrong_byte_makes_a_chunk_bad_and_leaves_its_neighbour_good(server: Server, size: int, place: float) -> None:
    content = await sealed(server, size)
    corrupt(server.chunks, ONE, int(place * (size - 1)))
    assert [await server.chunks.verify(chunk_id) for chunk_id in (ONE, TWO)] == ["bad", "good"]
    async with refused():
        server.read(ONE, size - 1, 1)
    assert server.read(ONE, size) == b""
    assert server.read(TWO) == content
    assert server.chunks.used_bytes == 2 * size


@pytest.mark.expected_log(IS_BAD)
async def test_a_bad_chunk_is_logged_once(server: Server, caplog: pytest.LogCaptureFixture) -> None:
    await bad(server)
    for _ in range(3):
        assert await server.chunks.verify(ONE) == "bad"
        async with refused():
            await read(server, ONE, 0, 1000)
        assert not await server.chunks.seal(ONE)
    assert caplog.text.count("is bad") == 1


async def test_verifying_a_chunk_that_is_dropped_meanwhile_finds_it_missing(server: Server) -> None:
    await sealed(server)
    states = []

    async def verify() -> None:
        states.append(await server.chunks.verify(ONE))

    server.chunks._hashers.total_tokens = 1
    async with trio.open_nursery() as nursery, server.chunks._hashers:
        nursery.start_soon(verify)
        await wait_all_tasks_blocked()
        corrupt(server.chunks, ONE)
        server.chunks.drop(ONE)
    assert states == ["missing"]


# -- reading ---------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("size", SIZES)
async def test_a_chunk_read_whole_is_verified(server: Server, size: int) -> None:
    await sealed(server, size)
    corrupt(server.chunks, ONE, size - 1)
    async with refused():
        await read(server, ONE, 0, size)


@pytest.mark.expected_log(IS_BAD)
async def test_a_large_read_verifies_the_whole_chunk_and_a_small_one_does_not(server: Server) -> None:
    content = await sealed(server)
    corrupt(server.chunks, ONE, 0)
    assert await read(server, ONE, MIB, LARGE_READ_BYTES) == content[MIB:][:LARGE_READ_BYTES]
    async with refused():
        await read(server, ONE, MIB, LARGE_READ_BYTES + 1)


@pytest.mark.expected_log(IS_BAD)
async def test_a_chunk_is_verified_anew_when_that_is_long_ago(server: Server) -> None:
    content = await sealed(server)
    assert await read(server, ONE, 0, MIB) == content[:MIB]
    corrupt(server.chunks, ONE, MIB)
    server.now_s += VERIFIED_S
    assert await read(server, ONE, 0, MIB) == content[:MIB]
    server.now_s += 0.1
    async with refused():
        await read(server, ONE, 0, MIB)


async def test_others_are_served_while_a_chunk_is_hashed(server: Server) -> None:
    content = await sealed(server)
    server.chunks._hashers.total_tokens = 1
    async with trio.open_nursery() as nursery, server.chunks._hashers:
        nursery.start_soon(read, server, ONE, 0, MIB)
        await wait_all_tasks_blocked()
        assert await read(server, TWO, 0, 100) == content[:100]
        await server.write(THREE, 0, b"x")


# -- writing ---------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("known", [False, True])
@pytest.mark.parametrize("where", ["begin", "end", "behind"])
async def test_a_part_of_a_bad_chunk_cannot_be_overwritten(server: Server, size: int, known: bool, where: str) -> None:
    await sealed(server, size)
    corrupt(server.chunks, ONE, size // 2)
    assert not known or await server.chunks.verify(ONE) == "bad"
    async with refused():
        await server.write(ONE, {"begin": 0, "end": size - 1, "behind": size + 10}[where], b"x")
    async with refused():
        server.read(ONE)
    assert server.pool.lent_bytes == server.chunks.open_count == 0


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("more", [0, 100, 20_000])
async def test_a_bad_chunk_that_is_written_anew_as_a_whole_is_good(server: Server, more: int) -> None:
    await bad(server)
    new = random.Random(5).randbytes(1000 + more)
    assert await server.write(ONE, 0, new) == len(new)
    assert (server.read(ONE), await server.chunks.verify(ONE)) == (new, "open")
    assert await server.chunks.seal(ONE)
    assert await server.chunks.verify(ONE) == "good"


@pytest.mark.expected_log(IS_BAD)
async def test_a_bad_chunk_is_bad_until_the_last_byte_has_been_written_anew(server: Server) -> None:
    content = await bad(server)

    async def breaks_off(view: memoryview) -> None:
        view[:10] = content[:10]
        raise ConnectionError

    with pytest.raises(ConnectionError):
        await server.chunks.write(ONE, 0, 1000, breaks_off)
    async with refused():
        server.read(ONE)
    server.check()
    async with trio.open_nursery() as nursery:
        slow = Slow(content)
        nursery.start_soon(server.chunks.write, ONE, 0, 1000, slow)
        await wait_all_tasks_blocked()
        async with refused():
            server.read(ONE)
        assert await server.chunks.verify(ONE) == "bad"
        slow.go.set()
    assert server.read(ONE) == content


@pytest.mark.expected_log(IS_BAD)
async def test_a_dropped_bad_chunk_can_be_written_piece_by_piece(server: Server) -> None:
    await bad(server)
    server.chunks.drop(ONE)
    await server.write(ONE, 0, b"hel")
    await server.write(ONE, 3, b"lo")
    assert server.read(ONE) == b"hello"


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("known", [False, True])
async def test_what_truncate_leaves_of_a_bad_chunk_is_bad(server: Server, known: bool) -> None:
    await sealed(server, 1000)
    corrupt(server.chunks, ONE)
    assert not known or await server.chunks.verify(ONE) == "bad"
    await server.chunks.truncate(ONE, 500)
    async with refused():
        server.read(ONE, 100, 100)
    assert server.chunks.used_bytes == 1500
    await server.chunks.truncate(ONE, 0)
    await server.write(ONE, 2, b"x")
    assert server.read(ONE) == b"\0\0x"


# -- moving ----------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(IS_BAD)
async def test_packing_anew_does_not_launder_wrong_bytes(server: Server) -> None:
    chunk_ids = [ChunkId(9, index) for index in range(8)]
    for chunk_id in chunk_ids:
        await server.write(chunk_id, 0, b"hello")
    await server.chunks.seal_together(chunk_ids)
    for chunk_id in chunk_ids[:5]:
        server.chunks.drop(chunk_id)
    corrupt(server.chunks, chunk_ids[6])
    await server.chunks.repack()
    assert [await server.chunks.verify(chunk_id) for chunk_id in chunk_ids[5:]] == ["good", "bad", "good"]


@pytest.mark.expected_log(IS_BAD)
async def test_a_bad_chunk_does_not_get_an_object_of_its_own(server: Server) -> None:
    await sealed(server, 1000)
    corrupt(server.chunks, ONE)
    assert not await server.chunks.seal_alone(ONE)
    assert await server.chunks.verify(ONE) == "bad"
