"""What a crash of the mount may and may not do to bytes and names that were safe before it."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import trio
import trio.testing

from gridfs.config import KIB, MIB
from gridfs.errors import ConnectionLost
from gridfs.meta.inode import ROOT_INO
from gridfs.stream.endpoint import Answer
from tests.vfs.cluster import USER, Cluster, running
from tests.vfs.files import FILE, read_all, write_closed, write_fsynced

LIMIT_S = 20


@asynccontextmanager
async def the_table_cut_off(cluster: Cluster) -> AsyncIterator[None]:
    """Meanwhile the inode table's server carries out nothing; at the end the connections that asked are lost."""
    back = trio.Event()
    ops = cluster.meta.methods["ops"]

    async def wait_and_fail(*_: object) -> Answer:
        await back.wait()
        raise ConnectionLost("cut off")

    cluster.meta.methods["ops"] = wait_and_fail
    try:
        yield
    finally:
        cluster.meta.methods["ops"] = ops
        back.set()
        await trio.testing.wait_all_tasks_blocked(0.05)


async def test_a_file_that_is_replaced_is_whole_until_its_replacement_is_durable(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with AsyncExitStack() as crash, cluster.mounted() as filesystem:
                old = await write_closed(filesystem, b"file", b"old")
                await write_fsynced(filesystem, b"new", b"new")
                filesystem.forget(old, 1)
                await crash.enter_async_context(the_table_cut_off(cluster))
                await filesystem.rename(ROOT_INO, b"new", ROOT_INO, b"file", 0)
                await trio.testing.wait_all_tasks_blocked(0.05)
            async with cluster.mounted() as filesystem:
                assert await read_all(filesystem, b"file") == b"old"
                assert await read_all(filesystem, b"new") == b"new"


async def test_a_truncated_file_is_whole_until_its_size_is_durable(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with AsyncExitStack() as crash, cluster.mounted() as filesystem:
                ino = await write_fsynced(filesystem, b"file", b"precious")
                await crash.enter_async_context(the_table_cut_off(cluster))
                with trio.move_on_after(0.2):
                    await filesystem.change(ino, size=0)
            async with cluster.mounted() as filesystem:
                assert await read_all(filesystem, b"file") == b"precious"


async def test_bytes_beyond_the_durable_size_never_come_back(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                ino = await write_fsynced(filesystem, b"file", b"one")
                fh = await filesystem.open(ino, os.O_RDWR)
                await filesystem.data.write(fh, 3, b"LOST")
                while cluster.used_bytes < len(b"oneLOST"):
                    await trio.sleep(0.01)
            async with cluster.mounted() as filesystem:
                size = (await filesystem.lookup(ROOT_INO, b"file")).size
                await filesystem.change(ino, size=7)
                assert await read_all(filesystem, b"file") == (b"one" + bytes(4) if size == 3 else b"oneLOST")
                assert cluster.used_bytes == size


async def test_inode_numbers_are_not_used_again(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                ino = await write_closed(filesystem, b"file", b"secret")
                await filesystem.unlink(ROOT_INO, b"file")
                filesystem.forget(ino, 1)
                await filesystem.fsync_names()
            async with cluster.mounted() as filesystem:
                assert (await filesystem.make(USER, ROOT_INO, b"other", FILE)).ino > ino


async def test_many_large_attributes_can_be_sent_and_attached_again(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                for number in range(200):
                    ino = (await filesystem.make(USER, ROOT_INO, b"%d" % number, FILE)).ino
                    await filesystem.set_xattr(ino, b"user.large", bytes(64 * KIB))
                await filesystem.fsync_names()
            async with cluster.mounted() as filesystem:
                ino = (await filesystem.lookup(ROOT_INO, b"199")).ino
                assert (await filesystem.get_xattr(ino, b"user.large")) == bytes(64 * KIB)


async def test_a_file_removed_before_the_crash_leaves_no_bytes(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                await write_closed(filesystem, b"file", bytes(MIB))
                await filesystem.unlink(ROOT_INO, b"file")
                await filesystem.fsync_names()
            async with cluster.mounted():
                assert cluster.used_bytes == 0
