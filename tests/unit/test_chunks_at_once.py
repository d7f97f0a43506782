"""Chunks that are written, sealed, cut and dropped at the same time, and when memory for open chunks is short."""

from __future__ import annotations

import errno
import random
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gridfs.chunk.patch import PATCHED_MIN_BYTES
from gridfs.chunk.sealer import POOL_WAIT_S
from gridfs.config import KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId
from tests.unit.chunk_server import ONE, THREE, TWO, Server, Slow
from tests.vfs.cluster import corrupt


class Pause:
    """`putting` is set once an object is being put; it is put when `on` is set."""

    def __init__(self) -> None:
        self.putting, self.on = trio.Event(), threading.Event()


@asynccontextmanager
async def paused_put(server: Server) -> AsyncIterator[Pause]:
    """The next objects are put when told to, or at the end."""
    pause, token = Pause(), trio.lowlevel.current_trio_token()

    def before_put() -> None:
        token.run_sync_soon(pause.putting.set)
        assert pause.on.wait(10), "what changes a chunk must not wait for the pack"

    server.objects.before_put = before_put
    try:
        yield pause
    finally:
        pause.on.set()


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


@pytest.mark.parametrize("change", ["write", "grow", "cut", "empty", "drop", "anew"])
@pytest.mark.parametrize("sealed", [False, True])
async def test_a_change_overtakes_the_pack_that_is_being_made(server: Server, change: str, sealed: bool) -> None:
    """Open chunks that are sealed, and sealed ones that are packed anew: both end with the bytes of the change."""
    for chunk_id in (ONE, TWO, THREE):
        await server.write(chunk_id, 0, b"hello")
    if sealed:
        await server.chunks.seal_together([ONE, TWO, THREE])
        server.chunks.drop(TWO)
        server.chunks.packs.to_repack = lambda: list(server.chunks.packs.small)  # type: ignore[method-assign]
    async with trio.open_nursery() as nursery, paused_put(server) as go:
        nursery.start_soon(server.chunks.repack if sealed else partial(server.chunks.seal_together, [ONE, THREE]))
        await go.putting.wait()
        if change in ("write", "grow"):
            await server.write(ONE, 0 if change == "write" else 20_000, b"J")
        elif change in ("cut", "empty"):
            await server.chunks.truncate(ONE, 2 if change == "cut" else 0)
        else:
            server.chunks.drop(ONE)
        if change == "anew":
            await server.write(ONE, 0, b"other")
        assert server.chunks.check() == []
        go.on.set()
    grown = b"hello".ljust(20_000, b"\0") + b"J"
    wanted = {"write": b"Jello", "grow": grown, "cut": b"he", "empty": b"", "drop": b"", "anew": b"other"}
    assert (server.read(ONE), server.chunks.is_sealed(ONE)) == (wanted[change], False)
    assert (server.read(THREE), server.chunks.is_sealed(THREE)) == (b"hello", True)
    assert await server.chunks.verify(THREE) == "good"


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_chunk_that_is_being_written_when_its_pack_is_ready_is_not_in_it(server: Server, sealed: bool) -> None:
    for chunk_id in (ONE, TWO):
        await server.write(chunk_id, 0, b"hello")
    if sealed:
        await server.chunks.seal_together([ONE, TWO])
    slow = Slow(b"J")
    async with trio.open_nursery() as nursery, paused_put(server) as go:
        nursery.start_soon(server.chunks.seal_alone if sealed else server.chunks.seal, ONE)
        await go.putting.wait()
        nursery.start_soon(server.chunks.write, ONE, 0, 1, slow)
        await wait_all_tasks_blocked(0.01)
        go.on.set()
        async with server.chunks._sealer._packing:
            assert not server.chunks.is_sealed(ONE)
        slow.go.set()
    assert server.read(ONE) == b"Jello"


@pytest.mark.expected_log("is bad")
async def test_a_chunk_found_bad_while_it_is_copied_stays_bad(server: Server) -> None:
    """Though the copy was made before, and is good: nobody is told two things of one chunk."""
    for chunk_id in (ONE, TWO):
        await server.write(chunk_id, 0, b"hello")
    await server.chunks.seal_together([ONE, TWO])
    async with trio.open_nursery() as nursery, paused_put(server) as go:
        nursery.start_soon(server.chunks.seal_alone, TWO)
        await go.putting.wait()
        corrupt(server.chunks, TWO)
        assert await server.chunks.verify(TWO) == "bad"
        go.on.set()
    assert not server.chunks.is_sealed(TWO)
    assert await server.chunks.verify(TWO) == "bad"


async def test_chunks_that_several_want_to_seal_are_sealed_once(server: Server) -> None:
    for chunk_id in (ONE, TWO):
        await server.write(chunk_id, 0, b"hello")
    async with trio.open_nursery() as nursery:
        for _ in range(3):
            nursery.start_soon(server.chunks.seal_together, [ONE, TWO])
    assert server.objects.puts == 1


async def change_at_random(server: Server, ino: int, length_max: int) -> None:
    """Change chunks of this inode up to that length, and read after each change what they must hold."""
    dice, models = random.Random(ino), {ChunkId(ino, index): bytearray() for index in range(8)}
    for _ in range(400):
        chunk_id, at, size = ChunkId(ino, dice.randrange(8)), dice.randrange(length_max), dice.choice((1, 300, 20_000))
        model, action = models[chunk_id], dice.choice(["write", "write", "write", "cut", "drop", "alone", "read", "read"])
        if action == "write":
            content = dice.randbytes(size)
            model.extend(bytes(max(0, at + size - len(model))))
            model[at : at + size] = content
            await server.write(chunk_id, at, content)
        elif action == "cut":
            await server.chunks.truncate(chunk_id, at)
            del model[at:]
        elif action == "drop":
            server.chunks.drop(chunk_id)
            model.clear()
        elif action == "alone":
            await server.chunks.seal_alone(chunk_id)
        view, sent = await server.chunks.verified_read(chunk_id, 0, len(model) + 1)
        await trio.lowlevel.checkpoint()
        assert view == model
        if sent is not None:
            sent()


@pytest.mark.parametrize(("length_max", "limit_bytes"), [(30_000, MIB), (300_000, 3 * MIB)])
async def test_chunks_are_changed_by_many_while_all_are_sealed_packed_and_verified(length_max: int, limit_bytes: int) -> None:
    """Those of the second kind are patched as well."""
    server, patched = Server(limit_bytes), 0

    async def disturb() -> None:
        nonlocal patched
        while True:
            await trio.lowlevel.checkpoint()
            patched += sum(chunk.patch is not None for chunk in server.chunks.opened.values())
            chunk_ids = [ChunkId(ino, index) for ino, index, _ in server.chunks.inventory()]
            await server.chunks.seal_together(chunk_ids[::2])
            await server.chunks.repack()
            assert "bad" not in [await server.chunks.verify(chunk_id) for chunk_id in chunk_ids]
            assert server.chunks.check() == []

    async with trio.open_nursery() as background:
        background.start_soon(disturb)
        async with trio.open_nursery() as nursery:
            for ino in range(10, 14):
                nursery.start_soon(change_at_random, server, ino, length_max)
        background.cancel_scope.cancel()
    assert server.objects.puts > 50
    assert (patched > 20) == (length_max > PATCHED_MIN_BYTES), patched
    server.check()


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
    chunk.lock = trio.Lock()
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


async def test_when_the_pool_is_short_of_small_buffers_half_of_them_are_sealed_together() -> None:
    server = Server(limit_bytes=64 * 16 * KIB)
    chunk_ids = [ChunkId(7, index) for index in range(65)]
    for chunk_id in chunk_ids:
        await server.write(chunk_id, 0, b"%d" % chunk_id.index)
    assert [server.is_sealed(chunk_id) for chunk_id in chunk_ids] == [True] * 32 + [False] * 33
    assert server.objects.puts == 1
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
