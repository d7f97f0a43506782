"""The pool of buffers: a limit on what is lent, a limit on what is kept, and nothing recycled while it is being sent."""

import pytest

from gridfs.chunk.pool import Buffer, BufferPool
from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB


def lend(pool: BufferPool, size_bytes: int = MIB) -> Buffer:
    buffer = pool.lend(size_bytes)
    assert buffer is not None
    return buffer


@pytest.mark.parametrize(
    ("length", "piece_bytes", "size_bytes"),
    [
        *((1, 1, 16 * KIB), (16 * KIB, 4096, 16 * KIB), (16 * KIB + 1, 1, 128 * KIB), (128 * KIB + 1, 1, MIB)),
        *((MIB, MIB // 4, MIB), (MIB + 1, 1, CHUNK_SIZE_BYTES), (CHUNK_SIZE_BYTES, 1, CHUNK_SIZE_BYTES)),
        *((MIB // 2, MIB // 2, CHUNK_SIZE_BYTES), (0, 0, 16 * KIB)),
    ],
)
def test_a_buffer_is_the_smallest_that_fits_or_a_whole_one_for_a_large_write(
    length: int, piece_bytes: int, size_bytes: int
) -> None:
    assert BufferPool.size_for(length, piece_bytes) == size_bytes


def test_a_buffer_is_writable_and_of_the_size_asked() -> None:
    buffer = lend(BufferPool(MIB, MIB), 16 * KIB)
    assert len(buffer) == len(buffer.view) == 16 * KIB
    buffer.view[-1] = 7


def test_no_more_is_lent_than_the_limit() -> None:
    pool = BufferPool(2 * MIB + 16 * KIB, 0)
    first, _ = lend(pool), lend(pool)
    assert pool.lend(MIB) is None
    assert pool.lent_bytes == 2 * MIB
    lend(pool, 16 * KIB)
    pool.give_back(first)
    assert pool.lent_bytes == MIB + 16 * KIB
    lend(pool)
    assert pool.lend(16 * KIB) is None


def test_what_comes_back_is_lent_again_by_size() -> None:
    pool = BufferPool(8 * MIB, 8 * MIB)
    buffer = lend(pool)
    pool.give_back(buffer)
    assert lend(pool, 128 * KIB) is not buffer
    assert lend(pool) is buffer
    assert lend(pool) is not buffer


def test_no_more_is_kept_than_the_limit() -> None:
    pool = BufferPool(8 * MIB, 2 * MIB)
    buffers = [lend(pool) for _ in range(4)]
    for buffer in buffers:
        pool.give_back(buffer)
    again = [lend(pool) for _ in range(4)]
    assert sum(buffer in again for buffer in buffers) == 2
    for buffer in again:
        pool.give_back(buffer)
    assert pool.lent_bytes == 0


def test_a_pinned_buffer_stays_lent_until_its_last_pin_is_gone() -> None:
    pool = BufferPool(MIB, MIB)
    buffer = lend(pool)
    buffer.pins = 2
    pool.give_back(buffer)
    assert pool.lend(MIB) is None
    pool.unpin(buffer)
    assert pool.lend(MIB) is None
    pool.unpin(buffer)
    assert lend(pool) is buffer


def test_unpinning_a_buffer_in_use_does_not_give_it_back() -> None:
    pool = BufferPool(MIB, MIB)
    pool.give_back(lend(pool))
    buffer = lend(pool)
    buffer.pins = 1
    pool.unpin(buffer)
    assert pool.lent_bytes == MIB
    pool.give_back(buffer)
    assert pool.lent_bytes == 0
