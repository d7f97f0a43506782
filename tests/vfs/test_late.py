"""What is late: requests of a connection that was given up, and those who wait for others."""

from __future__ import annotations

import errno
import math
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from gridfs.chunk.client import WRITE, NodeLink
from gridfs.config import KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.types import ChunkId
from gridfs.vfs.budget import Limits
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER, Cluster, running
from tests.vfs.conftest import LIMIT_S
from tests.vfs.faults import Kind, deadlines, faulty
from tests.vfs.files import FILE
from tests.vfs.program import PIECE_BYTES, Program, started, until_met
from tests.vfs.test_sharing import cut_off

# -- what is under way on a connection that was given up -------------------------------------------------------------


@pytest.mark.expected_log("were lost")
async def test_a_write_that_arrives_late_does_not_undo_what_was_acknowledged_since(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    program = await started(filesystem)
    await program.write(0, b"first ")
    await program.fsync()
    with faulty(cluster, None, "write", 1, Kind.STALL) as fault:
        await program.write(0, b"second")
        with pytest.raises(FilesystemError):
            await filesystem.data.fsync(program.fh)
        await program.write(0, b"third ")
        await filesystem.data.fsync(program.fh)
        fault.over.set()
        await fault.through.wait()
        assert await program.read() == [b"third "]


async def test_a_truncation_that_arrives_late_cuts_nothing_that_was_acknowledged_since(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    program = await started(filesystem)
    await program.write(0, b"first and long")
    with faulty(cluster, None, "truncate", 1, Kind.STALL) as fault:
        await program.truncate(5)
        await program.write(5, b" and longer")
        await program.fsync()
        fault.over.set()
        await fault.through.wait()
        assert await program.read() == [b"first and longer"]


@pytest.mark.expected_log("were lost")
async def test_a_connection_that_the_server_takes_for_alive_keeps_nobody_from_the_chunk(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    """The client's side is gone in the middle of a write, and the network did not say so."""
    program = await started(filesystem)
    with faulty(cluster, None, "write", 1, Kind.TORN):
        await program.write(0, b"x" * MIB)
        await program.fsync()
    assert program.errors == [errno.EIO]


@pytest.mark.expected_log("were lost")
async def test_a_write_that_a_fenced_session_has_sent_takes_no_effect(cluster: Cluster, filesystem: Filesystem) -> None:
    program = await started(filesystem)
    await program.write(0, b"before")
    await program.fsync()
    (server,) = filesystem._meta.table.directory.servers(program.ino, 0)
    (node,) = [node for node in cluster.nodes if node.name == server]
    chunk = node.service.chunks.find(ChunkId(program.ino, 0))
    assert chunk is not None
    async with chunk.locked():  # as if another client were writing to it
        await filesystem.data.write(program.fh, 0, b"FENCED")
        while not (chunk.lock and chunk.lock.statistics().tasks_waiting):
            await trio.sleep(0.001)
        node.service._fence(filesystem._meta.epoch, frozenset())
    await trio.testing.wait_all_tasks_blocked(0.01)
    view, _ = node.service.chunks.read(ChunkId(program.ino, 0), 0, 6)
    assert bytes(view) == b"before"


# -- truncation, space, and waiting ----------------------------------------------------------------------------------


async def test_what_a_truncation_that_failed_should_have_cut_does_not_come_back(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    program = await started(filesystem)
    await program.write(0, b"x" * 100)
    with faulty(cluster, None, "truncate", 1, Kind.FAIL):
        await program.truncate(10)
    await filesystem.change(program.ino, size=100)
    assert bytes(await filesystem.read(program.fh, 0, 100)) == b"x" * 10 + bytes(90)


@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.CUT_BEFORE, Kind.CUT_AFTER])
async def test_a_grant_that_is_lost_is_no_lack_of_space(cluster: Cluster, filesystem: Filesystem, kind: Kind) -> None:
    program, link = await without_a_grant(filesystem)
    with faulty(cluster, None, "grant", 1, kind):
        await program.write(1, b"y" * PIECE_BYTES)
        await program.fsync()
    assert program.errors == [errno.EIO]
    assert link.grants is not None
    assert link.grants.held_bytes > 0


@pytest.mark.expected_log("were lost")
async def test_a_connection_that_ends_right_behind_a_grant_is_no_lack_of_space(filesystem: Filesystem) -> None:
    program, link = await without_a_grant(filesystem)
    connection = await link.connection(WRITE)
    call = connection.call

    async def call_and_end(*arguments: Any) -> Any:
        granted = await call(*arguments)
        connection.close()
        return granted

    connection.call = call_and_end  # type: ignore[assignment]
    await program.write(1, b"y")
    await program.fsync()
    assert program.errors == [errno.EIO]


async def without_a_grant(filesystem: Filesystem) -> tuple[Program, NodeLink]:
    """A program with one byte written, and the link to the node that has it, which must ask for space before the next."""
    program = await started(filesystem)
    await program.write(0, b"x")
    await program.fsync()
    link = filesystem._chunks.link(*filesystem._meta.table.directory.servers(program.ino, 0))
    assert link.grants is not None
    link.grants.balance_bytes = 0
    link.grants._rooms.clear()
    return program, link


async def test_writers_of_several_files_wait_for_room_in_the_window_side_by_side(cluster: Cluster) -> None:
    async with cluster.mounted(limits=Limits(window_bytes=2 * PIECE_BYTES)) as filesystem:
        programs = [await started(filesystem, name) for name in (b"one", b"two", b"three")]
        late = faulty(cluster, None, "write", 1, Kind.DELAY, times=math.inf, delay_s=0.02)
        with late, trio.fail_after(5):
            async with trio.open_nursery() as nursery:
                for program in programs:

                    async def write(program: Program = program) -> None:
                        for number in range(5):
                            await program.write(number * PIECE_BYTES, b"%d" % number * PIECE_BYTES)
                        await program.settle()

                    nursery.start_soon(write)


@pytest.mark.expected_log("were lost")
async def test_a_close_after_a_write_during_another_close_still_waits_for_it(tmp_path: Path) -> None:
    """Duplicates of one descriptor: while one is being closed, something is written through the other."""
    with deadlines(), trio.fail_after(LIMIT_S):
        async with running(tmp_path, interposed=True) as cluster, cluster.mounted("/a") as one, cluster.mounted("/b") as two:
            await two.make(USER, ROOT_INO, b"shared from now on", FILE)
            program = await started(one)
            await one.data.write(program.fh, 0, b"first")
            back, file = await cut_off(cluster), one._handles.file(program.fh).file
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.data.flush, program.fh)
                while not file._telling:
                    await trio.sleep(0.001)
                with faulty(cluster, None, "write", 1, Kind.CUT_BEFORE) as fault:
                    await one.data.write(program.fh, 0, b"again")
                    await until_met(fault)
                back.set()
            with pytest.raises(FilesystemError):
                await one.data.flush(program.fh)


@pytest.mark.parametrize("wait", ["read", "fsync"])
async def test_nobody_waits_for_writes_that_began_later(cluster: Cluster, filesystem: Filesystem, wait: str) -> None:
    program = await started(filesystem)
    await program.write(0, bytes(KIB))
    await program.fsync()
    file = filesystem._handles.file(program.fh).file
    with faulty(cluster, None, "write", 1, Kind.DELAY, times=math.inf, delay_s=0.02), trio.fail_after(3):
        async with trio.open_nursery() as nursery:

            async def keep_writing() -> None:
                while True:
                    await filesystem.data.write(program.fh, 0, b"new" * 300)
                    while len(file.in_flight) > 1:
                        await trio.sleep(0.001)

            nursery.start_soon(keep_writing)
            while len(file.in_flight) < 2:
                await trio.sleep(0.001)
            if wait == "read":
                assert bytes(await filesystem.read(program.fh, 0, 900)) == b"new" * 300
            else:
                await filesystem.data.fsync(program.fh)
            nursery.cancel_scope.cancel()
        await filesystem.data.fsync(program.fh)


async def test_fsync_makes_the_size_durable_beside_a_later_write_that_goes_over_the_same_bytes(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    program = await started(filesystem)
    with (
        faulty(cluster, None, "write", 1, Kind.DELAY),
        faulty(cluster, None, "write", 1, Kind.STALL) as later,
    ):
        await program.write(0, b"first" * 200)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(filesystem.data.fsync, program.fh)
            await trio.testing.wait_all_tasks_blocked(0.01)
            await program.write(0, b"again" * 400)
        assert later.met.is_set()
        assert cluster.meta.engine.table.inode(program.ino).size == 1000
    await program.settle()
