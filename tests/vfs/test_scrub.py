"""Scrubs over real servers: copies that are broken on purpose, with mounts and without."""

from __future__ import annotations

import os
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from gridfs.fsck.scrub import ScrubReport, scrub
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.xattrs import REPLICAS
from gridfs.stream.endpoint import Answer, Peer
from gridfs.types import ChunkId
from gridfs.vfs.filesystem import Filesystem
from tests.unit.chunk_server import Slow
from tests.vfs.cluster import Cluster, corrupt, running
from tests.vfs.files import read_all, write_closed
from tests.vfs.test_replicas import held, stall, until

LIMIT_S = 20
IS_BAD = "is bad: its bytes do not fit their checksum"
CONTENT = random.Random(1).randbytes(300 * KIB)


@asynccontextmanager
async def filled(
    tmp_path: Path, copies: bytes = b"2", nodes: int = 2, content: bytes = CONTENT
) -> AsyncIterator[tuple[Cluster, int]]:
    """A cluster that nothing is mounted of any more, and its one file."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path, nodes) as cluster:
            async with cluster.mounted() as filesystem:
                await filesystem.set_xattr(ROOT_INO, REPLICAS, copies)
                ino = await write_closed(filesystem, b"file", content)
                await filesystem.end()
            yield cluster, ino


@asynccontextmanager
async def filled_and_mounted(tmp_path: Path, nodes: int = 2) -> AsyncIterator[tuple[Cluster, Filesystem, int]]:
    """As `filled`, with two mounts; the eldest is given, and has looked at everything."""
    async with filled(tmp_path, nodes=nodes) as (cluster, ino), cluster.mounted("/one") as one, cluster.mounted("/two"):
        await until(lambda: one.data.healer._living)
        yield cluster, one, ino


async def scrubbed(cluster: Cluster, *, mend: bool = True, rate_bytes_s: int = 1 << 40) -> ScrubReport:
    async with cluster.client() as client:
        return await scrub(client, cluster.secret, lambda _: None, mend=mend, rate_bytes_s=rate_bytes_s, pause_s=0.1)


def kinds(report: ScrubReport) -> list[tuple[str, int, int]]:
    return [(fault.kind, fault.ino, fault.index) for fault in report.faults]


def holders(cluster: Cluster, ino: int, index: int = 0) -> tuple[str, ...]:
    """As the inode table has it, whatever mounts know."""
    return cluster.meta.engine.table.directory.servers(ino, index)


async def spoil(cluster: Cluster, server: str, ino: int, index: int = 0) -> None:
    """Change a byte of a copy in memory."""
    chunks, chunk_id = cluster.node(server).service.chunks, ChunkId(ino, index)
    while not await chunks.seal(chunk_id):
        await trio.sleep(0.01)
    corrupt(chunks, chunk_id, 1000)


async def both_are_whole(cluster: Cluster, ino: int) -> None:
    """Two servers hold the file's bytes, and nobody holds anything else."""
    assert len(holders(cluster, ino)) == 2
    assert [held(cluster, server, ino) for server in holders(cluster, ino)] == [CONTENT] * 2
    assert cluster.used_bytes == 2 * len(CONTENT)
    assert kinds(await scrubbed(cluster)) == []


# -- what is well ----------------------------------------------------------------------------------------------------


async def test_every_copy_is_verified_and_open_ones_are_sealed_for_it(tmp_path: Path) -> None:
    content = bytes(2 * CHUNK_SIZE_BYTES + 100)
    async with filled(tmp_path, content=content) as (cluster, _):
        report = await scrubbed(cluster)
        assert (report.walked.copies, report.walked.size_bytes, report.walked.open_copies) == (6, 2 * len(content), 0)
        assert list(report.lines()) == ["clean: 6 copies of chunks verified, 32.0 MiB, on 2 chunk servers"]
        assert all(not node.service.chunks.open_count for node in cluster.nodes)


async def test_a_chunk_that_is_being_written_is_passed_over_and_counted(tmp_path: Path) -> None:
    async with filled(tmp_path) as (cluster, ino), trio.open_nursery() as nursery:
        slow, chunks = Slow(b"x"), cluster.nodes[0].service.chunks
        nursery.start_soon(chunks.write, ChunkId(ino, 0), 0, 1, slow)
        chunk = chunks.find(ChunkId(ino, 0))
        assert chunk is not None
        await until(lambda: chunk.writers)
        report = await scrubbed(cluster)
        assert (report.left, report.walked.copies, report.walked.open_copies) == ([], 1, 1)
        assert "1 passed over that are being written" in report.counts()
        slow.go.set()


async def test_nothing_is_wrong_while_mounts_write_and_remove(tmp_path: Path) -> None:
    async with filled_and_mounted(tmp_path) as (cluster, filesystem, _), trio.open_nursery() as nursery:

        async def overwrite() -> None:
            for step in range(1 << 20):
                name = b"file%d" % (step % 3)
                ino = await write_closed(filesystem, name, b"%d" % step * 3000)
                await filesystem.unlink(ROOT_INO, name)
                filesystem.forget(ino, 1 << 20)

        nursery.start_soon(overwrite)
        for _ in range(4):
            assert (await scrubbed(cluster)).faults == []
        nursery.cancel_scope.cancel()


async def test_the_rate_holds_over_all_servers(tmp_path: Path) -> None:
    async with filled(tmp_path, content=bytes(2 * CHUNK_SIZE_BYTES)) as (cluster, _):
        for node in cluster.nodes:
            for chunk_id in list(node.service.chunks.chunks):
                await node.service.chunks.seal(chunk_id)
        begun_s = trio.current_time()
        report = await scrubbed(cluster, rate_bytes_s=6 * CHUNK_SIZE_BYTES)
        assert report.walked.size_bytes == 4 * CHUNK_SIZE_BYTES
        assert trio.current_time() - begun_s >= 3 / 6


# -- bad copies ------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("nodes", [2, 3])
@pytest.mark.parametrize("which", [0, 1])
async def test_a_bad_copy_is_replaced_while_nothing_is_mounted(tmp_path: Path, nodes: int, which: int) -> None:
    async with filled(tmp_path, nodes=nodes) as (cluster, ino):
        server = holders(cluster, ino)[which]
        await spoil(cluster, server, ino)
        report = await scrubbed(cluster)
        assert (kinds(report), report.left) == ([("bad", ino, 0)], [])
        first, second, _ = report.lines()
        assert first == f"bad: chunk 0 of inode {ino}, /file: its copy on {server} is bad"
        assert second.startswith(f"chunk 0 of inode {ino}: withdrew what was on {server}, made a copy on node")
        await both_are_whole(cluster, ino)


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("nodes", [2, 3])
async def test_a_bad_copy_is_replaced_by_the_eldest_mount(tmp_path: Path, nodes: int) -> None:
    async with filled_and_mounted(tmp_path, nodes=nodes) as (cluster, filesystem, ino):
        server = holders(cluster, ino)[0]
        await spoil(cluster, server, ino)
        report = await scrubbed(cluster)
        assert (kinds(report), report.left) == ([("bad", ino, 0)], [])
        assert await read_all(filesystem, b"file") == CONTENT
        await until(lambda: len(holders(cluster, ino)) == 2)
        await both_are_whole(cluster, ino)


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("mounts", [False, True])
async def test_a_withdrawn_copy_is_dropped_where_no_other_takes_its_place(tmp_path: Path, mounts: bool) -> None:
    async with (filled_and_mounted if mounts else filled)(tmp_path, nodes=3) as (cluster, *_, ino):
        server = holders(cluster, ino)[0]
        await spoil(cluster, server, ino)
        cluster.publish(weights={server: 0.0})
        assert (await scrubbed(cluster)).left == []
        await until(lambda: len(holders(cluster, ino)) == 2)
        assert server not in holders(cluster, ino)
        await both_are_whole(cluster, ino)


@pytest.mark.expected_log(IS_BAD)
async def test_a_late_drop_spares_the_copy_that_a_mount_has_made_there(tmp_path: Path) -> None:
    async with filled_and_mounted(tmp_path) as (cluster, _, ino):
        server = holders(cluster, ino)[0]
        await spoil(cluster, server, ino)
        back = stall(cluster, server, "trim")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(scrubbed, cluster)
            await until(lambda: holders(cluster, ino)[1:] == (server,))
            back.set()
        await both_are_whole(cluster, ino)


@pytest.mark.expected_log(IS_BAD)
@pytest.mark.parametrize("copies", [b"1", b"2"])
async def test_bytes_of_which_every_copy_is_bad_are_told_and_left_alone(tmp_path: Path, copies: bytes) -> None:
    content = bytes(2 * CHUNK_SIZE_BYTES + 100)
    async with filled(tmp_path, copies=copies, content=content) as (cluster, ino):
        before, used_bytes = [holders(cluster, ino, index) for index in range(3)], cluster.used_bytes
        for index in (0, 1):
            for server in before[index]:
                await spoil(cluster, server, ino, index)
        report = await scrubbed(cluster)
        assert (kinds(report), report.repairs, report.left) == ([("lost", ino, 0), ("lost", ino, 1)], [], report.faults)
        told = "".join(report.lines())
        assert f"of inode {ino}, bytes 0-" in told
        assert "/file: no copy is left, the one on node" in told
        assert [fault["claimed_bytes"] for fault in report.values()["faults"]] == [CHUNK_SIZE_BYTES] * 2
        assert report.values()["faults"][0]["paths"] == ["/file"]
        assert ([holders(cluster, ino, index) for index in range(3)], cluster.used_bytes) == (before, used_bytes)


@pytest.mark.expected_log(IS_BAD)
async def test_nothing_is_changed_if_that_is_not_wanted(tmp_path: Path) -> None:
    async with filled(tmp_path) as (cluster, ino):
        before = holders(cluster, ino)
        await spoil(cluster, before[0], ino)
        report = await scrubbed(cluster, mend=False)
        assert (kinds(report), report.left, report.repairs) == ([("bad", ino, 0)], report.faults, [])
        assert holders(cluster, ino) == before
        assert kinds(await scrubbed(cluster)) == [("bad", ino, 0)]


# -- copies that are wanting -----------------------------------------------------------------------------------------


async def test_a_copy_that_its_server_does_not_have_is_made_anew(tmp_path: Path) -> None:
    async with filled(tmp_path) as (cluster, ino):
        cluster.node(holders(cluster, ino)[0]).service.chunks.drop(ChunkId(ino, 0))
        report = await scrubbed(cluster)
        assert (kinds(report), report.left) == ([("missing", ino, 0)], [])
        await both_are_whole(cluster, ino)


async def test_a_copy_on_a_lost_server_is_made_anew_elsewhere(tmp_path: Path) -> None:
    async with filled(tmp_path, nodes=3) as (cluster, ino):
        lost = holders(cluster, ino)[0]
        cluster.kill(lost)
        cluster.publish(lost=(lost,))
        report = await scrubbed(cluster)
        assert (kinds(report), report.left) == ([("under-replicated", ino, 0)], [])
        assert lost not in holders(cluster, ino)
        assert [held(cluster, server, ino) for server in holders(cluster, ino)] == [CONTENT] * 2


async def test_without_room_for_another_copy_that_is_told(tmp_path: Path) -> None:
    async with filled(tmp_path, nodes=1) as (cluster, ino):
        cluster.add_node("small", 100 * KIB)
        report = await scrubbed(cluster)
        assert (kinds(report), report.left) == ([("under-replicated", ino, 0)], report.faults)
        assert report.repairs[0].text == f"left chunk 0 of inode {ino}: small has no room for a copy"
        cluster.node("small").service.capacity_bytes = MIB
        assert (await scrubbed(cluster)).left == []
        await both_are_whole(cluster, ino)


@pytest.mark.expected_log("could not be healed")
async def test_mounts_are_told_to_look_again_at_what_lacks_copies(tmp_path: Path) -> None:
    async with filled(tmp_path, nodes=1) as (cluster, ino), cluster.mounted():
        looked = trio.Event()
        cluster.add_node("small", 100 * KIB)
        service = cluster.node("small").service
        grant = service.methods["grant"]

        async def noted(peer: Peer, *arguments: object) -> Answer:
            looked.set()
            return await grant(peer, *arguments)

        service.methods["grant"] = noted
        await looked.wait()
        service.capacity_bytes = MIB
        report = await scrubbed(cluster)
        assert report.left == report.faults
        await until(lambda: len(holders(cluster, ino)) == 2)
        await both_are_whole(cluster, ino)


# -- servers that do not answer --------------------------------------------------------------------------------------


async def test_when_a_server_dies_meanwhile_the_others_are_scrubbed(tmp_path: Path) -> None:
    content = bytes(3 * CHUNK_SIZE_BYTES)
    async with filled(tmp_path, content=content) as (cluster, ino):
        dying = cluster.node("node1")
        verify = dying.service.methods["verify"]

        async def die(peer: Peer, *arguments: object) -> Answer:
            dying.service.methods["verify"] = verify
            dying.scope.cancel()
            return await verify(peer, *arguments)

        dying.service.methods["verify"] = die
        report = await scrubbed(cluster)
        assert (kinds(report), report.values()["unreachable"]) == ([("unreachable", 0, -1)], ["node1"])
        assert next(report.lines()).startswith("unreachable: node1, 3 copies there were not verified: ")
        assert (report.walked.copies, report.left) == (3, report.faults)
        assert len(holders(cluster, ino)) == 2


@pytest.mark.expected_log(IS_BAD)
async def test_a_bad_copy_is_not_withdrawn_when_the_other_cannot_be_asked(tmp_path: Path) -> None:
    async with filled(tmp_path) as (cluster, ino):
        before = holders(cluster, ino)
        await spoil(cluster, before[0], ino)
        cluster.kill(before[1])
        report = await scrubbed(cluster)
        assert kinds(report) == [("unreachable", 0, -1), ("bad", ino, 0)]
        assert (report.repairs, holders(cluster, ino)) == ([], before)


# -- readers ---------------------------------------------------------------------------------------------------------


async def test_a_reader_on_its_way_to_a_copy_that_is_withdrawn_and_dropped_reads_another(tmp_path: Path) -> None:
    async with filled(tmp_path) as (cluster, ino), cluster.mounted() as filesystem:
        server, other = holders(cluster, ino)
        back, content = stall(cluster, server, "read"), []

        async def read() -> None:
            fh = await filesystem.open(ino, os.O_RDONLY)
            content.append(bytes(await filesystem.read(fh, 0, 100)))
            await filesystem.release(fh)

        filesystem.data.healer.changed = lambda chunk_id: None  # type: ignore[method-assign]
        filesystem._chunks._stalled_s[other] = trio.current_time() + LIMIT_S  # so that nobody else is asked in time
        async with trio.open_nursery() as nursery, cluster.client() as client:
            nursery.start_soon(read)
            await until(lambda: server in filesystem._chunks._links)
            assert tuple(await client.execute(("replace", ino, 0, (server, other), (other,)))) == (other,)
            cluster.node(server).service.chunks.drop(ChunkId(ino, 0))
            back.set()
        assert content == [CONTENT[:100]]
        await filesystem.remove_xattr(ino, REPLICAS)
        await filesystem.fsync_names()
