"""A chunk server that is gone or says nothing: errors come in time, and the rest of a file is read."""

from __future__ import annotations

import errno
import math

import pytest
import trio
import trio.testing

from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import Cluster
from tests.vfs.faults import Kind, deadlines, faulty
from tests.vfs.program import PIECE_BYTES, Program, started, until_met


async def file_on_both_nodes(cluster: Cluster, filesystem: Filesystem) -> tuple[Program, dict[str, list[int]]]:
    """A file of six chunks, and which of them each node has."""
    program = await started(filesystem)
    for index in range(6):
        await program.write(index * CHUNK_SIZE_BYTES, b"%d" % index * PIECE_BYTES)
    await program.fsync()
    chunks: dict[str, list[int]] = {node.name: [] for node in cluster.nodes}
    for index, (server,) in filesystem._meta.table.directory.chunks(program.ino).items():
        chunks[server].append(index)
    assert all(chunks.values())
    return program, chunks


async def read_first(filesystem: Filesystem, program: Program, index: int) -> bytes:
    return bytes(await filesystem.read(program.fh, index * CHUNK_SIZE_BYTES, 10))


@pytest.mark.parametrize("told", [False, True])
async def test_what_a_node_that_is_gone_had_is_eio_at_once_and_the_rest_is_read(
    cluster: Cluster, filesystem: Filesystem, told: bool
) -> None:
    program, chunks = await file_on_both_nodes(cluster, filesystem)
    cluster.nodes[0].scope.cancel()
    await trio.testing.wait_all_tasks_blocked(0.01)
    if told:
        cluster.publish(lost=("node1",))
        while all(node.alive for node in filesystem._meta.placement.nodes):
            await trio.sleep(0.01)
    with trio.fail_after(0.9):
        for index in chunks["node1"]:
            with pytest.raises(FilesystemError) as raised:
                await read_first(filesystem, program, index)
            assert raised.value.errno == errno.EIO
        for index in chunks["node2"]:
            assert await read_first(filesystem, program, index) == b"%d" % index * 10
    await filesystem.data.fsync(program.fh)


async def test_a_read_across_chunks_one_of_which_is_lost_is_eio(cluster: Cluster, filesystem: Filesystem) -> None:
    program, chunks = await file_on_both_nodes(cluster, filesystem)
    cluster.nodes[0].scope.cancel()
    border = next(index for index in range(1, 6) if {index - 1, index} & set(chunks["node1"])) * CHUNK_SIZE_BYTES
    with pytest.raises(FilesystemError) as raised:
        await filesystem.read(program.fh, border - 10, 20)
    assert raised.value.errno == errno.EIO


async def test_reading_ahead_into_a_lost_chunk_ends_nothing(cluster: Cluster, filesystem: Filesystem) -> None:
    program, chunks = await file_on_both_nodes(cluster, filesystem)
    cluster.nodes[0].scope.cancel()
    border = next(index for index in range(1, 6) if index in chunks["node1"]) * CHUNK_SIZE_BYTES
    for at in range(border - 3 * PIECE_BYTES // 2 - MIB, border - PIECE_BYTES, PIECE_BYTES):
        await filesystem.read(program.fh, at, PIECE_BYTES)
    await trio.testing.wait_all_tasks_blocked(0.05)
    assert await filesystem.attributes(program.ino)


async def test_a_request_under_way_ends_when_its_server_is_called_lost(cluster: Cluster, filesystem: Filesystem) -> None:
    program, chunks = await file_on_both_nodes(cluster, filesystem)
    with deadlines(reply_s=5), faulty(cluster, "node1", "read", 1, Kind.STALL, times=math.inf) as fault:
        async with trio.open_nursery() as nursery:

            async def read() -> None:
                with pytest.raises(FilesystemError):
                    await read_first(filesystem, program, chunks["node1"][0])

            nursery.start_soon(read)
            await until_met(fault)
            cluster.publish(lost=("node1",))
            with trio.fail_after(2):
                while nursery.child_tasks:
                    await trio.sleep(0.01)


# -- time limits -----------------------------------------------------------------------------------------------------


async def test_a_read_of_a_server_that_never_answers_is_eio_in_time(cluster: Cluster, filesystem: Filesystem) -> None:
    program, chunks = await file_on_both_nodes(cluster, filesystem)
    with faulty(cluster, "node1", "read", 1, Kind.STALL, times=math.inf), trio.fail_after(4):
        with pytest.raises(FilesystemError) as raised:
            await read_first(filesystem, program, chunks["node1"][0])
        assert raised.value.errno == errno.EIO


async def test_many_readers_of_a_server_that_cannot_be_reached_wait_no_longer_than_one(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    program, chunks = await file_on_both_nodes(cluster, filesystem)
    proxy = cluster.nodes[0].proxy
    assert proxy is not None
    proxy.silent = True
    with trio.fail_after(4):
        async with trio.open_nursery() as nursery:
            for _ in range(10):

                async def read() -> None:
                    with pytest.raises(FilesystemError):
                        await read_first(filesystem, program, chunks["node1"][0])

                nursery.start_soon(read)


async def test_a_slow_server_that_goes_on_answering_is_not_given_up(cluster: Cluster, filesystem: Filesystem) -> None:
    """Each answer comes in time, the last of those asked for at once only much later."""
    program = await started(filesystem)
    await program.write(0, bytes(12 * KIB))
    await program.fsync()
    with faulty(cluster, None, "write", 1, Kind.DELAY, times=math.inf, delay_s=0.15):
        for number in range(12):
            await program.write(number * KIB, b"slow" * 256)
        await program.fsync()
    assert program.errors == []
