"""Reads: what is fetched ahead, what it may cost, and that every byte is right whatever is fetched."""

from __future__ import annotations

import math
import os
import random
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from gridfs.config import KIB, MIB
from gridfs.vfs.budget import Limits
from gridfs.vfs.filesystem import Filesystem
from gridfs.vfs.readahead import STREAMS_MAX, WASTE_START_BYTES, WINDOW_MAX_BYTES
from tests.vfs.cluster import Cluster, running
from tests.vfs.files import read_all, write_closed

SIZE = 48 * MIB
CONTENT = random.Random(7).randbytes(MIB) * 47 + random.Random(8).randbytes(MIB)
Reads = list[tuple[int, int]]


@dataclass
class Reader:
    """A handle, and what was asked of it and of the chunk servers since it was opened."""

    filesystem: Filesystem
    content: bytes
    fh: int = 0
    asked_bytes: int = 0
    fetched_bytes: int = 0
    fetches: list[int] = field(default_factory=list)

    async def open(self, ino: int) -> None:
        self.fh = await self.filesystem.open(ino, os.O_RDWR)
        read = self.filesystem._chunks.read

        async def counted(server: str, chunk_id: Any, offset: int, view: memoryview, patience_s: float = math.inf) -> None:
            self.fetched_bytes += len(view)
            self.fetches.append(len(view))
            await read(server, chunk_id, offset, view, patience_s)

        self.filesystem._chunks.read = counted  # type: ignore[method-assign]

    async def read(self, offset: int, length: int) -> None:
        self.asked_bytes += length
        assert bytes(await self.filesystem.read(self.fh, offset, length)) == self.content[offset : offset + length]

    async def run(self, reads: Reads) -> None:
        for offset, length in reads:
            await self.read(offset, length)
        await wait_all_tasks_blocked()


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as cluster:
        yield cluster


@pytest.fixture
async def reader(cluster: Cluster) -> AsyncIterator[Reader]:
    """A file of SIZE bytes, opened by a mount that did not write it."""
    async with cluster.mounted() as filesystem:
        ino = await write_closed(filesystem, b"file", CONTENT)
        reader = Reader(filesystem, CONTENT)
        await reader.open(ino)
        yield reader


def sequence(start: int, end: int, length: int, step: int = 0) -> Reads:
    return [(offset, min(length, SIZE - offset)) for offset in range(start, end, step or length)]


# -- sequential reads ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("length", [64 * KIB, 128 * KIB, MIB])
async def test_a_file_read_from_end_to_end_is_fetched_once(reader: Reader, length: int) -> None:
    await reader.run(sequence(0, SIZE, length))
    assert reader.fetched_bytes == SIZE


async def test_the_first_read_fetches_nothing_ahead_and_the_second_does(reader: Reader) -> None:
    await reader.run([(0, MIB)])
    assert reader.fetched_bytes == MIB
    await reader.run([(MIB, MIB)])
    assert reader.fetched_bytes == 3 * MIB


async def test_one_read_fetches_nothing_ahead_though_little_is_left(reader: Reader) -> None:
    await reader.run([(SIZE - MIB - 200 * KIB, MIB)])
    assert reader.fetched_bytes == MIB


async def test_the_window_grows_with_what_was_read_and_not_beyond_its_bound(reader: Reader) -> None:
    ahead = []
    for offset in range(0, SIZE // 2, MIB):
        await reader.run([(offset, MIB)])
        ahead.append(reader.fetched_bytes - reader.asked_bytes)
    assert ahead == sorted(ahead)
    assert 4 * MIB <= ahead[-1] <= WINDOW_MAX_BYTES


async def test_the_last_read_of_a_file_may_be_short(reader: Reader) -> None:
    await reader.run(sequence(SIZE - 5 * MIB - 300, SIZE, 300_000))
    assert reader.fetched_bytes == reader.asked_bytes


async def test_several_streams_on_one_handle_each_read_ahead(reader: Reader) -> None:
    count = STREAMS_MAX // 2
    parts = [sequence(SIZE * part // count, SIZE * (part + 1) // count, 128 * KIB) for part in range(count)]
    await reader.run([read for reads in zip(*parts, strict=True) for read in reads])
    assert reader.fetched_bytes <= SIZE + WASTE_START_BYTES
    plain = await _plain(reader, parts)
    assert plain < 20


async def _plain(reader: Reader, parts: list[Reads]) -> int:
    """How many reads find nothing read ahead, when the same is read once more."""
    fetch, plain = reader.filesystem.data._fetcher.fetch, 0

    async def counted(*arguments: Any) -> bytearray:
        nonlocal plain
        plain += 1
        return await fetch(*arguments)

    reader.filesystem.data._fetcher.fetch = counted  # type: ignore[method-assign, assignment]
    await reader.run([read for reads in zip(*parts, strict=True) for read in reads])
    return plain


async def test_reads_that_overtake_each_other_are_a_stream(reader: Reader) -> None:
    """As the kernel sends those of its own read-ahead."""
    reads = sequence(0, SIZE, 128 * KIB)
    for at in range(1, len(reads) - 1, 2):
        reads[at], reads[at + 1] = reads[at + 1], reads[at]
    await reader.run(reads)
    assert reader.fetched_bytes <= SIZE + WASTE_START_BYTES
    assert sum(size == 128 * KIB for size in reader.fetches) == len(reader.fetches)
    assert await _plain(reader, [reads]) < 10


# -- other reads -----------------------------------------------------------------------------------------------------


def scattered(length: int) -> Reads:
    dice = random.Random(3)
    return [(dice.randrange(SIZE - length), length) for _ in range(200)]


def mixed() -> Iterator[tuple[int, int]]:
    """Now and then some reads in a row, and then elsewhere."""
    dice = random.Random(4)
    for _ in range(150):
        at = dice.randrange(0, SIZE - 8 * MIB, 4 * KIB)
        length = dice.choice((4 * KIB, 128 * KIB, 512 * KIB))
        yield from ((at + number * length, length) for number in range(dice.randrange(1, 6)))


PATTERNS = {
    "strided": sequence(0, SIZE, 128 * KIB, MIB),
    "strided, small": sequence(0, SIZE, 4 * KIB, 64 * KIB),
    "strided, large": sequence(0, SIZE, MIB, 3 * MIB),
    "backward": sequence(0, SIZE, 128 * KIB)[::-1],
    "backward, small": sequence(0, 4 * MIB, 4 * KIB)[::-1],
    "backward, large": sequence(0, SIZE, MIB)[::-1],
    "random, small": scattered(4 * KIB),
    "random": scattered(128 * KIB),
    "random, large": scattered(MIB),
}
MIXED = {
    "backward in pairs": [read for at in range(SIZE - 2 * MIB, -1, -2 * MIB) for read in ((at, MIB), (at + MIB, MIB))],
    "here and there": list(mixed()),
    "a stream, then strides": sequence(0, SIZE // 2, MIB) + sequence(SIZE // 2, SIZE, 64 * KIB, 2 * MIB),
    "a stream given up again and again": sequence(0, 16 * MIB, MIB) * 4,
}


@pytest.mark.parametrize("pattern", PATTERNS)
async def test_reads_that_are_no_stream_fetch_what_was_asked(reader: Reader, pattern: str) -> None:
    await reader.run(PATTERNS[pattern])
    assert reader.fetched_bytes <= 1.25 * reader.asked_bytes


@pytest.mark.parametrize("pattern", MIXED)
async def test_whatever_is_read_little_is_fetched_in_vain(reader: Reader, pattern: str) -> None:
    await reader.run(MIXED[pattern])
    assert reader.fetched_bytes <= 1.25 * reader.asked_bytes + WASTE_START_BYTES


async def test_a_small_random_read_fetches_no_more_than_it_was_asked_for(reader: Reader) -> None:
    await reader.run([(20 * MIB + 5, 100)])
    assert reader.fetched_bytes == 100


async def test_random_reads_beside_a_stream_do_not_end_it(reader: Reader) -> None:
    dice = random.Random(5)
    await reader.run(sequence(0, 3 * MIB, MIB))
    for one in sequence(3 * MIB, SIZE // 2, MIB):
        await reader.run([one, *((dice.randrange(SIZE // 2, SIZE - 4 * KIB), 4 * KIB) for _ in range(2 * STREAMS_MAX))])
    assert reader.fetched_bytes > reader.asked_bytes  # it was ahead to the end


# -- beside writes ---------------------------------------------------------------------------------------------------


class HeldWrites:
    """Chunk servers that take no write before `release`."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._chunks, self._write = filesystem._chunks, filesystem._chunks.write
        self._held: list[tuple[Any, ...]] = []
        self._chunks.write = lambda *arguments: self._held.append(arguments)  # type: ignore[method-assign, assignment]

    def release(self) -> None:
        self._chunks.write = self._write  # type: ignore[method-assign]
        for arguments in self._held:
            self._write(*arguments)


async def test_a_read_of_bytes_in_the_window_is_answered_from_it(reader: Reader) -> None:
    held = HeldWrites(reader.filesystem)
    with trio.fail_after(5):
        await reader.filesystem.data.write(reader.fh, 100, b"older" * 100)
        await reader.filesystem.data.write(reader.fh, 150, b"newer")
        assert bytes(await reader.filesystem.read(reader.fh, 150, 5)) == b"newer"
        assert bytes(await reader.filesystem.read(reader.fh, 152, 2)) == b"we"
        assert bytes(await reader.filesystem.read(reader.fh, 100, 50)) == b"older" * 10
        await reader.read(900, 1000)
    assert reader.fetched_bytes == 1000
    held.release()
    await reader.filesystem.data.fsync(reader.fh)


async def test_a_read_that_more_than_one_write_touches_waits_for_them(reader: Reader) -> None:
    held, answers = HeldWrites(reader.filesystem), list[bytes]()

    async def read(offset: int, length: int) -> None:
        answers.append(bytes(await reader.filesystem.read(reader.fh, offset, length)))

    await reader.filesystem.data.write(reader.fh, 100, b"older" * 100)
    await reader.filesystem.data.write(reader.fh, 150, b"newer")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(read, 145, 15)
        nursery.start_soon(read, 598, 4)
        await wait_all_tasks_blocked()
        assert answers == []
        held.release()
    assert sorted(answers) == sorted([b"oldernewerolder", b"er" + CONTENT[600:602]])


async def test_what_was_read_ahead_is_not_served_once_it_was_overwritten(reader: Reader) -> None:
    await reader.run(sequence(0, 8 * MIB, MIB))
    assert reader.fetched_bytes > 9 * MIB
    patch = random.Random(6).randbytes(1000)
    await reader.filesystem.data.write(reader.fh, 8 * MIB + 500, patch)
    await reader.filesystem.data.fsync(reader.fh)
    reader.content = CONTENT[: 8 * MIB + 500] + patch + CONTENT[8 * MIB + 1500 :]
    await reader.run(sequence(8 * MIB, SIZE, MIB))


# -- memory ----------------------------------------------------------------------------------------------------------


async def test_many_files_read_and_written_at_once_stay_within_the_budget(cluster: Cluster) -> None:
    limits, contents = Limits(6 * MIB, 2 * MIB), [bytes([number]) * (3 * MIB) for number in range(1, 41)]
    async with cluster.mounted(limits=limits) as filesystem:
        budget, peak = filesystem.data._budget, 0
        read = filesystem._chunks.read

        async def watched(*arguments: Any) -> None:
            nonlocal peak
            peak = max(peak, budget.used_bytes)
            await read(*arguments)

        filesystem._chunks.read = watched  # type: ignore[method-assign, assignment]
        async with trio.open_nursery() as nursery:
            for number, content in enumerate(contents):
                nursery.start_soon(partial(_write_and_read, filesystem, b"%d" % number, content))
        assert limits.budget_bytes // 2 < peak <= limits.budget_bytes
        assert budget.used_bytes == 0
        assert await read_all(filesystem, b"0") == contents[0]


async def _write_and_read(filesystem: Filesystem, name: bytes, content: bytes) -> None:
    ino = await write_closed(filesystem, name, content)
    fh = await filesystem.open(ino, os.O_RDONLY)
    for at in range(0, len(content), 256 * KIB):
        assert bytes(await filesystem.read(fh, at, 256 * KIB)) == content[at : at + 256 * KIB]
    await filesystem.release(fh)
