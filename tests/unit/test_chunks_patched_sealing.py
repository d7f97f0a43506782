"""Patched chunks are sealed anew, and whatever happens meanwhile, no byte is lost."""

from __future__ import annotations

import random
import threading
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import pytest
import trio

from gridfs.chunk.inventory import HASTY_QUIET_S, QUIET_S
from gridfs.chunk.patch import BLOCK_BYTES
from gridfs.config import KIB
from gridfs.types import ChunkId
from tests.unit.chunk_server import ONE, PATCHABLE_BYTES, TWO, Server, Slow, at_rest, overwrite

SLAB = 16 * KIB


@asynccontextmanager
async def while_sealing(server: Server, seal: Callable[[ChunkId], Awaitable[object]] | None = None) -> AsyncIterator[None]:
    """Within the context ONE is being sealed: its bytes have been copied, and the object is not there yet."""
    putting, go = trio.Event(), threading.Event()
    token = trio.lowlevel.current_trio_token()

    def before_put() -> None:
        token.run_sync_soon(putting.set)
        assert go.wait(10), "what writes to a chunk must not wait for the pack"

    server.objects.before_put = before_put
    async with trio.open_nursery() as nursery:
        nursery.start_soon(seal or server.chunks.seal, ONE)
        await putting.wait()
        try:
            yield
        finally:
            go.set()
    server.objects.before_put = lambda: None


async def test_sealing_anew_makes_one_object_of_all_of_it(server: Server) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 5, b"x" * 10_000)
    assert await server.chunks.verify(ONE) == "open"
    assert await server.chunks.seal(ONE)
    assert (server.pool.lent_bytes, server.chunks.open_count, server.objects.puts) == (0, 0, 2)
    assert (server.read(ONE), await server.chunks.verify(ONE)) == (bytes(model), "good")
    assert server.chunks.packs.size_bytes == PATCHABLE_BYTES


async def test_while_much_is_open_a_chunk_is_quiet_sooner_but_a_patched_one_is_not(server: Server) -> None:
    model = await at_rest(server)
    server.now_s += 100
    await overwrite(server, model, 5, b"x")
    await server.write(TWO, 0, b"x")
    server.now_s += HASTY_QUIET_S
    assert server.chunks.quiet() == []
    server.pool.limit_bytes = 2 * server.pool.lent_bytes - 1
    assert server.chunks.quiet() == [TWO]
    server.now_s += QUIET_S - HASTY_QUIET_S
    assert server.chunks.quiet() == [ONE, TWO]


async def test_a_chunk_is_not_quiet_while_its_first_patch_arrives(server: Server) -> None:
    await at_rest(server)
    server.now_s += 100
    async with trio.open_nursery() as nursery:
        slow = Slow(b"x")
        nursery.start_soon(server.chunks.write, ONE, 0, 1, slow)
        await slow.asked.wait()
        assert server.chunks.quiet() == []
        slow.go.set()


@pytest.mark.parametrize("patched", [False, True])
async def test_what_is_written_while_it_is_sealed_lies_over_the_new_object(server: Server, patched: bool) -> None:
    """Also over one that is made because the chunk leaves a pack that it shares."""
    model = bytearray(random.Random(PATCHABLE_BYTES).randbytes(PATCHABLE_BYTES))
    for chunk_id in (ONE, TWO):
        await server.write(chunk_id, 0, bytes(model))
    await server.chunks.seal_together([ONE, TWO])
    if patched:
        await overwrite(server, model, 0, b"before" * 2000)
    sealed_bytes = bytes(model)
    puts = server.objects.puts
    async with while_sealing(server, server.chunks.seal if patched else server.chunks.seal_alone):
        await overwrite(server, model, 3, b"meanwhile")
        await overwrite(server, model, 60_000, b"meanwhile")
        assert (server.read(ONE), server.chunks.check()) == (bytes(model), [])
    assert (server.read(ONE), server.is_sealed(ONE), server.objects.puts) == (bytes(model), False, puts + 1)
    assert server.pool.lent_bytes == SLAB
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert bytes(chunk.view or b"") == sealed_bytes
    assert await server.chunks.seal(ONE)
    assert (server.read(ONE), await server.chunks.verify(ONE)) == (bytes(model), "good")


@pytest.mark.expected_log("chunk 5/0 and 0 others stay as they are: as asked")
async def test_without_room_for_a_new_object_patches_stay_and_become_one(server: Server) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 0, b"before" * 2000)
    async with while_sealing(server):
        for at in (3, 60_000):
            await overwrite(server, model, at, b"meanwhile")
        server.objects.full = True
    assert (server.read(ONE), server.chunks.check(), server.is_sealed(ONE)) == (bytes(model), [], False)
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert chunk.patch is not None
    assert chunk.patch.under is None
    for at in (7, 8000, 60_007, 90_000):
        await overwrite(server, model, at, b"later")
    assert server.read(ONE) == model
    server.objects.full = False
    assert await server.chunks.seal(ONE)
    assert (server.read(ONE), server.pool.lent_bytes) == (bytes(model), 0)


@pytest.mark.expected_log("chunk 5/0 and 0 others stay as they are: as asked")
async def test_patches_that_become_one_use_all_of_their_memory(server: Server) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 0, b"before")
    async with while_sealing(server):
        await overwrite(server, model, 0, b"meanwhile")
        server.objects.full = True
    for place in range(1, 8):
        await overwrite(server, model, place * BLOCK_BYTES, b"later")
        assert server.pool.lent_bytes == 2 * SLAB
    await overwrite(server, model, 8 * BLOCK_BYTES, b"later")
    assert (server.pool.lent_bytes, server.read(ONE)) == (3 * SLAB, bytes(model))


@pytest.mark.parametrize("change", ["grow", "cut", "drop", "anew"])
async def test_what_opens_or_drops_the_chunk_while_it_is_sealed_makes_the_object_void(server: Server, change: str) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 0, b"before")
    async with while_sealing(server):
        await overwrite(server, model, 3, b"meanwhile")
        if change == "grow":
            await server.write(ONE, PATCHABLE_BYTES, b"x")
            model += b"x"
        elif change == "cut":
            await server.chunks.truncate(ONE, 1000)
            del model[1000:]
        else:
            server.chunks.drop(ONE)
            model.clear()
        if change == "anew":
            await server.write(ONE, 0, b"other")
            model += b"other"
        assert server.chunks.check() == []
    assert (server.read(ONE), server.is_sealed(ONE)) == (bytes(model), False)


async def test_a_patch_that_arrives_while_the_chunk_is_sealed_gets_memory_anew(server: Server) -> None:
    """What it was promised went with the sealed patch."""
    model = await at_rest(server)
    await overwrite(server, model, 0, b"before")
    async with trio.open_nursery() as nursery:
        slow = Slow(b"slow" * 5000)
        nursery.start_soon(server.chunks.write, ONE, 2, 20_000, slow)
        await slow.asked.wait()
        assert await server.chunks.seal(ONE)
        assert (server.read(ONE), server.pool.lent_bytes) == (bytes(model), 0)
        slow.go.set()
    model[2:20_002] = b"slow" * 5000
    assert server.read(ONE) == model


async def test_patched_chunks_get_objects_of_their_own(server: Server) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 7, b"x")
    assert await server.chunks.seal_alone(ONE)
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert chunk.ref.memory == model


async def test_an_object_that_does_not_hold_the_newest_bytes_is_not_given_to_anyone(server: Server) -> None:
    model, told = await at_rest(server), []
    await overwrite(server, model, 7, b"x")

    async def seal_alone(chunk_id: ChunkId) -> None:
        told.append(await server.chunks.seal_alone(chunk_id))

    async with while_sealing(server, seal_alone):
        await overwrite(server, model, 7, b"y")
    assert told == [False]


async def test_patches_are_not_lost_when_their_chunks_move_to_another_pack(server: Server) -> None:
    chunk_ids = [ChunkId(9, index) for index in range(8)]
    models = {chunk_id: bytearray(random.Random(chunk_id.index).randbytes(PATCHABLE_BYTES)) for chunk_id in chunk_ids}
    for chunk_id, model in models.items():
        await server.write(chunk_id, 0, bytes(model))
    await server.chunks.seal_together(chunk_ids)
    for chunk_id in chunk_ids[:5]:
        server.chunks.drop(chunk_id)
    for chunk_id in chunk_ids[5:7]:
        await overwrite(server, models[chunk_id], 9000, b"patched", chunk_id)
    await server.chunks.repack()
    assert (server.chunks.packs.wasted_bytes, server.objects.puts) == (0, 2)
    for chunk_id in chunk_ids[5:]:
        assert (server.read(chunk_id), await server.chunks.verify(chunk_id)) == (bytes(models[chunk_id]), "good")
