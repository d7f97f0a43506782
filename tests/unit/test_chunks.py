"""The chunks of one server: bytes, sealing, and the space they take. Invariants are asserted after every test."""

from __future__ import annotations

import random

import pytest
import xxhash

from gridfs.chunk.inventory import QUIET_S
from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from tests.unit.chunk_server import ONE, THREE, TWO, Server

# -- reading and writing ---------------------------------------------------------------------------------------------


async def test_what_is_written_is_read(server: Server) -> None:
    assert await server.write(ONE, 0, b"hello") == 5
    assert await server.write(ONE, 3, b"p me") == 7
    assert server.read(ONE) == b"help me"
    assert server.read(ONE, 1, 3) == b"elp"
    assert server.read(ONE, 5, 100) == b"me"
    assert server.read(ONE, 7, 1) == server.read(TWO) == b""


async def test_a_gap_reads_as_zeros_also_in_a_recycled_buffer(server: Server) -> None:
    await server.write(TWO, 0, b"\xff" * 16 * KIB)
    server.chunks.drop(TWO)
    await server.write(ONE, 0, b"ab")
    await server.write(ONE, 10, b"c")
    assert server.read(ONE) == b"ab" + bytes(8) + b"c"
    await server.write(THREE, 5, b"x")
    assert server.read(THREE) == bytes(5) + b"x"


async def test_a_chunk_grows_out_of_its_buffer_and_keeps_its_bytes(server: Server) -> None:
    model = bytearray()
    for size in (1, 16 * KIB, 128 * KIB - 1, MIB // 4, MIB, CHUNK_SIZE_BYTES):
        piece = random.Random(size).randbytes(min(1000, size))
        await server.write(ONE, size - len(piece), piece)
        model.extend(bytes(size - len(model)))
        model[size - len(piece) :] = piece
        assert server.read(ONE) == model
    assert server.pool.lent_bytes == CHUNK_SIZE_BYTES


async def test_growth_is_what_a_write_adds(server: Server) -> None:
    assert server.chunks.growth(ONE, 100) == 100
    await server.write(ONE, 0, bytes(60))
    assert [server.chunks.growth(ONE, end) for end in (10, 60, 61, 100)] == [0, 0, 1, 40]


async def test_the_space_used_is_the_length_of_all_chunks(server: Server) -> None:
    await server.write(ONE, 100, b"x")
    await server.sealed(TWO, bytes(1000))
    assert server.chunks.used_bytes == 1101
    await server.write(ONE, 50, b"x")
    assert server.chunks.used_bytes == 1101
    await server.chunks.truncate(ONE, 1)
    server.chunks.drop(TWO)
    assert server.chunks.used_bytes == 1
    assert list(server.chunks.inventory()) == [(*ONE, 1)]


async def test_a_write_that_breaks_off_leaves_the_length(server: Server) -> None:
    async def breaks_off(view: memoryview) -> None:
        view[:2] = b"XX"
        raise ConnectionError

    await server.write(ONE, 0, b"abc")
    for chunk_id in (ONE, TWO):
        with pytest.raises(ConnectionError):
            await server.chunks.write(chunk_id, 2, 10, breaks_off)
    assert (len(server.read(ONE)), server.read(TWO)) == (3, b"")
    await server.write(ONE, 5, b"d")
    assert server.read(ONE)[:2] + server.read(ONE)[3:] == b"ab" + bytes(2) + b"d"


async def test_random_operations_match_bytearrays(server: Server) -> None:
    dice, models = random.Random(3), {chunk_id: bytearray() for chunk_id in (ONE, TWO, THREE)}
    patched = 0
    for _ in range(600):
        chunk_id, at, size = dice.choice([ONE, TWO, THREE]), dice.randrange(300_000), dice.choice((1, 5000, 100_000))
        model = models[chunk_id]
        action = dice.choice(["write", "write", "write", "seal", "all", "alone", "repack", "truncate", "drop"])
        if action == "write":
            content = dice.randbytes(size)
            model.extend(bytes(max(0, at + size - len(model))))
            model[at : at + size] = content
            assert await server.write(chunk_id, at, content) == len(model)
        elif action == "seal":
            assert await server.chunks.seal(chunk_id) or not model
        elif action == "all":
            await server.chunks.seal_together([ONE, TWO, THREE])
        elif action == "alone":
            assert await server.chunks.seal_alone(chunk_id) or not model
        elif action == "repack":
            await server.chunks.repack()
        elif action == "truncate":
            await server.chunks.truncate(chunk_id, at)
            del model[at:]
        elif dice.random() < 0.3:
            server.chunks.drop(chunk_id)
            model.clear()
        assert server.chunks.check() == []
        assert server.read(chunk_id) == model
        assert await server.chunks.verify(chunk_id) != "bad"
        patched += (chunk := server.chunks.find(chunk_id)) is not None and chunk.patch is not None
    assert patched > 50


# -- sealing ---------------------------------------------------------------------------------------------------------


async def test_a_sealed_chunk_is_an_object_with_a_checksum_and_gives_its_buffer_back(server: Server) -> None:
    await server.sealed(ONE, b"hello")
    chunk = server.chunks.find(ONE)
    assert chunk is not None
    assert (chunk.ref is not None, chunk.checksum) == (True, xxhash.xxh3_64_intdigest(b"hello"))
    assert (server.pool.lent_bytes, server.chunks.open_count, server.objects.puts) == (0, 0, 1)
    assert server.read(ONE, 1, 3) == b"ell"


async def test_sealing_again_does_nothing_and_a_hole_or_an_empty_chunk_cannot_be_sealed(server: Server) -> None:
    await server.sealed(ONE, b"hello")
    assert await server.chunks.seal(ONE)
    await server.write(TWO, 0, b"")
    assert not await server.chunks.seal(TWO)
    assert not await server.chunks.seal(THREE)
    assert server.objects.puts == 1


@pytest.mark.parametrize("offset", [0, 3, 5, 100, 20_000])
async def test_a_write_opens_a_sealed_chunk_by_a_copy(server: Server, offset: int) -> None:
    await server.sealed(ONE, b"hello")
    old, _ = server.chunks.read(ONE, 0, 5)
    await server.write(ONE, offset, b"J")
    model = bytearray(b"hello".ljust(offset, b"\0"))
    model[offset : offset + 1] = b"J"
    assert (server.read(ONE), server.is_sealed(ONE), bytes(old)) == (bytes(model), False, b"hello")
    assert await server.chunks.seal(ONE)
    assert (server.read(ONE), server.objects.puts) == (bytes(model), 2)


@pytest.mark.parametrize("length", [0, 2, 5, 9])
@pytest.mark.parametrize("sealed", [False, True])
async def test_what_truncate_cuts_reads_as_zeros_when_the_chunk_grows_again(server: Server, sealed: bool, length: int) -> None:
    await server.write(ONE, 0, b"hello")
    if sealed:
        assert await server.chunks.seal(ONE)
    await server.chunks.truncate(ONE, length)
    assert server.read(ONE) == b"hello"[:length]
    assert server.chunks.check() == []
    await server.write(ONE, 9, b"!")
    assert server.read(ONE) == b"hello"[:length].ljust(9, b"\0") + b"!"


async def test_truncating_a_hole_makes_no_chunk(server: Server) -> None:
    await server.chunks.truncate(ONE, 5)
    assert len(server.chunks) == 0


async def test_a_full_chunk_is_known(server: Server) -> None:
    await server.write(ONE, 0, b"x")
    assert not server.chunks.is_full(ONE)
    await server.write(ONE, CHUNK_SIZE_BYTES - 1, b"x")
    assert server.chunks.is_full(ONE)
    assert not server.chunks.is_full(TWO)


async def test_a_chunk_is_quiet_some_seconds_after_its_last_write(server: Server) -> None:
    await server.write(ONE, 0, b"x")
    await server.sealed(TWO, b"x")
    server.now_s += QUIET_S / 2
    await server.write(THREE, 0, b"x")
    assert server.chunks.quiet() == []
    server.now_s += QUIET_S / 2
    assert server.chunks.quiet() == [ONE]
    server.now_s += QUIET_S
    assert server.chunks.quiet() == [ONE, THREE]


@pytest.mark.expected_log("chunk 5/0 and 0 others stay as they are: as asked")
async def test_without_room_in_the_object_store_a_chunk_stays_open_and_is_tried_again_later(server: Server) -> None:
    await server.write(ONE, 0, b"hello")
    server.now_s += QUIET_S
    server.objects.full = True
    assert not await server.chunks.seal(ONE)
    assert (server.read(ONE), server.is_sealed(ONE)) == (b"hello", False)
    assert server.chunks.quiet() == []
    server.objects.full = False
    server.now_s += QUIET_S
    assert server.chunks.quiet() == [ONE]
    assert await server.chunks.seal(ONE)


async def test_memory_of_dropped_objects_is_told_as_retained(server: Server) -> None:
    await server.sealed(ONE, bytes(1000))
    await server.sealed(TWO, bytes(500))
    assert server.chunks.packs.retained_bytes == 0
    server.chunks.drop(ONE)
    assert server.chunks.packs.retained_bytes == 1000
    await server.sealed(THREE, bytes(700))
    assert server.chunks.packs.retained_bytes == 300


# -- dropping --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sealed", [False, True])
async def test_a_dropped_chunk_is_gone_and_can_be_written_anew(server: Server, sealed: bool) -> None:
    await server.write(ONE, 0, b"hello")
    if sealed:
        assert await server.chunks.seal(ONE)
    server.chunks.drop(ONE)
    server.chunks.drop(ONE)
    assert (server.read(ONE), len(server.chunks), server.chunks.used_bytes, server.pool.lent_bytes) == (b"", 0, 0, 0)
    await server.write(ONE, 2, b"x")
    assert server.read(ONE) == bytes(2) + b"x"


async def test_bytes_being_sent_stay_while_the_chunk_is_dropped_and_another_written(server: Server) -> None:
    await server.write(ONE, 0, b"hello")
    view, sent = server.chunks.read(ONE, 0, 5)
    assert sent is not None
    server.chunks.drop(ONE)
    await server.write(TWO, 0, b"other")
    assert bytes(view) == b"hello"
    sent()


# -- check -----------------------------------------------------------------------------------------------------------


async def test_check_tells_what_is_wrong() -> None:
    server = Server()
    await server.write(ONE, 0, b"hello")
    await server.sealed(TWO, b"hello")
    server.chunks.used_bytes += 1
    server.chunks.opened.clear()
    two = server.chunks.find(TWO)
    assert two is not None
    two.pack = None
    faults = "\n".join(server.chunks.check())
    for words in ("used_bytes is 11", f"{TWO} must have a buffer or a pack", f"{ONE} is not rightly listed as open"):
        assert words in faults
