"""Two mounts of one filesystem: what one has been told is done, the other sees in its next call."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import trio
import trio.testing

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.lease import DARK, LEASE, SHARED
from gridfs.stream.endpoint import Answer
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER, Cluster, running
from tests.vfs.files import FILE, read_all, write_closed, write_fsynced

LIMIT_S = 20.0


def state(filesystem: Filesystem) -> str:
    return filesystem._meta.state


async def until_state(filesystem: Filesystem, wanted: str) -> None:
    while state(filesystem) != wanted:
        await trio.sleep(0.01)


async def names(filesystem: Filesystem) -> list[bytes]:
    fh = await filesystem.opendir(ROOT_INO)
    await filesystem.ready()
    listed = [name for _, name, _ in filesystem.names(fh, 0)]
    filesystem.releasedir(fh)
    return listed


async def test_what_returned_on_one_mount_is_seen_by_the_other(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one, cluster.mounted("/b") as two:
            for step in range(50):
                here, there = (one, two) if step % 2 else (two, one)
                name = b"%d" % step
                ino = (await here.make(USER, ROOT_INO, name, FILE)).ino
                assert (await there.lookup(ROOT_INO, name)).ino == ino
                await there.change(ino, mode=0o600)
                assert (await here.attributes(ino)).mode & 0o777 == 0o600
                await here.rename(ROOT_INO, name, ROOT_INO, b"r" + name, 0)
                with pytest.raises(FilesystemError, match="No such file"):
                    await there.lookup(ROOT_INO, name)
            assert sorted(await names(one)) == sorted(await names(two))


async def test_bytes_closed_on_one_mount_are_read_by_an_open_on_the_other(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one, cluster.mounted("/b") as two:
            for step in range(10):
                content = b"%d" % step * 100_000
                name = b"%d" % (step // 2)
                if step % 2 == 0:
                    await write_closed(one, name, content)
                    assert await read_all(two, name) == content
                else:
                    found = await two.lookup(ROOT_INO, name)
                    fh = await two.open(found.ino, os.O_WRONLY | os.O_TRUNC)
                    await two.data.write(fh, 0, content)
                    await two.data.flush(fh)
                    await two.release(fh)
                    assert await read_all(one, name) == content


async def test_the_lease_comes_back_to_a_sole_writer_and_goes_when_the_other_asks(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one:
            assert state(one) == LEASE
            async with cluster.mounted("/b") as two:
                await write_closed(two, b"by two", b"2")
                assert (state(one), state(two)) == (SHARED, SHARED)
                await trio.sleep(0.8)
                await write_closed(one, b"by one", b"1")
                while state(one) != LEASE:
                    await trio.sleep(0.05)
                    await one.lookup(ROOT_INO, b"by one")
                assert state(two) == DARK
                ino = await write_closed(one, b"under the lease", b"3")
                assert (await two.lookup(ROOT_INO, b"under the lease")).ino == ino
                assert (state(one), state(two)) == (SHARED, SHARED)


async def test_a_file_unlinked_on_one_mount_is_readable_where_it_is_open(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one, cluster.mounted("/b") as two:
            content = b"held" * 1000
            ino = await write_closed(one, b"file", content)
            await two.lookup(ROOT_INO, b"file")
            fh = await two.open(ino, os.O_RDONLY)
            await one.unlink(ROOT_INO, b"file")
            one.forget(ino, 1)
            await trio.sleep(0.3)
            assert bytes(await two.read(fh, 0, len(content))) == content
            await two.release(fh)
            while cluster.used_bytes:
                await trio.sleep(0.05)
            assert not cluster.meta.engine.table.orphans


async def test_a_mount_that_leaves_is_not_waited_for(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one:
            async with cluster.mounted("/b") as two:
                await write_closed(two, b"file", b"2")
                await two.end()
                await write_closed(one, b"other", b"1")
            await until_state(one, LEASE)
            assert one.alone


async def test_a_mount_that_crashed_is_soon_not_waited_for(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one:
            async with cluster.mounted("/b") as two:
                await write_fsynced(two, b"file", b"2")
            await write_closed(one, b"other", b"1")
            await until_state(one, LEASE)
            assert await read_all(one, b"file") == b"2"


async def test_fsync_waits_when_another_task_is_just_telling_the_table_of_the_write(tmp_path: Path) -> None:
    """The commit of every second, say: what it has asked for is not durable before it is answered."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted("/a") as one, cluster.mounted("/b") as two:
            await write_closed(two, b"other", b"2")
            ino = await write_closed(one, b"file", b"before")
            fh = await one.open(ino, os.O_WRONLY)
            await one.data.write(fh, 0, b"AFTER!")
            told = await cut_off(cluster)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(one.data.commit_all)
                await trio.testing.wait_all_tasks_blocked(0.01)
                with trio.move_on_after(0.3) as limit:
                    await one.data.fsync(fh)
                assert limit.cancelled_caught
                assert not one.is_clean()
                told.set()
            await one.data.fsync(fh)
            assert one.is_clean()


async def cut_off(cluster: Cluster) -> trio.Event:
    """Until the event returned is set, the inode table's server lets ops wait."""
    back, ops = trio.Event(), cluster.meta.methods["ops"]

    async def wait(*arguments: object) -> Answer:
        await back.wait()
        return await ops(*arguments)

    cluster.meta.methods["ops"] = wait
    return back
