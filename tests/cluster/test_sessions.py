"""Several mounts of one filesystem over real Ray: they share it, and who was taken for dead writes nothing any more."""

from __future__ import annotations

import errno
import os
from collections.abc import Awaitable

import pytest
import trio

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.lease import SHARED
from gridfs.meta.members import LEASE_S
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.gate import gated
from tests.cluster.real import FILE, USER, WAIT_S, Real, attempt, read_all, until, write_fsynced

BEFORE, AFTER, GHOST = b"written by the first", b"written by the second", b"WRITTEN BY A GHOST  "
_FENCED = "this mount's session is lost"
_UNCLEAN = "changes that were not durable are lost with it"
_ENDED = "the inode table's connection ended"
_AGAIN = "attached again"


async def refused(ask: Awaitable[object]) -> None:
    """The call fails with EIO, soon."""
    with trio.fail_after(WAIT_S), pytest.raises(FilesystemError) as caught:
        await ask
    assert caught.value.errno == errno.EIO


async def overwrite(filesystem: Filesystem, fh: int, content: bytes) -> None:
    """Write and fsync."""
    await filesystem.data.write(fh, 0, content)
    await filesystem.data.fsync(fh)


def mountpoints(real: Real) -> list[str]:
    """Of the mounts that are attached."""
    return sorted(session["mountpoint"] for session in real.statistics()["sessions"])


async def test_two_mounts_share_one_filesystem(real: Real, mounted: Filesystem) -> None:
    async with real.mounted(mountpoint="/second") as second:
        assert mountpoints(real) == ["/second", "/test"]
        for number in range(20):
            here, there = (mounted, second) if number % 2 else (second, mounted)
            name, content = b"%d" % number, b"%d" % number * 50_000
            await write_fsynced(here, name, content)
            assert await read_all(there, name) == content
            await there.unlink(ROOT_INO, name)
            with pytest.raises(FilesystemError):
                await here.lookup(ROOT_INO, name)


@pytest.mark.expected_log(_ENDED)
async def test_a_mount_whose_connection_broke_goes_on_when_no_other_came(real: Real) -> None:
    async with gated(real) as (gate, first):
        await write_fsynced(first, b"before", BEFORE)
        epoch = first._meta.epoch
        gate.cut()
        await until(lambda: not real.statistics()["sessions"])
        ino = (await first.make(USER, ROOT_INO, b"meanwhile", FILE)).ino
        gate.release()
        with trio.fail_after(WAIT_S):
            await first.fsync_names()
        assert first._meta.epoch == epoch
        first.forget(ino, 1)
        await write_fsynced(first, b"after", AFTER)
    async with real.mounted() as again:
        assert {name for _, name, _ in again.names((await again.opendir(ROOT_INO)), 0)} >= {b"before", b"meanwhile", b"after"}


@pytest.mark.expected_log(_FENCED)
@pytest.mark.expected_log(_UNCLEAN)
@pytest.mark.expected_log(_ENDED)
async def test_a_mount_that_vanished_is_followed_by_another_and_fenced_when_it_is_back(real: Real) -> None:
    """It had something to lose, so it does not begin anew."""
    async with gated(real) as (gate, first):
        await write_fsynced(first, b"file", BEFORE)
        ino = (await first.lookup(ROOT_INO, b"file")).ino
        fh = await first.open(ino, os.O_RDWR)
        gate.cut()
        await until(lambda: not real.statistics()["sessions"])
        async with real.mounted() as second:
            assert await read_all(second, b"file") == BEFORE
            assert not first._meta.failure  # it has not heard of the other one
            await refused(overwrite(first, fh, GHOST))
            await first.make(USER, ROOT_INO, b"ghost", FILE)  # it takes itself to be alone
            assert await read_all(second, b"file") == BEFORE
            gate.release()
            await until(lambda: first._meta.failure)
            assert "fenced" in str(first._meta.failure)
            with pytest.raises(FilesystemError):
                await second.lookup(ROOT_INO, b"ghost")
            await refused(first.make(USER, ROOT_INO, b"new", FILE))
            await refused(first.unlink(ROOT_INO, b"file"))
            await refused(overwrite(first, fh, GHOST))
            await first.release(fh)
            await write_fsynced(second, b"other", AFTER)
            assert await read_all(second, b"file") == BEFORE
            assert await read_all(second, b"other") == AFTER


@pytest.mark.expected_log(_FENCED)
@pytest.mark.expected_log(_AGAIN)
@pytest.mark.expected_log(_ENDED)
async def test_nothing_that_a_hanging_mount_does_takes_effect_once_it_is_fenced_and_it_begins_anew(real: Real) -> None:
    """Its connections to the inode table and to the chunk servers still stand, as those of a stopped process do."""
    async with gated(real) as (gate, first):
        await write_fsynced(first, b"file", BEFORE)
        fh = await first.open((await first.lookup(ROOT_INO, b"file")).ino, os.O_RDWR)
        await overwrite(first, fh, BEFORE)
        async with real.mounted(mountpoint="/second") as second:
            gate.hold()
            epoch, began_s = first._meta.epoch, trio.current_time()
            with trio.fail_after(2 * LEASE_S + WAIT_S):
                await write_fsynced(second, b"other", AFTER)
            assert trio.current_time() - began_s > LEASE_S / 2  # it was waited for
            first._meta.state = SHARED  # as one that goes on in the midst of a write, and does not know yet
            await refused(first.data.write(fh, 0, GHOST))
            assert await read_all(second, b"file") == BEFORE
            gate.release()
            await until(lambda: first._meta.epoch > epoch and not first._meta.failure)  # it had nothing to lose
            assert await read_all(second, b"file") == await read_all(first, b"file") == BEFORE
            await write_fsynced(first, b"third", BEFORE)
            assert await read_all(second, b"third") == BEFORE
            await first.release(fh)


@pytest.mark.expected_log(_ENDED)
async def test_a_mount_is_waited_for_while_the_inode_table_has_just_come_back(real: Real) -> None:
    """It has not vanished because the table has: what it has not sent yet is not lost to a newcomer."""
    async with gated(real) as (gate, first):
        gate.hold()
        await first.make(USER, ROOT_INO, b"unsent", FILE)
        real.actor_process("master", "InodeTable").kill()
        await until(lambda: attempt(real.statistics))
        async with trio.open_nursery() as nursery:

            async def attach() -> None:
                async with real.mounted(mountpoint="/second") as second:
                    assert await second.lookup(ROOT_INO, b"unsent")

            nursery.start_soon(attach)
            await trio.sleep(1.0)
            gate.release()
        with trio.fail_after(WAIT_S):
            await write_fsynced(first, b"after", AFTER)


@pytest.mark.expected_log(_ENDED)
async def test_two_mounts_go_on_when_the_inode_table_is_killed_under_them(real: Real, mounted: Filesystem) -> None:
    """Every op that returned is there, once, and each mount sees those of the other."""
    made: dict[str, list[bytes]] = {"one": [], "two": []}
    async with real.mounted(mountpoint="/second") as second:

        async def work(filesystem: Filesystem, who: str) -> None:
            for number in range(300):
                name = f"{who}{number}".encode()
                await filesystem.make(USER, ROOT_INO, name, FILE)
                await filesystem.rename(ROOT_INO, name, ROOT_INO, b"r" + name, 0)
                made[who].append(b"r" + name)

        with trio.fail_after(3 * WAIT_S):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(work, mounted, "one")
                nursery.start_soon(work, second, "two")
                for goal in (20, 60):
                    while len(made["one"]) < goal:
                        await trio.sleep(0.01)
                    real.actor_process("master", "InodeTable").kill()
                    await until(lambda: attempt(real.statistics))
        for filesystem in (mounted, second):
            listed = [name for _, name, _ in filesystem.names((await filesystem.opendir(ROOT_INO)), 0)]
            assert sorted(listed) == sorted([b".", b"..", *made["one"], *made["two"]])
        assert real.table_faults() == []
