"""The input of a job: every byte once and in order, wherever it is, or an error; in this process and in a forked child."""

from __future__ import annotations

import os
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.offload.job import Input
from gridfs.offload.source import AHEAD_PIECES, PIECE_BYTES, BytesLostError, Source
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import Cluster
from tests.vfs.faults import Kind, faulty
from tests.vfs.files import write_fsynced
from tests.vfs.jobs import PATTERN, gateway, hold, in_thread, job

CONTENT = b"".join(bytes([number]) * CHUNK_SIZE_BYTES for number in range(1, 5)) + PATTERN[:777]


def whole(input_: Input) -> list[tuple[int, int]]:
    """One run of all chunks."""
    return [(0, input_.chunk_count)]


def read(source: Source, number: int = 0) -> bytes:
    """All bytes of a run."""
    return b"".join(map(bytes, source.run(number)))


def read_in_child(source: Source) -> bytes:
    """All bytes of the first run, as a forked child sees them that has `fetched` as its standard input."""
    fed, feeding = os.pipe()
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.dup2(fed, 0)
            os.close(feeding)
            for piece in source.run_in_child(0):
                while piece:
                    piece = piece[os.write(writing, piece) :]
        finally:
            os._exit(0)
    os.close(fed)
    os.close(writing)
    failed: list[BytesLostError] = []

    def feed() -> None:
        with os.fdopen(feeding, "wb") as file:
            try:
                for piece in source.fetched():
                    file.write(piece)
            except BytesLostError as error:
                failed.append(error)

    feeder = threading.Thread(target=feed)
    feeder.start()
    with os.fdopen(reading, "rb") as output:
        content = output.read()
    os.waitpid(child, 0)
    feeder.join()
    for error in failed:
        raise error
    return content


def here(input_: Input, node: str) -> dict[int, memoryview]:
    """What the node has, in memory."""
    indices = [index for index, servers in input_.chunks.items() if node in servers]
    return {index: memoryview(CONTENT)[index * CHUNK_SIZE_BYTES :][:CHUNK_SIZE_BYTES] for index in indices}


@asynccontextmanager
async def sourced(
    cluster: Cluster, input_: Input, held: Mapping[int, memoryview], runs: list[tuple[int, int]] | None = None
) -> AsyncIterator[Source]:
    """The input's bytes; nothing of it is left under way at the end."""
    async with gateway(cluster) as connections:
        source = Source(connections, job(input_=input_), whole(input_) if runs is None else runs, held)
        yield source
        await in_thread(source.stop)


READERS = pytest.mark.parametrize("reader", [read, read_in_child])
Reader = Callable[[Source], bytes]


@READERS
@pytest.mark.parametrize("node", ["", "node1"])
async def test_what_is_here_and_what_is_elsewhere_makes_the_file(
    cluster: Cluster, filesystem: Filesystem, reader: Reader, node: str
) -> None:
    await write_fsynced(filesystem, b"file", CONTENT)
    input_ = await hold(cluster, b"file")
    held = here(input_, node)
    async with sourced(cluster, input_, held) as source:
        assert await in_thread(reader, source) == CONTENT
    local = sum(map(len, held.values()))
    assert source.counts.read() == (len(CONTENT), local, len(CONTENT) - local)


@READERS
async def test_holes_and_what_a_chunk_is_short_of_are_zeros(cluster: Cluster, filesystem: Filesystem, reader: Reader) -> None:
    ino = await write_fsynced(filesystem, b"file", b"beginning")
    await filesystem.data.truncate(ino, 2 * CHUNK_SIZE_BYTES + 5)
    await filesystem.fsync_names()
    input_ = await hold(cluster, b"file")
    expected = b"beginning".ljust(2 * CHUNK_SIZE_BYTES + 5, b"\0")
    for held in ({}, {0: memoryview(b"beginning")}):
        async with sourced(cluster, input_, held) as source:
            assert await in_thread(reader, source) == expected
        assert source.counts.read()[0] == len(expected)


async def test_runs_are_read_one_after_the_other(cluster: Cluster, filesystem: Filesystem) -> None:
    await write_fsynced(filesystem, b"file", CONTENT)
    async with sourced(cluster, await hold(cluster, b"file"), {}, [(0, 1), (2, 5)]) as source:
        assert await in_thread(read, source, 0) == CONTENT[:CHUNK_SIZE_BYTES]
        assert await in_thread(read, source, 1) == CONTENT[2 * CHUNK_SIZE_BYTES :]


async def test_an_empty_file_has_no_pieces(cluster: Cluster, filesystem: Filesystem) -> None:
    await write_fsynced(filesystem, b"file", b"")
    async with sourced(cluster, await hold(cluster, b"file"), {}) as source:
        assert await in_thread(read, source) == b""


@READERS
async def test_what_nobody_has_is_lost_and_not_made_up(cluster: Cluster, filesystem: Filesystem, reader: Reader) -> None:
    await write_fsynced(filesystem, b"file", CONTENT)
    input_ = await hold(cluster, b"file")
    with faulty(cluster, None, "read_held", 6, Kind.FAIL):
        async with sourced(cluster, input_, {}) as source:
            with pytest.raises(BytesLostError, match="is lost"):
                await in_thread(reader, source)


async def test_another_copy_is_asked_when_one_fails_or_hangs(cluster: Cluster, filesystem: Filesystem) -> None:
    await filesystem.set_xattr(1, b"user.gridfs.replicas", b"2")
    await write_fsynced(filesystem, b"file", CONTENT)
    input_ = await hold(cluster, b"file")
    assert all(len(servers) == 2 for servers in input_.chunks.values())
    for kind in (Kind.FAIL, Kind.STALL):
        with faulty(cluster, "node1", "read_held", 2, kind):
            async with sourced(cluster, input_, {}) as source:
                began_s = trio.current_time()
                assert await in_thread(read, source) == CONTENT
                assert trio.current_time() - began_s < 2, "one that hangs is not waited for at each piece"


async def test_only_a_window_is_fetched_ahead(cluster: Cluster, filesystem: Filesystem) -> None:
    await write_fsynced(filesystem, b"file", CONTENT)
    input_ = await hold(cluster, b"file")
    with faulty(cluster, None, "read_held", 1 << 30, Kind.FAIL) as fault:
        async with sourced(cluster, input_, {}) as source:
            pieces = source.run(0)
            await in_thread(next, pieces)
            with trio.move_on_after(0.3):
                while fault.seen <= AHEAD_PIECES + 2:
                    await trio.sleep(0.01)
            assert fault.seen <= AHEAD_PIECES + 2 < len(CONTENT) // PIECE_BYTES


async def test_stopping_ends_a_reader_that_waits(cluster: Cluster, filesystem: Filesystem) -> None:
    await write_fsynced(filesystem, b"file", CONTENT)
    input_ = await hold(cluster, b"file")
    with faulty(cluster, None, "read_held", 1, Kind.STALL) as fault, trio.fail_after(2):
        async with sourced(cluster, input_, {}) as source, trio.open_nursery() as nursery:

            async def wait() -> None:
                with pytest.raises(BytesLostError):
                    await in_thread(read, source)

            nursery.start_soon(wait)
            await fault.met.wait()
            await in_thread(source.stop)


async def test_the_memory_of_a_source_does_not_depend_on_the_size_of_a_hole(cluster: Cluster) -> None:
    size = 1 << 44
    async with sourced(cluster, Input(99, "sparse", size), {}, [(0, 1 << 15)]) as source:
        pieces = source.run(0)
        assert sum(len(next(pieces)) for _ in range(1000)) == 1000 * CHUNK_SIZE_BYTES


async def test_pieces_of_this_node_are_not_copied(cluster: Cluster) -> None:
    content = memoryview(bytearray(PATTERN))
    async with sourced(cluster, Input(99, "file", len(PATTERN), {0: ("node1",)}), {0: content}) as source:
        (piece,) = source.run(0)
        content[0] = 99
        assert piece[0] == 99
