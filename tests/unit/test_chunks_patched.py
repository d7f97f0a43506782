"""Small writes to sealed chunks lie beside the sealed bytes, until all of it is sealed anew."""

from __future__ import annotations

import errno
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from gridfs.chunk.chunks import VERIFIED_S
from gridfs.chunk.patch import BLOCK_BYTES, PATCHED_MIN_BYTES, PATCHING_MAX_BYTES
from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId
from tests.unit.chunk_server import ONE, PATCHABLE_BYTES, THREE, TWO, Server, Slow, at_rest, overwrite
from tests.vfs.cluster import corrupt

SLAB = 16 * KIB
IS_BAD = r"chunk \d/\d+ is bad: its bytes do not fit their checksum"


@asynccontextmanager
async def refused(code: int = errno.EBADMSG) -> AsyncIterator[None]:
    with pytest.raises(FilesystemError) as raised:
        yield
    assert raised.value.errno == code


# -- writing and reading ---------------------------------------------------------------------------------------------


async def test_a_small_write_to_a_full_sealed_chunk_costs_a_block_and_no_object(server: Server) -> None:
    model = await at_rest(server, size=CHUNK_SIZE_BYTES)
    await overwrite(server, model, 5 * MIB, bytes(4 * KIB))
    assert (server.pool.lent_bytes, server.objects.puts, server.chunks.packs.size_bytes) == (SLAB, 1, CHUNK_SIZE_BYTES)
    assert (server.chunks.open_count, server.is_sealed(ONE), server.chunks.is_full(ONE)) == (1, False, False)
    assert server.chunks.used_bytes == CHUNK_SIZE_BYTES
    assert server.read(ONE) == model


async def test_four_blocks_share_a_slab_and_a_block_written_twice_is_one(server: Server) -> None:
    model = await at_rest(server)
    for at in (0, 1, 2, 3, 3, 1, 0):
        await overwrite(server, model, at * BLOCK_BYTES, b"x" * BLOCK_BYTES)
        assert server.pool.lent_bytes == SLAB
    await overwrite(server, model, 4 * BLOCK_BYTES, b"x")
    assert server.pool.lent_bytes == 2 * SLAB
    assert server.read(ONE) == model


@pytest.mark.parametrize("offset", [0, 1, BLOCK_BYTES - 1, BLOCK_BYTES, 50_000, PATCHABLE_BYTES - PATCHING_MAX_BYTES])
@pytest.mark.parametrize("length", [1, 2, BLOCK_BYTES, BLOCK_BYTES + 1, PATCHING_MAX_BYTES])
async def test_what_is_written_lies_over_the_sealed_bytes(server: Server, offset: int, length: int) -> None:
    model, dice = await at_rest(server), random.Random(offset)
    await overwrite(server, model, offset, dice.randbytes(length))
    await overwrite(server, model, PATCHABLE_BYTES - 3, b"end")
    await overwrite(server, model, offset + length // 2, b"!")
    assert server.read(ONE) == model
    for _ in range(50):
        start, size = dice.randrange(PATCHABLE_BYTES), dice.choice((1, 100, 10_000))
        assert server.read(ONE, start, size) == model[start : start + size]
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert chunk.patch is not None


@pytest.mark.parametrize(
    ("size", "offset", "length"),
    [
        (PATCHED_MIN_BYTES, 0, 1),
        (PATCHABLE_BYTES, PATCHABLE_BYTES, 1),
        (PATCHABLE_BYTES, PATCHABLE_BYTES - 1, 2),
        (PATCHABLE_BYTES, 0, PATCHING_MAX_BYTES + 1),
        (PATCHABLE_BYTES, 0, PATCHABLE_BYTES),
    ],
)
@pytest.mark.parametrize("patched", [False, True])
async def test_a_write_that_is_large_or_grows_the_chunk_and_one_to_a_short_chunk_open_it(
    server: Server, size: int, offset: int, length: int, patched: bool
) -> None:
    model = await at_rest(server, size=size)
    if patched:
        await overwrite(server, model, 1000, b"patched")
    await overwrite(server, model, offset, b"x" * length)
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert (chunk.buffer is not None, chunk.patch, server.chunks.packs.size_bytes) == (True, None, 0)
    assert server.read(ONE) == model


async def test_a_read_beside_the_patch_is_not_copied_and_one_over_it_is(server: Server) -> None:
    model = await at_rest(server)
    before, _ = server.chunks.read(ONE, 0, PATCHABLE_BYTES)
    await overwrite(server, model, BLOCK_BYTES, b"first")
    beside, sent = server.chunks.read(ONE, 3 * BLOCK_BYTES, 100)
    assert (beside.obj is before.obj, sent) == (True, None)
    over, sent = server.chunks.read(ONE, BLOCK_BYTES, 5)
    await overwrite(server, model, BLOCK_BYTES, b"other")
    assert (bytes(over), sent, server.read(ONE, BLOCK_BYTES, 5)) == (b"first", None, b"other")


async def test_a_write_that_breaks_off_leaves_the_old_bytes(server: Server) -> None:
    async def breaks_off(view: memoryview) -> None:
        view[:] = b"X" * len(view)
        raise ConnectionError

    model = await at_rest(server)
    for _ in range(2):
        with pytest.raises(ConnectionError):
            await server.chunks.write(ONE, 10, 10_000, breaks_off)
        assert server.read(ONE) == model
        server.check()
        await overwrite(server, model, 0, b"patched")
    assert server.pool.lent_bytes == SLAB


async def test_the_bytes_of_a_write_stay_as_received_while_they_are_sent_on(server: Server) -> None:
    views = []

    async def receive(view: memoryview) -> None:
        view[:] = b"first"
        views.append(view)

    model = await at_rest(server)
    await server.chunks.write(ONE, 10, 5, receive)
    release = server.chunks.pin(ONE)
    await overwrite(server, model, 10, b"other")
    server.chunks.drop(ONE)
    assert bytes(views[0]) == b"first"
    release()


@pytest.mark.parametrize("length", [0, 1, 10, PATCHABLE_BYTES - 1])
async def test_a_patched_chunk_is_cut(server: Server, length: int) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 5, b"x" * 10_000)
    await server.chunks.truncate(ONE, length)
    assert server.read(ONE) == model[:length]
    await server.write(ONE, PATCHABLE_BYTES, b"!")
    assert server.read(ONE) == model[:length].ljust(PATCHABLE_BYTES, b"\0") + b"!"


async def test_dropping_a_patched_chunk_frees_all_of_it(server: Server) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 5, b"x")
    server.chunks.drop(ONE)
    assert (server.pool.lent_bytes, server.chunks.open_count, server.chunks.packs.size_bytes) == (0, 0, 0)


@pytest.mark.parametrize("anew", [False, True])
async def test_a_patch_for_a_chunk_that_is_dropped_meanwhile_goes_nowhere(server: Server, anew: bool) -> None:
    await at_rest(server)
    async with trio.open_nursery() as nursery:
        slow = Slow(b"stale")
        nursery.start_soon(server.chunks.write, ONE, 0, 5, slow)
        await slow.asked.wait()
        server.chunks.drop(ONE)
        if anew:
            await server.write(ONE, 0, b"fresh")
        slow.go.set()
    assert server.read(ONE) == (b"fresh" if anew else b"")


# -- wrong bytes -----------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(IS_BAD)
async def test_the_first_patch_verifies_the_chunk(server: Server) -> None:
    await at_rest(server)
    corrupt(server.chunks, ONE, PATCHABLE_BYTES // 2)
    async with refused():
        await server.write(ONE, 0, b"x")
    assert (await server.chunks.verify(ONE), server.pool.lent_bytes, server.chunks.open_count) == ("bad", 0, 0)


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("way", ["seal", "alone", "verify", "grow", "read"])
async def test_wrong_bytes_under_a_patch_are_found_before_they_get_a_new_checksum(server: Server, way: str) -> None:
    """Also when the byte that is wrong has been copied into a block, or overwritten."""
    model = await at_rest(server)
    await overwrite(server, model, 0, b"x")
    corrupt(server.chunks, ONE, 100)
    corrupt(server.chunks, ONE, 60_000)
    await overwrite(server, model, 60_000, b"x")
    if way in ("seal", "alone"):
        assert not await (server.chunks.seal if way == "seal" else server.chunks.seal_alone)(ONE)
    elif way == "grow":
        async with refused():
            await server.write(ONE, PATCHABLE_BYTES, b"x")
    elif way == "read":
        server.now_s += VERIFIED_S + 1
        async with refused():
            await server.chunks.verified_read(ONE, 0, PATCHABLE_BYTES)
    assert await server.chunks.verify(ONE) == "bad"
    assert (server.pool.lent_bytes, server.chunks.open_count) == (0, 0)
    async with refused():
        server.read(ONE, 0, 1)


@pytest.mark.expected_log(IS_BAD)
async def test_a_chunk_found_bad_while_a_patch_arrives_does_not_take_it(server: Server) -> None:
    await at_rest(server)
    async with trio.open_nursery() as nursery:
        slow = Slow(b"slow")

        async def write() -> None:
            async with refused():
                await server.chunks.write(ONE, 0, 4, slow)

        nursery.start_soon(write)
        await slow.asked.wait()
        corrupt(server.chunks, ONE)
        assert await server.chunks.verify(ONE) == "bad"
        slow.go.set()
    assert server.pool.lent_bytes == 0


# -- a short pool ----------------------------------------------------------------------------------------------------


async def test_when_the_pool_is_short_the_chunk_with_the_largest_patch_is_sealed() -> None:
    server = Server(limit_bytes=MIB)
    models = {chunk_id: await at_rest(server, chunk_id) for chunk_id in (ONE, TWO, THREE)}
    slabs = {ONE: 1, TWO: 3, THREE: 2}
    held = server.pool.lend(128 * KIB)
    server.pool.limit_bytes = 128 * KIB + 6 * SLAB
    for chunk_id, count in slabs.items():
        for slab in range(count):
            await overwrite(server, models[chunk_id], slab * SLAB, b"x" * SLAB, chunk_id)
    assert held is not None
    server.pool.give_back(held)
    server.pool.limit_bytes = 6 * SLAB
    await overwrite(server, models[ONE], PATCHABLE_BYTES - 1, b"x")
    assert [server.is_sealed(chunk_id) for chunk_id in slabs] == [False, True, False]
    for chunk_id, model in models.items():
        assert server.read(chunk_id) == model
    server.check()


@pytest.mark.parametrize(("open_chunks", "goes"), [(1, "patch"), (2, "buffer")])
async def test_memory_comes_back_from_patches_or_buffers_whichever_take_more(open_chunks: int, goes: str) -> None:
    server = Server(limit_bytes=MIB)
    model = await at_rest(server)
    for chunk_id in (TWO, THREE)[:open_chunks]:
        await server.write(chunk_id, 0, b"open")
    await overwrite(server, model, 0, b"x" * SLAB)
    if open_chunks == 1:
        await overwrite(server, model, SLAB, b"x" * SLAB)
    server.pool.limit_bytes = server.pool.lent_bytes
    await server.write(ChunkId(8, 8), 0, b"x")
    assert (server.is_sealed(ONE), server.is_sealed(TWO)) == (goes == "patch", goes == "buffer")
    server.check()


async def test_a_chunk_is_sealed_to_make_room_for_its_own_patch() -> None:
    server = Server(limit_bytes=MIB)
    model = await at_rest(server)
    server.pool.limit_bytes = SLAB
    for at in range(0, PATCHABLE_BYTES - SLAB, SLAB):
        await overwrite(server, model, at, b"x" * SLAB)
        assert server.read(ONE) == model
    server.check()


async def test_without_memory_for_a_patch_a_write_is_enospc_before_anything_was_received(autojump_clock: MockClock) -> None:
    server = Server(limit_bytes=MIB)
    model = await at_rest(server)
    held = server.pool.lend(MIB)
    assert held is not None
    async with refused(errno.ENOSPC):
        await server.chunks.write(ONE, 0, 1, Slow(b"x"))
    assert server.read(ONE) == model
    server.pool.give_back(held)
    server.check()


async def test_a_patch_that_waits_for_memory_while_its_chunk_is_dropped_takes_none(autojump_clock: MockClock) -> None:
    server = Server(limit_bytes=MIB)
    await at_rest(server)
    assert await server.chunks.verify(ONE) == "good"
    held = server.pool.lend(MIB)
    assert held is not None
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.write, ONE, 0, b"x")
        await wait_all_tasks_blocked()
        server.chunks.drop(ONE)
        server.pool.give_back(held)
        await server.write(ONE, 0, b"fresh")
    assert server.read(ONE) == b"fresh"
    server.check()


# -- check -----------------------------------------------------------------------------------------------------------


async def test_check_tells_of_a_patch_that_must_not_be() -> None:
    server = Server()
    model = await at_rest(server)
    await overwrite(server, model, 0, b"x")
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert chunk.patch is not None
    chunk.patch.blocks.clear()
    assert server.chunks.check() == [f"chunk {ONE} must not have that patch"]
