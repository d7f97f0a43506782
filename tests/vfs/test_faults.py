"""Faults between the mount and a chunk server: what a program hears of them, and that nothing acknowledged is lost."""

from __future__ import annotations

import errno
import math
import os
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.xattrs import REPLICAS
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import Cluster, running
from tests.vfs.conftest import LIMIT_S
from tests.vfs.faults import Kind, deadlines, faulty
from tests.vfs.program import PIECE_BYTES, go_through, rewrite, started

REPEATED = [("read", 1), ("read", 3), ("truncate", 1), ("drop", 1), ("length", 1)]
WRITES = (1, 8, 14)
"""Into a new chunk, across a border, over bytes that are there, after truncation, into a chunk of which nothing is known."""


@pytest.mark.parametrize("kind", [Kind.STALL, Kind.CUT_BEFORE, Kind.CUT_AFTER])
@pytest.mark.parametrize(("method", "n"), REPEATED)
async def test_what_may_be_asked_twice_is_and_no_program_hears_of_it(
    cluster: Cluster, filesystem: Filesystem, method: str, n: int, kind: Kind
) -> None:
    with faulty(cluster, None, method, n, kind) as fault:
        assert await go_through(filesystem) == []
    assert fault.met.is_set()


@pytest.mark.parametrize(("method", "n"), [*REPEATED, *(("write", n) for n in WRITES), ("grant", 1)])
async def test_what_is_late_is_waited_for(cluster: Cluster, filesystem: Filesystem, method: str, n: int) -> None:
    with faulty(cluster, None, method, n, Kind.DELAY) as fault:
        assert await go_through(filesystem) == []
    assert fault.met.is_set()


@pytest.mark.expected_log("were lost")
@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.STALL, Kind.CUT_BEFORE, Kind.CUT_AFTER])
@pytest.mark.parametrize("n", WRITES)
async def test_a_write_that_is_lost_is_heard_of_and_can_be_made_again(
    cluster: Cluster, filesystem: Filesystem, n: int, kind: Kind
) -> None:
    with faulty(cluster, None, "write", n, kind) as fault:
        assert set(await go_through(filesystem)) == {errno.EIO}
    assert fault.met.is_set()


@pytest.mark.expected_log("a new chunk goes elsewhere")
@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.STALL, Kind.CUT_BEFORE, Kind.CUT_AFTER])
async def test_a_new_chunk_goes_to_another_node_when_one_grants_nothing(
    cluster: Cluster, filesystem: Filesystem, kind: Kind
) -> None:
    with faulty(cluster, "node1", "grant", 1, kind, times=math.inf) as fault:
        assert await go_through(filesystem) == []
    assert fault.met.is_set()
    assert len(cluster.nodes[0].service.chunks) == 0


@pytest.mark.expected_log("is not on|a new chunk goes elsewhere|copies left of")
@pytest.mark.parametrize("kind", [Kind.STALL, Kind.CUT_AFTER, Kind.TORN])
@pytest.mark.parametrize("n", [WRITES[0], WRITES[-1]])
async def test_with_two_copies_no_program_hears_of_one_that_missed_a_write(tmp_path: Path, n: int, kind: Kind) -> None:
    with deadlines(), trio.fail_after(LIMIT_S):
        async with running(tmp_path, 3, interposed=True) as cluster, cluster.mounted() as filesystem:
            await filesystem.set_xattr(ROOT_INO, REPLICAS, b"2")
            with faulty(cluster, None, "write", n, kind) as fault:
                assert await go_through(filesystem) == []
            assert fault.met.is_set()
            while any(len(servers) < 2 for _, _, servers in filesystem._meta.table.directory):
                await trio.sleep(0.01)
            await filesystem.fsync_names()


@pytest.mark.parametrize(("method", "n"), [asked for asked in REPEATED if asked[0] != "truncate"])
async def test_an_error_of_the_server_is_heard_of_and_passes(
    cluster: Cluster, filesystem: Filesystem, method: str, n: int
) -> None:
    with faulty(cluster, None, method, n, Kind.FAIL) as fault:
        assert await go_through(filesystem) in ([], [errno.EIO])
    assert fault.met.is_set()


@pytest.mark.expected_log("were lost")
async def test_a_lost_write_is_told_once_to_every_handle_open_at_the_time_and_to_no_later_one(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    program = await started(filesystem)
    reader, writer = [await filesystem.open(program.ino, flags) for flags in (os.O_RDONLY, os.O_WRONLY)]
    await filesystem.data.write(writer, 0, b"before")
    await filesystem.data.flush(writer)
    with faulty(cluster, None, "write", 1, Kind.CUT_BEFORE):
        await filesystem.data.write(writer, 0, b"lost")
        for tell, fh in (
            *((filesystem.data.flush, writer), (filesystem.data.fsync, reader), (filesystem.data.fsync, program.fh)),
        ):
            with pytest.raises(FilesystemError) as raised:
                await tell(fh)
            assert raised.value.errno == errno.EIO
    for fh in (reader, writer, program.fh, await filesystem.open(program.ino, os.O_WRONLY)):
        await filesystem.data.fsync(fh)
        await filesystem.data.flush(fh)
    await filesystem.data.write(writer, 0, b"LATER!")
    await filesystem.data.flush(writer)


@pytest.mark.expected_log("were lost")
@pytest.mark.parametrize("kind", [Kind.FAIL, Kind.STALL, Kind.CUT_AFTER])
async def test_every_write_in_flight_settles_and_its_error_is_told_once(
    cluster: Cluster, filesystem: Filesystem, kind: Kind
) -> None:
    program = await started(filesystem)
    with faulty(cluster, None, "write", 2, kind, times=math.inf):
        for number in range(30):
            await filesystem.data.write(program.fh, number * CHUNK_SIZE_BYTES // 8, bytes(PIECE_BYTES))
        with pytest.raises(FilesystemError):
            await filesystem.data.fsync(program.fh)
        await filesystem.data.fsync(program.fh)
    await rewrite(program, 30 * CHUNK_SIZE_BYTES // 8)
