"""Chunks that are written, sealed, cut and dropped at the same time, and when memory for open chunks is short."""

from __future__ import annotations

import errno
from collections.abc import Iterator

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gridfs.chunk.chunks import POOL_WAIT_S
from gridfs.config import KIB, MIB
from gridfs.errors import FilesystemError
from tests.unit.chunk_server import ONE, THREE, TWO, Server, Slow


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.check()


# -- at the same time ------------------------------------------------------------------------------------------------


async def test_a_chunk_written_while_it_is_sealed_stays_open_with_the_new_bytes(server: Server) -> None:
    await server.write(ONE, 0, b"hello")
    async with trio.open_nursery() as nursery:
        slow = Slow(b"J")
        nursery.start_soon(server.chunks.write, ONE, 0, 1, slow)
        await wait_all_tasks_blocked()
        assert not await server.chunks.seal(ONE)
        slow.go.set()
    assert server.read(ONE) == b"Jello"


async def test_a_seal_that_a_write_overtakes_is_void(server: Server) -> None:
    await server.write(ONE, 0, b"hello")
    results = []

    async def seal() -> None:
        results.append(await server.chunks.seal(ONE))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(seal)
        while not getattr(server.chunks.find(ONE), "sealing", False):
            await trio.lowlevel.checkpoint()
        await server.write(ONE, 0, b"J")
    assert results == [False]
    assert (server.read(ONE), server.is_sealed(ONE)) == (b"Jello", False)


async def test_writes_to_one_chunk_take_turns(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        first, second = Slow(b"aaaa"), Slow(b"bb")
        nursery.start_soon(server.chunks.write, ONE, 0, 4, first)
        await wait_all_tasks_blocked()
        nursery.start_soon(server.chunks.write, ONE, 2, 2, second)
        await wait_all_tasks_blocked()
        second.go.set()
        await wait_all_tasks_blocked()
        first.go.set()
    assert server.read(ONE) == b"aabb"


async def test_a_write_to_a_chunk_dropped_meanwhile_does_not_reach_another_chunk(server: Server) -> None:
    async with trio.open_nursery() as nursery:
        slow = Slow(b"stale")
        nursery.start_soon(server.chunks.write, ONE, 0, 5, slow)
        await wait_all_tasks_blocked()
        server.chunks.drop(ONE)
        await server.write(TWO, 0, b"fresh")
        slow.go.set()
    assert server.read(TWO) == b"fresh"
    assert server.read(ONE) == b""


@pytest.mark.parametrize("sealed", [False, True])
@pytest.mark.parametrize("length", [0, 1])
async def test_a_truncate_of_a_chunk_dropped_meanwhile_frees_nothing_twice(server: Server, sealed: bool, length: int) -> None:
    await server.write(ONE, 0, b"hello")
    if sealed:
        assert await server.chunks.seal(ONE)
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    chunk.lock = trio.Lock()
    async with trio.open_nursery() as nursery, chunk.lock:
        nursery.start_soon(server.chunks.truncate, ONE, length)
        await wait_all_tasks_blocked()
        server.chunks.drop(ONE)
    assert server.chunks.used_bytes == 0


async def test_a_truncate_that_waits_for_memory_while_the_chunk_is_dropped_takes_none() -> None:
    server = Server(limit_bytes=16 * KIB)
    await server.sealed(ONE, b"hello")
    async with trio.open_nursery() as nursery:
        slow = Slow(b"x")
        nursery.start_soon(server.chunks.write, TWO, 0, 1, slow)
        await wait_all_tasks_blocked()
        nursery.start_soon(server.chunks.truncate, ONE, 1)
        await wait_all_tasks_blocked()
        server.chunks.drop(ONE)
        slow.go.set()
    server.check()


async def test_a_write_that_breaks_off_on_a_chunk_dropped_meanwhile_gives_its_buffer_back(server: Server) -> None:
    async def break_off() -> None:
        async def breaks_off(view: memoryview) -> None:
            raise ConnectionError

        with pytest.raises(ConnectionError):
            await server.chunks.write(ONE, 0, 4, breaks_off)

    await server.write(ONE, 0, b"hello")
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert chunk.lock is not None
    async with trio.open_nursery() as nursery, chunk.lock:
        nursery.start_soon(break_off)
        await wait_all_tasks_blocked()
        server.chunks.drop(ONE)
    assert server.pool.lent_bytes == 0


# -- a short pool ----------------------------------------------------------------------------------------------------


async def test_when_the_pool_is_short_the_chunk_opened_longest_ago_is_sealed() -> None:
    server = Server(limit_bytes=32 * KIB)
    for chunk_id in (ONE, TWO, THREE):
        await server.write(chunk_id, 0, b"%d" % chunk_id.index)
    assert [server.is_sealed(chunk_id) for chunk_id in (ONE, TWO, THREE)] == [True, False, False]
    assert [server.read(chunk_id) for chunk_id in (ONE, TWO, THREE)] == [b"0", b"1", b"0"]
    server.check()


async def test_a_chunk_can_be_sealed_to_make_room_for_its_own_growth() -> None:
    server = Server(limit_bytes=MIB)
    await server.write(ONE, 0, b"hello")
    await server.write(ONE, MIB - 1, b"!")
    assert server.read(ONE) == b"hello" + bytes(MIB - 6) + b"!"
    server.check()


async def test_without_memory_for_another_open_chunk_a_write_is_enospc(autojump_clock: MockClock) -> None:
    server = Server(limit_bytes=16 * KIB)
    async with trio.open_nursery() as nursery:
        slow = Slow(b"slow")
        nursery.start_soon(server.chunks.write, ONE, 0, 4, slow)
        await wait_all_tasks_blocked()
        started_s = trio.current_time()
        with pytest.raises(FilesystemError) as raised:
            await server.write(TWO, 0, b"x")
        assert raised.value.errno == errno.ENOSPC
        assert trio.current_time() - started_s == pytest.approx(POOL_WAIT_S, abs=1)
        slow.go.set()
    assert server.read(ONE) == b"slow"
    server.check()


async def test_a_write_goes_on_as_soon_as_a_buffer_comes_back(autojump_clock: MockClock) -> None:
    server = Server(limit_bytes=16 * KIB)
    await server.write(ONE, 0, b"hello")
    _, sent = server.chunks.read(ONE, 0, 5)
    assert sent is not None
    server.chunks.drop(ONE)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.write, TWO, 0, b"x")
        await wait_all_tasks_blocked()
        assert server.read(TWO) == b""
        sent()
    assert server.read(TWO) == b"x"
