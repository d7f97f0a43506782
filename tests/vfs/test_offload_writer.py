"""The output of a job: complete under its name, or not there at all; with the chunks on the job's node as long as they fit."""

from __future__ import annotations

import errno
import stat
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.xattrs import REPLICAS
from gridfs.offload.job import Output
from gridfs.offload.writer import OutputFile, partial_name, sweep
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import Cluster, running
from tests.vfs.faults import Kind, faulty
from tests.vfs.files import read_all, write_closed
from tests.vfs.jobs import PATTERN, SUBMITTER, gateway, in_thread, job, output

LATE_S = 10.0
"""Far less than what a cancelled job would go on for."""

CONTENT = PATTERN * 2 + PATTERN[:777]
OWN = "node2"


def names(cluster: Cluster) -> set[bytes]:
    """What is in the root directory."""
    return set(cluster.meta.engine.table.inodes[ROOT_INO].entries or ())


def holders(cluster: Cluster, name: bytes) -> list[tuple[str, ...]]:
    """The servers of each of the file's chunks."""
    table = cluster.meta.engine.table
    chunks = table.directory.chunks(table.lookup(ROOT_INO, name).ino)
    return [chunks[index] for index in sorted(chunks)]


def write_all(file: OutputFile, content: bytes, piece_bytes: int = 3 * MIB) -> int:
    """Write a file from its beginning to its end, in pieces that chunks do not begin with."""
    file.open()
    for start in range(0, len(content), piece_bytes):
        file.write(content[start : start + piece_bytes])
    return file.commit()


async def written(cluster: Cluster, content: bytes, where: Output | None = None) -> int:
    """Write the output of a job on node2."""
    where = where or output()
    async with gateway(cluster) as connections:
        return await in_thread(write_all, OutputFile(connections, job(output=where), where, 1, OWN), content)


@pytest.mark.parametrize("size", [0, 1, CHUNK_SIZE_BYTES, len(CONTENT)])
async def test_what_was_written_is_read_under_its_name_and_is_the_submitter_s(
    cluster: Cluster, filesystem: Filesystem, size: int
) -> None:
    assert await written(cluster, CONTENT[:size]) == size
    assert await read_all(filesystem, b"out") == CONTENT[:size]
    attributes = await filesystem.lookup(ROOT_INO, b"out")
    assert (attributes.uid, attributes.gid, attributes.mode) == (SUBMITTER.uid, SUBMITTER.gid, stat.S_IFREG | 0o644)
    assert names(cluster) == {b"out"}


async def test_the_chunks_are_on_the_job_s_node(cluster: Cluster) -> None:
    await written(cluster, CONTENT)
    assert holders(cluster, b"out") == [(OWN,)] * 3


async def test_what_does_not_fit_there_goes_to_other_nodes(tmp_path: Path) -> None:
    async with running(tmp_path, capacity_bytes=12 * MIB) as cluster, cluster.mounted() as filesystem:
        await written(cluster, CONTENT)
        assert {server for servers in holders(cluster, b"out") for server in servers} == {"node1", "node2"}
        assert await read_all(filesystem, b"out") == CONTENT


async def test_no_room_is_enospc_and_leaves_nothing(tmp_path: Path) -> None:
    async with running(tmp_path, capacity_bytes=4 * MIB) as cluster, cluster.mounted(), gateway(cluster) as connections:
        file = OutputFile(connections, job(output=output()), output(), 1, OWN)
        with pytest.raises(FilesystemError) as caught:
            await in_thread(write_all, file, CONTENT)
        assert caught.value.errno == errno.ENOSPC
        await in_thread(file.abort)
        await emptied(cluster)


async def test_room_that_was_taken_for_one_copy_comes_back_when_there_is_none_for_the_other(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=1, capacity_bytes=4 * MIB) as cluster, cluster.mounted() as filesystem:
        cluster.add_node(OWN, 64 * MIB)
        await filesystem.set_xattr(ROOT_INO, REPLICAS, b"2")
        async with gateway(cluster) as connections:
            file = OutputFile(connections, job(output=output()), output(), 1, OWN)
            with pytest.raises(FilesystemError, match="no node has room"):
                await in_thread(write_all, file, CONTENT)
            await in_thread(file.abort)
            await emptied(cluster)


async def emptied(cluster: Cluster) -> None:
    """Wait until the cluster has no file, no orphan and no byte; room that was taken comes back, too."""
    assert names(cluster) == set()
    with trio.fail_after(5):
        while cluster.used_bytes or cluster.meta.engine.table.orphans:
            await trio.sleep(0.01)
        while any(node.service.granted_bytes for node in cluster.nodes):
            await trio.sleep(0.01)


async def test_a_directory_s_replicas_count(cluster: Cluster, filesystem: Filesystem) -> None:
    await filesystem.set_xattr(ROOT_INO, REPLICAS, b"2")
    await written(cluster, CONTENT)
    assert holders(cluster, b"out") == [(OWN, "node1")] * 3
    assert await read_all(filesystem, b"out") == CONTENT
    assert cluster.used_bytes == 2 * len(CONTENT)


async def test_a_name_that_was_taken_meanwhile_is_eexist_and_stays_as_it_is(cluster: Cluster, filesystem: Filesystem) -> None:
    async with gateway(cluster) as connections:
        file = OutputFile(connections, job(output=output()), output(), 1, OWN)
        await in_thread(file.open)
        await in_thread(file.write, CONTENT)
        await write_closed(filesystem, b"out", b"mine")
        with pytest.raises(FilesystemError) as caught:
            await in_thread(file.commit)
        assert caught.value.errno == errno.EEXIST
        await in_thread(file.abort)
    assert names(cluster) == {b"out"}
    assert await read_all(filesystem, b"out") == b"mine"


async def test_a_file_that_may_be_overwritten_is_the_old_one_until_the_new_one_is_complete(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    await write_closed(filesystem, b"out", b"old")
    where = output(overwrite=True)
    async with gateway(cluster) as connections:
        file = OutputFile(connections, job(output=where), where, 1, OWN)
        await in_thread(file.open)
        await in_thread(file.write, CONTENT)
        assert await read_all(filesystem, b"out") == b"old"
        await in_thread(file.commit)
        assert await read_all(filesystem, b"out") == CONTENT


async def test_a_file_that_is_given_up_leaves_no_name_and_no_byte(cluster: Cluster, filesystem: Filesystem) -> None:
    async with gateway(cluster) as connections:
        file = OutputFile(connections, job(output=output()), output(), 1, OWN)
        await in_thread(file.open)
        await in_thread(file.write, CONTENT)
        assert names(cluster) == {partial_name(b"out", 7, 1)}
        await in_thread(file.abort)
        with pytest.raises(FilesystemError):
            await in_thread(file.commit)
        await emptied(cluster)


async def test_giving_up_ends_a_write_that_waits_for_a_server_that_hangs(cluster: Cluster, filesystem: Filesystem) -> None:
    async with gateway(cluster) as connections, trio.open_nursery() as nursery:
        file = OutputFile(connections, job(output=output()), output(), 1, OWN)
        await in_thread(file.open)
        ended = trio.Event()

        async def write() -> None:
            with pytest.raises(FilesystemError, match="given up"):
                await in_thread(file.write, CONTENT * 3)
            ended.set()

        with faulty(cluster, None, "write", 1, Kind.STALL) as fault:
            nursery.start_soon(write)
            await fault.met.wait()
            with trio.fail_after(LATE_S):
                await in_thread(file.abort)
                await ended.wait()
            assert names(cluster) == set()


@pytest.mark.expected_log("goes elsewhere")
@pytest.mark.parametrize("kind", [Kind.CUT_BEFORE, Kind.CUT_AFTER, Kind.FAIL])
async def test_a_chunk_server_that_fails_is_passed_over(cluster: Cluster, filesystem: Filesystem, kind: Kind) -> None:
    with faulty(cluster, OWN, "write", 2, kind):
        await written(cluster, CONTENT)
    assert ("node1",) in holders(cluster, b"out")
    assert await read_all(filesystem, b"out") == CONTENT


@pytest.mark.expected_log("goes elsewhere")
async def test_the_first_of_two_copies_may_fail(cluster: Cluster, filesystem: Filesystem) -> None:
    await filesystem.set_xattr(ROOT_INO, REPLICAS, b"2")
    with faulty(cluster, OWN, "write", 1, Kind.CUT_BEFORE):
        await written(cluster, CONTENT[:CHUNK_SIZE_BYTES])
    assert holders(cluster, b"out")[0][0] == "node1"
    assert await read_all(filesystem, b"out") == CONTENT[:CHUNK_SIZE_BYTES]
    with trio.fail_after(5):  # the mount makes the other copy anew
        while holders(cluster, b"out") != [("node1", OWN)]:
            await trio.sleep(0.01)


async def test_a_mount_that_attaches_meanwhile_tidies_nothing_of_it_away(cluster: Cluster) -> None:
    async with gateway(cluster) as connections:
        file = OutputFile(connections, job(output=output()), output(), 1, OWN)
        await in_thread(file.open)
        await in_thread(file.write, CONTENT)
        async with cluster.mounted() as filesystem:
            await in_thread(file.commit)
            assert await read_all(filesystem, b"out") == CONTENT


async def test_what_an_attempt_before_has_left_goes_with_the_next_one(cluster: Cluster, filesystem: Filesystem) -> None:
    async with gateway(cluster) as connections:
        dead = OutputFile(connections, job(output=output()), output(), 1, OWN)
        await in_thread(dead.open)
        await in_thread(dead.write, CONTENT)
        await in_thread(write_all, OutputFile(connections, job(output=output()), output(), 2, OWN), b"second")
        assert names(cluster) == {b"out"}
        assert await read_all(filesystem, b"out") == b"second"
        with pytest.raises(FilesystemError):  # it was not dead after all: it does not get in the way
            await in_thread(dead.commit)
        assert await read_all(filesystem, b"out") == b"second"


async def test_a_sweep_removes_what_is_left_and_minds_nothing_else(cluster: Cluster, filesystem: Filesystem) -> None:
    async with gateway(cluster) as connections:
        file = OutputFile(connections, job(output=output()), output(), 2, OWN)
        await in_thread(file.open)
        await write_closed(filesystem, b"other", b"x")
        for _ in range(2):
            await in_thread(connections.call, sweep, connections, job(output=output()), 3)
            assert names(cluster) == {b"other"}


def test_a_partial_name_fits_where_its_name_does() -> None:
    assert partial_name(b"out", 17, 2) == b".out.job-17-2"
    assert len(partial_name(b"x" * 255, 1 << 40, 3)) == 255
