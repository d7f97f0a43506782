"""One mount writes at a time: who comes second is refused, and who was taken for dead writes nothing any more."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Awaitable

import pytest
import trio

from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.gate import gated
from tests.cluster.real import FILE, USER, WAIT_S, Real, attempt, read_all, until, write_closed

BEFORE, AFTER = b"written by the first", b"written by the second"
_FENCED = "this mount's session is lost"
_ENDED = "the inode table's connection ended"


async def refusal(real: Real) -> str:
    """Why another mount may not attach; empty if it may, and then it has done so and has let go again."""
    async with trio.open_nursery() as nursery:
        try:
            await nursery.start(MetaClient(real.endpoints, "/second").run)
        except AuthenticationFailed as error:
            return str(error)
        nursery.cancel_scope.cancel()
    return ""


async def refused(ask: Awaitable[object]) -> None:
    """The call fails with EIO, soon."""
    with trio.fail_after(WAIT_S), pytest.raises(FilesystemError) as caught:
        await ask
    assert caught.value.errno == errno.EIO


async def overwrite(filesystem: Filesystem, fh: int, content: bytes) -> None:
    """Write and fsync."""
    await filesystem.data.write(fh, 0, content)
    await filesystem.data.fsync(fh)


async def test_a_second_mount_is_refused_while_the_first_lives(real: Real, mounted: Filesystem) -> None:
    for _ in range(3):
        assert re.fullmatch(r"already mounted on \S+ at /test", await refusal(real))
    await write_closed(mounted, b"file", BEFORE)
    assert await read_all(mounted, b"file") == BEFORE
    assert [session["mountpoint"] for session in real.statistics()["sessions"]] == ["/test"]


@pytest.mark.expected_log(_ENDED)
async def test_a_mount_whose_connection_broke_goes_on_when_no_other_came(real: Real) -> None:
    async with gated(real) as (gate, first):
        await write_closed(first, b"before", BEFORE)
        epoch = first._meta.epoch
        gate.cut()
        await until(lambda: not real.statistics()["sessions"])
        ino = (await first.make(USER, ROOT_INO, b"meanwhile", FILE)).ino
        gate.release()
        with trio.fail_after(WAIT_S):
            await first.fsync_names()
        assert first._meta.epoch == epoch
        first.forget(ino, 1)
        await write_closed(first, b"after", AFTER)
    async with real.mounted() as again:
        assert {name for _, name, _ in again.names((await again.opendir(ROOT_INO)), 0)} >= {b"before", b"meanwhile", b"after"}


@pytest.mark.expected_log(_FENCED)
@pytest.mark.expected_log(_ENDED)
async def test_a_mount_that_vanished_is_followed_by_another_and_fenced_when_it_is_back(real: Real) -> None:
    async with gated(real) as (gate, first):
        await write_closed(first, b"file", BEFORE)
        ino = (await first.lookup(ROOT_INO, b"file")).ino
        fh = await first.open(ino, os.O_RDWR)
        gate.cut()
        await until(lambda: not real.statistics()["sessions"])
        async with real.mounted() as second:
            assert await read_all(second, b"file") == BEFORE
            assert not first._meta.failure  # it has not heard of the other one
            await refused(overwrite(first, fh, b"WRITTEN BY A GHOST  "))
            assert await read_all(second, b"file") == BEFORE
            gate.release()
            await until(lambda: first._meta.failure)
            assert "fenced" in str(first._meta.failure)
            await refused(first.make(USER, ROOT_INO, b"new", FILE))
            await refused(first.unlink(ROOT_INO, b"file"))
            await refused(overwrite(first, fh, b"WRITTEN BY A GHOST  "))
            await first.release(fh)
            await write_closed(second, b"other", AFTER)
            assert await read_all(second, b"file") == BEFORE
            assert await read_all(second, b"other") == AFTER
            assert (await until(real.statistics))["epoch"] == second._meta.epoch > first._meta.epoch


@pytest.mark.expected_log(_FENCED)
@pytest.mark.expected_log(_ENDED)
async def test_a_mount_that_hangs_loses_its_session_after_the_lease(real: Real) -> None:
    """Its connection still stands, as that of a stopped process does."""
    async with gated(real) as (gate, first):
        gate.hold()
        assert (await refusal(real)).startswith("already mounted")
        with trio.fail_after(WAIT_S):
            while await refusal(real):
                await trio.sleep(0.1)
        gate.release()
        await until(lambda: first._meta.failure)
        assert "fenced" in str(first._meta.failure)
        await refused(first.make(USER, ROOT_INO, b"new", FILE))


@pytest.mark.expected_log(_ENDED)
async def test_a_second_mount_is_refused_too_while_the_inode_table_has_just_come_back(real: Real) -> None:
    """The first has not vanished because the table has."""
    async with gated(real) as (gate, first):
        gate.hold()
        real.actor_process("master", "InodeTable").kill()
        await until(lambda: attempt(real.statistics))
        assert (await refusal(real)).startswith("already mounted")
        gate.release()
        with trio.fail_after(WAIT_S):
            await write_closed(first, b"after", AFTER)
