"""Small chunks share objects when they are sealed, and the space of those that go comes back."""

from __future__ import annotations

import random

import pytest
import trio

from gridfs.chunk.packs import PACK_MAX_BYTES, PACK_MAX_CHUNKS, SMALL_MAX_BYTES, THIN_PACKS_MAX, WASTE_MAX_SHARE
from gridfs.config import KIB
from gridfs.types import ChunkId
from tests.unit.chunk_server import ONE, THREE, TWO, Server


def content_of(chunk_id: ChunkId, size: int) -> bytes:
    return random.Random(chunk_id.index).randbytes(size)


async def packed(server: Server, count: int, size: int = 16 * KIB) -> list[ChunkId]:
    """Chunks that were sealed together."""
    chunk_ids = [ChunkId(9, index) for index in range(count)]
    for chunk_id in chunk_ids:
        await server.write(chunk_id, 0, content_of(chunk_id, size))
    await server.chunks.seal_together(chunk_ids)
    return chunk_ids


async def released(server: Server) -> None:
    """Wait until no object is kept but those of packs: the thread that made one may hold it for a moment longer."""
    with trio.fail_after(5):
        while kept_bytes(server) != server.chunks.packs.size_bytes:
            await trio.sleep(0.001)


def kept_bytes(server: Server) -> int:
    """The memory of all objects whose refs are held."""
    return sum(len(ref.memory) for ref in server.objects.kept)


async def repacked(server: Server) -> None:
    """Pack anew until there is nothing to do."""
    for _ in range(3):
        await server.chunks.repack()
    assert server.chunks.packs.to_repack() == []
    await released(server)


# -- sealing ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "size", "objects"),
    [
        *((PACK_MAX_CHUNKS, 100, 1), (PACK_MAX_CHUNKS + 1, 100, 2), (8, SMALL_MAX_BYTES, 1)),
        *((9, SMALL_MAX_BYTES, 2), (3, SMALL_MAX_BYTES + 1, 3)),
    ],
)
async def test_small_chunks_share_objects_and_large_ones_do_not(server: Server, count: int, size: int, objects: int) -> None:
    chunk_ids = await packed(server, count, size)
    await released(server)
    assert (server.objects.puts, server.chunks.open_count, kept_bytes(server)) == (objects, 0, count * size)
    assert max(len(ref.memory) for ref in server.objects.kept) <= PACK_MAX_BYTES
    for chunk_id in chunk_ids:
        assert server.read(chunk_id) == content_of(chunk_id, size)
        assert server.read(chunk_id, 10, 20) == content_of(chunk_id, size)[10:30]
        assert await server.chunks.verify(chunk_id) == "good"


async def test_a_large_chunk_among_small_ones_does_not_part_them(server: Server) -> None:
    for chunk_id, size in ((ONE, 10), (TWO, SMALL_MAX_BYTES + 1), (THREE, 10)):
        await server.write(chunk_id, 0, bytes(size))
    await server.chunks.seal_together([ONE, TWO, THREE])
    await released(server)
    assert sorted(len(ref.memory) for ref in server.objects.kept) == [20, SMALL_MAX_BYTES + 1]


async def test_a_chunk_of_a_pack_is_overwritten_and_dropped_without_the_others(server: Server) -> None:
    await packed(server, 3, 100)
    first, second, third = (ChunkId(9, index) for index in range(3))
    await server.write(first, 10, b"new")
    server.chunks.drop(second)
    assert server.read(first) == content_of(first, 100)[:10] + b"new" + content_of(first, 100)[13:]
    assert server.read(second) == b""
    assert server.read(third) == content_of(third, 100)
    assert (server.chunks.used_bytes, server.chunks.packs.wasted_bytes) == (200, 200)


async def test_a_view_of_a_chunk_stays_when_its_pack_is_gone(server: Server) -> None:
    first, *others = await packed(server, 4, 100)
    view, _ = server.chunks.read(first, 0, 100)
    for chunk_id in (first, *others):
        server.chunks.drop(chunk_id)
    await released(server)
    assert (len(server.objects.kept), bytes(view)) == (0, content_of(first, 100))


async def test_a_chunk_sealed_alone_has_an_object_of_its_own(server: Server) -> None:
    first, second, *_ = await packed(server, 3, 100)
    await server.write(ONE, 0, b"hello")
    for chunk_id, content in ((ONE, b"hello"), (second, content_of(second, 100))):
        assert await server.chunks.seal_alone(chunk_id)
        assert await server.chunks.seal_alone(chunk_id)
        chunk = server.chunks.find(chunk_id)
        assert chunk is not None
        assert chunk.ref.memory == content == server.read(chunk_id)
    assert server.objects.puts == 3
    assert server.read(first) == content_of(first, 100)
    assert not await server.chunks.seal_alone(TWO)


@pytest.mark.expected_log("chunk 9/0 and 511 others stay as they are: as asked")
async def test_without_room_all_chunks_of_a_pack_stay_open_and_the_rest_is_not_tried(server: Server) -> None:
    server.objects.full = True
    chunk_ids = await packed(server, PACK_MAX_CHUNKS + 10, 10)
    assert server.chunks.open_count == len(chunk_ids)
    server.objects.full = False
    await server.chunks.seal_together(chunk_ids)
    assert (server.chunks.open_count, server.objects.puts) == (0, 2)


# -- repacking -------------------------------------------------------------------------------------------------------


async def test_a_pack_more_than_half_dead_is_packed_anew_and_its_object_goes(server: Server) -> None:
    chunk_ids = await packed(server, 8)
    for chunk_id in chunk_ids[:5]:
        server.chunks.drop(chunk_id)
    assert (kept_bytes(server), server.chunks.packs.wasted_bytes) == (8 * 16 * KIB, 5 * 16 * KIB)
    await repacked(server)
    assert (kept_bytes(server), server.chunks.packs.wasted_bytes) == (3 * 16 * KIB, 0)
    for chunk_id in chunk_ids[5:]:
        assert server.read(chunk_id) == content_of(chunk_id, 16 * KIB)


async def test_a_pack_more_than_half_dead_is_packed_anew_however_many_are_full(server: Server) -> None:
    chunk_ids = await packed(server, 10 * PACK_MAX_CHUNKS, 100)
    for chunk_id in chunk_ids[: PACK_MAX_CHUNKS // 2 + 1]:
        server.chunks.drop(chunk_id)
    await repacked(server)
    assert server.chunks.packs.wasted_bytes == 0


async def test_a_pack_with_a_few_dead_chunks_is_left_alone(server: Server) -> None:
    chunk_ids = await packed(server, 10 * PACK_MAX_CHUNKS, 100)
    for chunk_id in chunk_ids[: PACK_MAX_CHUNKS // 2 - 1]:
        server.chunks.drop(chunk_id)
    await repacked(server)
    assert server.objects.puts == 10


async def test_waste_is_bounded_whatever_is_dropped(server: Server) -> None:
    dice, chunk_ids = random.Random(4), await packed(server, 2000)
    dice.shuffle(chunk_ids)
    while chunk_ids:
        for _ in range(min(100, len(chunk_ids))):
            server.chunks.drop(chunk_ids.pop())
        await repacked(server)
        assert kept_bytes(server) * (1 - WASTE_MAX_SHARE) <= server.chunks.used_bytes
    assert len(server.objects.kept) == 0


async def test_packs_of_few_chunks_are_put_together(server: Server) -> None:
    chunk_ids = [ChunkId(9, index) for index in range(1000)]
    for chunk_id in chunk_ids:
        await server.write(chunk_id, 0, content_of(chunk_id, 100))
        await server.chunks.seal(chunk_id)
        await server.chunks.repack()
        await released(server)
        assert len(server.objects.kept) <= THIN_PACKS_MAX + 1 + chunk_id.index // (PACK_MAX_CHUNKS // 2)
    for chunk_id in chunk_ids:
        assert server.read(chunk_id) == content_of(chunk_id, 100)


async def test_dead_bytes_of_packs_are_not_free_and_those_of_dropped_packs_are_retained(server: Server) -> None:
    chunk_ids = await packed(server, 10)
    for chunk_id in chunk_ids[:6]:
        server.chunks.drop(chunk_id)
    packs = server.chunks.packs
    assert (packs.wasted_bytes, packs.retained_bytes) == (6 * 16 * KIB, 0)
    await repacked(server)
    assert (packs.wasted_bytes, packs.retained_bytes) == (0, 10 * 16 * KIB)
    assert packs.peak_bytes == 14 * 16 * KIB  # for a moment there were both


@pytest.mark.expected_log("chunk 9/5 and 2 others stay as they are: as asked")
async def test_without_room_for_a_new_pack_chunks_stay_in_the_old_one(server: Server) -> None:
    chunk_ids = await packed(server, 8)
    for chunk_id in chunk_ids[:5]:
        server.chunks.drop(chunk_id)
    server.objects.full = True
    await server.chunks.repack()
    await released(server)
    assert kept_bytes(server) == 8 * 16 * KIB
    assert server.read(chunk_ids[5]) == content_of(chunk_ids[5], 16 * KIB)


# -- check -----------------------------------------------------------------------------------------------------------


async def test_check_tells_what_is_wrong_with_packs() -> None:
    server = Server()
    first, second, third = await packed(server, 3, 100)
    chunks = [server.chunks.find(chunk_id) for chunk_id in (first, second, third)]
    assert chunks[0] is not None
    assert chunks[0].pack is not None
    chunks[0].start += 10
    chunks[0].pack.live_chunks = 7
    chunks[0].pack.chunk_ids = (first, second)
    server.chunks.packs.live_bytes += 5
    faults = "\n".join(server.chunks.check())
    for words in ("counted its chunks", "know all of its chunks", "on top of each other", "300 of use, not 300, 305"):
        assert words in faults
