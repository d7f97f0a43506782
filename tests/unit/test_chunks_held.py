"""Chunks that are held for a job stay what they were, whatever becomes of them; and their memory is not free."""

from __future__ import annotations

import errno
import random
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gridfs.chunk import holds as module
from gridfs.chunk.holds import FORGOTTEN_S, Holds
from gridfs.chunk.packs import PACK_MAX_CHUNKS, THIN_PACKS_MAX
from gridfs.chunk.server import ChunkService
from gridfs.config import GIB, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId, NodeSample
from tests.unit.chunk_server import ONE, THREE, TWO, Server, Slow, at_rest, giving, overwrite
from tests.unit.test_chunks_at_once import paused_put
from tests.unit.test_chunks_packed import content_of, packed, released, repacked
from tests.unit.turns import Turns
from tests.vfs.cluster import FakeObjects, corrupt

PEER: Any = None
JOB = 17


async def hold(holds: Holds, *chunk_ids: ChunkId, job: int = JOB) -> list[tuple[int, int]]:
    """Have chunks of one file held."""
    indices = [chunk_id.index for chunk_id in chunk_ids]
    rows: list[tuple[int, int]] = (await holds.hold(PEER, job, chunk_ids[0].ino, indices)).result
    return rows


async def read(holds: Holds, chunk_id: ChunkId = ONE, offset: int = 0, length: int = 8 * MIB, job: int = JOB) -> bytes:
    """What is held of the chunk."""
    answer = await holds.read_held(PEER, job, chunk_id.index, offset, length)
    return b"".join(bytes(piece) for piece in answer.payload)


async def is_held(holds: Holds, chunk_id: ChunkId = ONE, job: int = JOB) -> bool:
    try:
        await read(holds, chunk_id, job=job)
    except FilesystemError as error:
        assert error.errno == errno.ENOENT
        return False
    return True


async def refused(holds: Holds, *chunk_ids: ChunkId) -> int | None:
    """The errno with which a hold fails, after which nothing is held."""
    with pytest.raises(FilesystemError) as raised:
        await hold(holds, *chunk_ids)
    assert not [chunk_id for chunk_id in chunk_ids if await is_held(holds, chunk_id)]
    assert not holds._chunks.packs.held
    return raised.value.errno


# -- what is held ----------------------------------------------------------------------------------------------------


async def test_open_chunks_are_sealed_and_held_with_their_lengths(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    await server.sealed(TWO, b"world!")
    assert await hold(holds, ONE, TWO) == [(0, 5), (1, 6)]
    assert (server.is_sealed(ONE), server.objects.puts) == (True, 2)
    assert (await read(holds, ONE), await read(holds, TWO), await read(holds, TWO, 2, 3)) == (b"hello", b"world!", b"rld")
    assert (await read(holds, TWO, 4, 100), await read(holds, TWO, 6, 10)) == (b"d!", b"")


@pytest.mark.parametrize("change", ["write", "grow", "cut", "empty", "drop", "anew", "alone"])
@pytest.mark.parametrize("neighbours", [True, False])
async def test_what_is_held_stays_whatever_becomes_of_the_chunk(
    server: Server, holds: Holds, change: str, neighbours: bool
) -> None:
    for chunk_id in (ONE, TWO, THREE) if neighbours else (ONE,):
        await server.write(chunk_id, 0, b"hello")
    await server.chunks.seal_together([ONE, TWO, THREE])
    await hold(holds, ONE)
    if change in ("write", "grow"):
        await server.write(ONE, 0 if change == "write" else 20_000, b"J")
    elif change in ("cut", "empty"):
        await server.chunks.truncate(ONE, 2 if change == "cut" else 0)
    elif change == "alone":
        assert await server.chunks.seal_alone(ONE)
    else:
        server.chunks.drop(ONE)
    if change == "anew":
        await server.write(ONE, 0, b"other")
    for chunk_id in (TWO, THREE):
        server.chunks.drop(chunk_id)
    await server.chunks.seal(ONE)
    await repacked_but_held(server)
    assert await read(holds) == b"hello"
    assert holds.check() == server.chunks.check() == []


async def repacked_but_held(server: Server) -> None:
    """Pack anew what can be, and let go of what is not needed."""
    await server.chunks.repack()
    await released(server)


async def test_a_patched_chunk_is_held_with_its_patch_and_without_what_is_patched_later(server: Server, holds: Holds) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 5000, b"before")
    await hold(holds, ONE)
    held = bytes(model)
    assert server.is_sealed(ONE)
    await overwrite(server, model, 9000, b"after")
    assert (await read(holds), server.read(ONE)) == (held, bytes(model))
    await server.chunks.seal(ONE)
    assert (await read(holds), server.read(ONE)) == (held, bytes(model))


async def test_a_job_keeps_what_it_holds_when_it_asks_again(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    await hold(holds, ONE)
    server.chunks.drop(ONE)
    await server.write(TWO, 0, b"more")
    assert await hold(holds, TWO, ONE, ONE) == [(1, 4), (0, 5), (0, 5)]
    assert await read(holds) == b"hello"


async def test_jobs_hold_each_its_own_state_of_a_chunk(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    await hold(holds, ONE, job=1)
    await hold(holds, ONE, job=2)
    await server.write(ONE, 0, b"J")
    await hold(holds, ONE, job=3)
    assert [await read(holds, job=job) for job in (1, 2, 3)] == [b"hello", b"hello", b"Jello"]
    await holds.release(PEER, 1)
    assert [await is_held(holds, job=job) for job in (1, 2, 3)] == [False, True, True]
    assert await read(holds, job=2) == b"hello"


async def test_a_chunk_without_bytes_is_held_as_that(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    await server.chunks.truncate(ONE, 0)
    assert await hold(holds, ONE) == [(0, 0)]
    await server.write(ONE, 0, b"hello")
    assert (await read(holds), holds.refs(JOB)) == (b"", [])


async def test_refs_name_the_objects_and_where_in_them_the_chunks_are(server: Server, holds: Holds) -> None:
    chunk_ids = await packed(server, 4)
    await hold(holds, chunk_ids[3])
    await hold(holds, *chunk_ids[1:3])
    for chunk_id in chunk_ids:
        server.chunks.drop(chunk_id)
    rows = holds.refs(JOB)
    assert [index for index, *_ in rows] == [1, 2, 3]
    assert [bytes(ref.memory[start : start + length]) for _, ref, start, length in rows] == [
        content_of(chunk_id, 16 * KIB) for chunk_id in chunk_ids[1:]
    ]
    assert holds.refs(JOB + 1) == []


async def test_very_many_chunks_are_held_in_steps_between_which_others_are_served(server: Server, holds: Holds) -> None:
    chunk_ids = await packed(server, 5 * PACK_MAX_CHUNKS, 10)
    turns = Turns()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(turns.take)
        assert await hold(holds, *chunk_ids) == [(chunk_id.index, 10) for chunk_id in chunk_ids]
        nursery.cancel_scope.cancel()
    assert turns.count >= 2


# -- writers meanwhile -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", ["buffer", "patch"])
async def test_a_chunk_that_is_written_while_it_is_sealed_is_held_with_that_write_and_no_part_of_it(
    server: Server, holds: Holds, way: str
) -> None:
    size = 10 if way == "buffer" else 200 * KIB
    model = bytearray(random.Random(1).randbytes(size))
    await server.write(ONE, 0, bytes(model))
    if way == "patch":
        assert await server.chunks.seal(ONE)
        await overwrite(server, model, 7000, b"first")
    async with trio.open_nursery() as nursery, paused_put(server) as go:
        nursery.start_soon(hold, holds, ONE)
        await go.putting.wait()
        await overwrite(server, model, 4, b"second")
        assert holds.check() == server.chunks.check() == []
        go.on.set()
    assert await read(holds) == bytes(model)


async def test_a_writer_is_waited_for_and_the_next_one_is_not_held(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    slow = Slow(b"J")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.chunks.write, ONE, 0, 1, slow)
        await slow.asked.wait()
        nursery.start_soon(hold, holds, ONE)
        await wait_all_tasks_blocked(0.01)
        nursery.start_soon(server.write, ONE, 1, b"next")
        await wait_all_tasks_blocked(0.01)
        slow.go.set()
    assert (await read(holds), server.read(ONE)) == (b"Jello", b"Jnext")


async def test_a_writer_that_goes_on_is_eagain_with_nothing_held(
    server: Server, holds: Holds, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "WRITERS_WAIT_S", 0.01)
    await server.sealed(ONE, b"hello")
    await server.write(TWO, 0, b"hello")
    slow = Slow(b"J")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(server.chunks.write, TWO, 0, 1, slow)
        await slow.asked.wait()
        assert await refused(holds, ONE, TWO) == errno.EAGAIN
        slow.go.set()
    assert await hold(holds, ONE, TWO) == [(0, 5), (1, 5)]


async def test_a_chunk_that_is_dropped_while_it_is_sealed_is_enoent_with_nothing_held(server: Server, holds: Holds) -> None:
    await server.sealed(ONE, b"hello")
    await server.write(TWO, 0, b"hello")
    async with trio.open_nursery() as nursery, paused_put(server) as go:

        async def is_refused() -> None:
            assert await refused(holds, ONE, TWO) == errno.ENOENT

        nursery.start_soon(is_refused)
        await go.putting.wait()
        server.chunks.drop(TWO)
        go.on.set()


async def test_a_job_that_asks_twice_at_once_holds_each_chunk_once(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    async with trio.open_nursery() as nursery, paused_put(server) as go:
        nursery.start_soon(hold, holds, ONE)
        nursery.start_soon(hold, holds, ONE)
        await go.putting.wait()
        go.on.set()
    assert list(server.chunks.packs.held.values()) == [1]
    await holds.release(PEER, JOB)
    assert not server.chunks.packs.held


async def test_a_call_that_is_cancelled_holds_nothing(server: Server, holds: Holds) -> None:
    chunk_ids = await packed(server, PACK_MAX_CHUNKS, 10)
    await server.write(last := ChunkId(9, PACK_MAX_CHUNKS), 0, b"hello")
    async with server.chunks._sealer._packing, trio.open_nursery() as nursery:
        nursery.start_soon(partial(hold, holds, *chunk_ids, last))
        await wait_all_tasks_blocked()
        assert sum(server.chunks.packs.held.values()) == PACK_MAX_CHUNKS
        assert holds.check() == []
        nursery.cancel_scope.cancel()
    assert not server.chunks.packs.held
    assert not await is_held(holds, chunk_ids[0])


# -- what cannot be held ---------------------------------------------------------------------------------------------


async def test_an_absent_chunk_is_enoent_with_nothing_held_nor_sealed(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    assert await refused(holds, ONE, TWO) == errno.ENOENT
    assert not server.is_sealed(ONE)


@pytest.mark.expected_log("stay as they are: as asked")
async def test_without_room_it_is_enospc_with_nothing_held(server: Server, holds: Holds) -> None:
    await server.sealed(ONE, b"hello")
    await server.write(TWO, 0, b"hello")
    server.objects.full = True
    assert await refused(holds, ONE, TWO) == errno.ENOSPC
    server.objects.full = False
    assert await hold(holds, ONE, TWO) == [(0, 5), (1, 5)]


@pytest.mark.expected_log("is bad")
async def test_a_bad_chunk_is_ebadmsg_also_when_it_is_found_out_by_sealing(server: Server, holds: Holds) -> None:
    model = await at_rest(server)
    await overwrite(server, model, 5000, b"patched")
    corrupt(server.chunks, ONE)
    assert await refused(holds, ONE) == errno.EBADMSG
    assert await refused(holds, ONE) == errno.EBADMSG


@pytest.mark.expected_log("is bad")
async def test_held_bytes_that_changed_in_the_object_store_are_ebadmsg(server: Server, holds: Holds) -> None:
    await at_rest(server)
    await hold(holds, ONE)
    ref = holds.refs(JOB)[0][1]
    assert await read(holds) == bytes(ref.memory)
    ref.memory[1000] ^= 0xFF
    assert await read(holds) == bytes(ref.memory)  # it was verified just now
    server.now_s += 61
    with pytest.raises(FilesystemError) as raised:
        await read(holds)
    assert raised.value.errno == errno.EBADMSG


async def test_a_job_is_about_one_file(server: Server, holds: Holds) -> None:
    for chunk_id in (ONE, THREE):
        await server.write(chunk_id, 0, b"hello")
    await hold(holds, ONE)
    with pytest.raises(FilesystemError) as raised:
        await hold(holds, THREE)
    assert raised.value.errno == errno.EINVAL


# -- the end of a hold -----------------------------------------------------------------------------------------------


async def test_with_its_release_the_memory_of_chunks_that_are_gone_comes_back(server: Server, holds: Holds) -> None:
    await at_rest(server, size=2 * MIB)
    await hold(holds, ONE)
    server.chunks.drop(ONE)
    await released(server)
    assert (len(server.objects.kept), server.chunks.packs.size_bytes, server.chunks.packs.wasted_bytes) == (1, 2 * MIB, 2 * MIB)
    await holds.release(PEER, JOB)
    await holds.release(PEER, JOB)
    await released(server)
    assert (len(server.objects.kept), server.chunks.packs.size_bytes, server.chunks.packs.retained_bytes) == (0, 0, 2 * MIB)
    assert not await is_held(holds)


async def test_a_release_leaves_chunks_that_are_still_there_alone(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    await hold(holds, ONE)
    await holds.release(PEER, JOB)
    assert (server.read(ONE), await server.chunks.verify(ONE)) == (b"hello", "good")


async def test_holds_of_jobs_that_are_not_kept_end_but_new_ones(server: Server, holds: Holds) -> None:
    await server.write(ONE, 0, b"hello")
    for job in (1, 2, 3):
        await hold(holds, ONE, job=job)
    server.now_s += FORGOTTEN_S + 1
    await hold(holds, ONE, job=3)
    await hold(holds, ONE, job=4)
    holds.keep([2, 99])
    assert [await is_held(holds, job=job) for job in (1, 2, 3, 4)] == [False, True, True, True]
    server.now_s += FORGOTTEN_S + 1
    holds.keep([2, 99])
    assert [await is_held(holds, job=job) for job in (1, 2, 3, 4)] == [False, True, False, False]


# -- space -----------------------------------------------------------------------------------------------------------


async def test_held_bytes_that_are_no_longer_in_the_filesystem_are_not_free() -> None:
    service = ChunkService(MIB, FakeObjects(), b"secret", lambda: NodeSample(64 * GIB, 32 * GIB, 0.0))
    await service.chunks.write(ONE, 0, 300 * KIB, giving(bytes(300 * KIB)))
    assert (await service.methods["hold"](PEER, JOB, *ONE[:1], [0])).result == [(0, 300 * KIB)]
    assert service.free_bytes == MIB - 300 * KIB
    await service.chunks.write(ONE, 0, 100 * KIB, giving(bytes(100 * KIB)))
    assert service.free_bytes == MIB - 600 * KIB
    service.chunks.drop(ONE)
    assert (service.free_bytes, service.chunks.used_bytes, service.check()) == (MIB - 300 * KIB, 0, [])
    await service.methods["release"](PEER, JOB)
    assert (service.free_bytes, service.check()) == (MIB, [])


async def test_a_pack_that_is_held_is_packed_anew_only_when_it_is_released(server: Server, holds: Holds) -> None:
    chunk_ids = await packed(server, 8)
    await hold(holds, chunk_ids[0])
    for chunk_id in chunk_ids[:5]:
        server.chunks.drop(chunk_id)
    await repacked(server)
    assert (server.objects.puts, server.chunks.packs.wasted_bytes) == (1, 5 * 16 * KIB)
    await holds.release(PEER, JOB)
    await repacked(server)
    assert (server.objects.puts, server.chunks.packs.wasted_bytes) == (2, 0)


async def test_what_holds_waste_does_not_have_other_packs_packed_anew(server: Server, holds: Holds) -> None:
    await at_rest(server, size=4 * MIB)
    await hold(holds, ONE)
    server.chunks.drop(ONE)
    chunk_ids = await packed(server, 10 * PACK_MAX_CHUNKS, 100)
    for chunk_id in chunk_ids[:10]:
        server.chunks.drop(chunk_id)
    assert server.chunks.packs.to_repack() == []


async def test_thin_packs_that_are_held_are_not_put_together(server: Server, holds: Holds) -> None:
    chunk_ids = [ChunkId(9, index) for index in range(THIN_PACKS_MAX + 1)]
    for chunk_id in chunk_ids:
        await server.sealed(chunk_id, b"hello")
    await hold(holds, *chunk_ids)
    assert server.chunks.packs.to_repack() == []
    await holds.release(PEER, JOB)
    assert len(server.chunks.packs.to_repack()) == len(chunk_ids)


async def test_check_tells_what_is_wrong_with_holds() -> None:
    server = Server()
    holds = Holds(server.chunks)
    await server.write(ONE, 0, b"hello")
    await hold(holds, ONE)
    [pack] = server.chunks.packs.held
    server.chunks.packs.held[pack] += 1
    holds._jobs[JOB].chunks[0].length += 1
    faults = "\n".join(holds.check())
    for words in ("not rightly counted", "held of chunk ChunkId(ino=5, index=0) is not there"):
        assert words in faults
