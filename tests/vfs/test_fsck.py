"""fsck over real servers: a cluster that is broken on purpose, and one that is busy and sound."""

from __future__ import annotations

import os
import stat
from collections.abc import Awaitable, Callable
from itertools import count
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import GridfsError
from gridfs.fsck import look
from gridfs.fsck.report import Report
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.lease import LEASE
from gridfs.types import ChunkId
from gridfs.vfs.filesystem import Filesystem
from tests.unit.chunk_server import giving
from tests.vfs.cluster import USER, Cluster, Node, running

FILE = stat.S_IFREG | 0o644
LIMIT_S = 30.0
LENGTH = 1000


async def write_closed(filesystem: Filesystem, name: bytes, content: bytes, flags: int = 0) -> int:
    try:
        ino = (await filesystem.lookup(ROOT_INO, name)).ino
    except OSError:
        ino = (await filesystem.make(USER, ROOT_INO, name, FILE)).ino
    fh = await filesystem.open(ino, os.O_RDWR | flags)
    await filesystem.data.write(fh, 0, content)
    await filesystem.data.flush(fh)
    await filesystem.release(fh)
    return ino


def holder(cluster: Cluster, ino: int, index: int = 0) -> Node:
    return next(node for node in cluster.nodes if node.service.chunks.find(ChunkId(ino, index)))


async def put(node: Node, ino: int, index: int, end: int) -> None:
    """Bytes that the table was never told of."""
    await node.service.chunks.write(ChunkId(ino, index), end - 1, 1, giving(b"x"))


def kinds(report: Report) -> list[tuple[str, int, int]]:
    return [(fault.kind, fault.ino, fault.index) for fault in report.faults]


async def drop(cluster: Cluster, ino: int) -> None:
    holder(cluster, ino).service.chunks.drop(ChunkId(ino, 0))


async def lengthen(cluster: Cluster, ino: int) -> None:
    await put(holder(cluster, ino), ino, 0, LENGTH + 1)


async def stray(cluster: Cluster, ino: int) -> None:
    await put(cluster.nodes[0], ino, 5, 10)


async def stray_of_nobody(cluster: Cluster, ino: int) -> None:
    await put(cluster.nodes[0], 1 << 40, 0, 10)


async def lose(cluster: Cluster, ino: int) -> None:
    name = holder(cluster, ino).name
    cluster.publish(lost=(name,))


BREAKS = [
    (drop, ("missing", 2, 0), False),
    (lengthen, ("wrong-length", 2, 0), True),
    (stray, ("orphaned", 2, 5), True),
    (stray_of_nobody, ("orphaned", 1 << 40, 0), True),
    (lose, ("lost", 2, 0), False),
]


@pytest.mark.parametrize(("damage", "fault", "mendable"), BREAKS, ids=[case[0].__name__ for case in BREAKS])
async def test_what_is_broken_is_found_and_mended_if_that_is_safe(
    tmp_path: Path, damage: Callable[[Cluster, int], Awaitable[None]], fault: tuple[str, int, int], mendable: bool
) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                ino = await write_closed(filesystem, b"file", b"a" * LENGTH)
                await filesystem.end()
            await damage(cluster, ino)
            before = await cluster.fsck()
            assert (kinds(before), before.left, before.repairs) == ([fault], before.faults, [])
            after = await cluster.fsck(mend=True)
            assert (kinds(after), after.left == [], [repair.done for repair in after.repairs]) == (
                [fault],
                mendable,
                [True] * mendable,
            )
            assert (kinds(await cluster.fsck()) == []) == mendable
            async with cluster.mounted() as filesystem:
                attributes = await filesystem.lookup(ROOT_INO, b"file")
                assert attributes.size == LENGTH
                if mendable:
                    fh = await filesystem.open(ino, os.O_RDONLY)
                    assert bytes(await filesystem.read(fh, 0, LENGTH)) == b"a" * LENGTH
                    await filesystem.release(fh)
                await filesystem.unlink(ROOT_INO, b"file")
                filesystem.forget(ino, 1)
                while cluster.meta.engine.table.orphans:
                    await trio.sleep(0.02)


async def test_a_clean_filesystem_is_clean_after_one_look(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted() as filesystem:
            await write_closed(filesystem, b"file", b"a" * LENGTH)
            begun_s = trio.current_time()
            report = await cluster.fsck(pause_s=LIMIT_S)
            assert trio.current_time() - begun_s < LIMIT_S / 3
            assert list(report.lines()) == ["clean: 2 inodes, 1 chunks, 2 chunk servers"]
            assert report.look.mounts == 1


async def test_nothing_is_wrong_while_mounts_write_truncate_and_unlink(tmp_path: Path) -> None:
    """Every look shows chunks that are only on their way; none of them is a fault, and mending takes nothing away."""

    async def overwrite(filesystem: Filesystem, name: bytes) -> None:
        for step in count():
            content = b"%d" % step * 3000
            ino = await write_closed(filesystem, name, content, os.O_TRUNC)
            fh = await filesystem.open(ino, os.O_RDONLY)
            assert bytes(await filesystem.read(fh, 0, len(content))) == content
            await filesystem.release(fh)
            if step % 5 == 0:
                await filesystem.unlink(ROOT_INO, name)
                filesystem.forget(ino, 1 << 20)

    async def append(filesystem: Filesystem, name: bytes) -> None:
        fh = await filesystem.open((await filesystem.make(USER, ROOT_INO, name, FILE)).ino, os.O_RDWR)
        for step in count():
            await filesystem.data.write(fh, step * 10_000, b"a" * 10_000)
            await trio.sleep(0.005)

    with trio.fail_after(60.0):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one, cluster.mounted("/b") as two:
            mounts = (one, two)
            async with trio.open_nursery() as nursery:
                for number, filesystem in enumerate(mounts):
                    nursery.start_soon(overwrite, filesystem, b"overwritten%d" % number)
                    nursery.start_soon(append, filesystem, b"appended%d" % number)
                await trio.sleep(0.3)
                for _ in range(2):
                    report = await cluster.fsck(mend=True, pause_s=2.0)
                    assert list(report.lines())[:-1] == []
                nursery.cancel_scope.cancel()
            for filesystem in mounts:  # what is on its way would be lost with the mount, and told
                await filesystem.data.settle_all()


async def test_a_chunk_written_since_its_inventory_is_left(tmp_path: Path) -> None:
    """A file that gets the stray chunk's place just before the repair keeps its bytes."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted() as filesystem:
            ino = await write_closed(filesystem, b"file", b"a" * LENGTH)
            node = cluster.nodes[0]
            await put(node, ino, 5, 10)
            trim = node.service.methods["trim"]

            async def trim_late(*arguments: object) -> object:
                await put(node, ino, 5, 11)
                return await trim(*arguments)

            node.service.methods["trim"] = trim_late  # type: ignore[assignment]
            report = await cluster.fsck(mend=True)
            assert report.left == report.faults
            assert [repair.text for repair in report.repairs] == [
                f"left chunk 5 of inode {ino} on node1: it was written a moment ago; run this again"
            ]
            chunk = node.service.chunks.find(ChunkId(ino, 5))
            assert chunk is not None
            assert chunk.length == 11
            node.service.chunks.drop(ChunkId(ino, 5))


async def test_a_long_chunk_is_cut_under_a_mount_only_when_it_is_old(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted() as filesystem:
            ino = await write_closed(filesystem, b"file", b"a" * LENGTH)
            chunks = holder(cluster, ino).service.chunks
            await lengthen(cluster, ino)
            young = await cluster.fsck(mend=True)
            assert (kinds(young), len(young.left)) == ([("wrong-length", ino, 0)], 1)
            chunk = chunks.find(ChunkId(ino, 0))
            assert chunk is not None
            while chunk.view is None:
                await trio.sleep(0.05)
            chunk.written_s -= 100.0
            old = await cluster.fsck(mend=True)
            assert (kinds(old), old.left) == ([("wrong-length", ino, 0)], [])
            assert chunk.length == LENGTH


async def test_orphans_of_a_crashed_mount_are_reaped_with_their_chunks(tmp_path: Path) -> None:
    """fsck waits until the crashed mount is fenced: it had the lease."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                ino = await write_closed(filesystem, b"file", b"a" * LENGTH)
                await filesystem.open(ino, os.O_RDONLY)
                await filesystem.unlink(ROOT_INO, b"file")
                await filesystem.fsync_names()
                assert kinds(await cluster.fsck(mend=True)) == []
                while filesystem._meta.state != LEASE:
                    await trio.sleep(0.05)
            report = await cluster.fsck(mend=True)
            assert (kinds(report), report.left) == ([("unreaped", ino, -1)], [])
            assert cluster.used_bytes == 0
            assert not cluster.meta.engine.table.orphans


async def test_a_mount_that_leaves_just_after_a_check_leaves_no_orphan(tmp_path: Path) -> None:
    """The check has called the lease back, so the mount cannot reap the file by itself."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                ino = await write_closed(filesystem, b"file", b"a" * LENGTH)
                assert kinds(await cluster.fsck()) == []
                await filesystem.unlink(ROOT_INO, b"file")
                filesystem.forget(ino, 1)
                await filesystem.end()
            assert not cluster.meta.engine.table.orphans
            while cluster.used_bytes:
                await trio.sleep(0.02)
            assert kinds(await cluster.fsck()) == []


async def test_what_a_crash_left_on_the_servers_is_collected(tmp_path: Path) -> None:
    """Bytes whose sizes and places were never told: the mount crashed with them."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                ino = (await filesystem.make(USER, ROOT_INO, b"file", FILE)).ino
                fh = await filesystem.open(ino, os.O_RDWR)
                await filesystem.fsync_names()
                await filesystem.data.write(fh, 0, b"a" * (CHUNK_SIZE_BYTES + LENGTH))
                await filesystem._handles.file(fh).file.settle()
            report = await cluster.fsck(mend=True)
            assert report.faults
            assert report.left == []
            assert {repair.done for repair in report.repairs} == {True}
            assert kinds(await cluster.fsck()) == []
            assert cluster.used_bytes == 0


async def test_a_server_that_does_not_answer_leaves_the_check_undone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(look, "PATIENCE_S", 0.6)
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            cluster.nodes[1].scope.cancel()
            with pytest.raises(GridfsError, match="the chunk server on node2 does not answer"):
                await cluster.fsck()
            cluster.publish(lost=("node2",))
            assert kinds(await cluster.fsck()) == []
