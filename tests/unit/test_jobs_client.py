"""The mount's end of the jobs: what is asked arrives, and a scheduler that is away, or hangs, holds up nobody for long."""

from __future__ import annotations

import errno
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
import trio
import trio.testing

from gridfs.errors import FilesystemError
from gridfs.offload import client as client_module
from gridfs.offload.client import JobsClient
from gridfs.offload.job import Input, Output, Request, Submitter
from tests.unit.fake_jobs import Scheduler, scheduler_and_client

REQUEST = Request("command", "ls", ("ls", "-l"), output="x")
SUBMITTER = Submitter(1000, 100, (4, 5))
SOURCE = Input(2, "file", 9 << 20, {0: ("gpu1-a", "gpu2-b"), 1: ("gpu2-b",)})
OUTPUT = Output(1, b"\xff", "/\\xff")

Pair = tuple[Scheduler, JobsClient]


@pytest.fixture
async def pair() -> AsyncIterator[Pair]:
    with trio.fail_after(20):
        async with scheduler_and_client() as pair:
            yield pair


async def submit(client: JobsClient) -> int:
    return await client.submit(REQUEST, SUBMITTER, SOURCE, OUTPUT)


async def refused(call: Callable[..., Awaitable[Any]], *arguments: Any) -> FilesystemError:
    with pytest.raises(FilesystemError) as raised:
        await call(*arguments)
    return raised.value


async def test_a_submission_arrives_as_it_was_made(pair: Pair) -> None:
    scheduler, client = pair
    assert await submit(client) == 1
    request, submitter, source, output, mounter = scheduler.service.submitted[0]
    assert Request.unpack(request) == REQUEST
    assert Submitter.unpack(submitter) == SUBMITTER
    assert Input.unpack(source) == SOURCE
    assert Output(**output) == OUTPUT
    assert mounter == 7
    await client.submit(REQUEST, SUBMITTER, SOURCE, None)
    assert scheduler.service.submitted[1][3] is None


async def test_jobs_are_looked_at_and_cancelled(pair: Pair) -> None:
    scheduler, client = pair
    await submit(client)
    scheduler.service.left["stdout"] = os.urandom(3 << 20)
    assert (await client.status(1, 1000))["state"] == "queued"
    assert [status["id"] for status in await client.visible(0)] == [1]
    assert await client.visible(1001) == []
    assert await client.read(1, 1000, "stdout") == scheduler.service.left["stdout"]
    assert await client.read(1, 1000, "stderr") == b""
    assert await client.newest(2, 1001) is None
    assert await client.cancel(1, 1000)
    assert not await client.cancel(1, 1000)
    assert not await client.cancel_newest(2, 1000)
    assert (await refused(client.status, 9, 0)).errno == errno.ENOENT


@pytest.mark.parametrize("code", [errno.EAGAIN, errno.EPERM, errno.EINVAL, errno.EIO])
async def test_what_the_scheduler_refuses_keeps_its_errno_and_its_sentence(pair: Pair, code: int) -> None:
    scheduler, client = pair
    scheduler.service.failure = FilesystemError(code, "as asked")
    error = await refused(submit, client)
    assert (error.errno, error.strerror) == (code, "as asked")


async def test_without_a_scheduler_submitting_is_eagain_and_reading_eio_at_once(pair: Pair) -> None:
    scheduler, client = pair
    scheduler.end()
    for address in (scheduler.address, None):
        scheduler.address = address
        with trio.fail_after(3):
            assert (await refused(submit, client)).errno == errno.EAGAIN
            assert (await refused(client.status, 1, 0)).errno == errno.EIO


async def test_a_scheduler_that_is_started_again_is_found(pair: Pair) -> None:
    scheduler, client = pair
    await submit(client)
    scheduler.end()
    await trio.testing.wait_all_tasks_blocked(0.01)
    scheduler.start()
    assert (await client.status(1, 0))["id"] == 1
    assert await submit(client) == 2


async def test_a_scheduler_that_moved_while_the_old_one_hangs_is_asked_in_its_new_place(pair: Pair) -> None:
    scheduler, client = pair
    await submit(client)
    await client.status(1, 0)
    scheduler.start()
    assert (await client.status(1, 0))["id"] == 1
    assert client._connections[client_module.ASK][0] == scheduler.address


async def test_who_waits_for_a_scheduler_that_dies_is_answered_by_the_next(pair: Pair) -> None:
    scheduler, client = pair
    await submit(client)
    scheduler.service.stalled = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.status, 1, 0)
        with trio.fail_after(3):
            while scheduler.service.asked < 2:
                await trio.sleep(0.01)
        scheduler.end()
        scheduler.start()
        scheduler.service.stalled.set()
    assert scheduler.service.asked == 3


async def test_a_scheduler_that_hangs_is_given_up_in_time_and_left_alone_for_a_while(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler, client = pair
    monkeypatch.setattr(client_module, "LIMIT_S", 0.3)
    monkeypatch.setattr(client_module, "SILENT_S", 0.5)
    scheduler.service.stalled = trio.Event()
    with trio.fail_after(2):
        assert (await refused(submit, client)).errno == errno.EAGAIN
        while not scheduler.service.goodbyes:  # whoever waits no more has not submitted anything
            await trio.sleep(0.01)
        asked = scheduler.service.asked
        for _ in range(100):
            assert (await refused(client.status, 1, 0)).errno == errno.EIO
            assert (await refused(submit, client)).errno == errno.EAGAIN
    assert scheduler.service.asked == asked
    scheduler.service.stalled.set()
    with trio.fail_after(5):
        while True:
            try:
                await submit(client)
                break
            except FilesystemError:
                await trio.sleep(0.05)


async def test_a_slow_submission_does_not_hold_up_those_who_read(pair: Pair) -> None:
    scheduler, client = pair
    await submit(client)
    slow, begun = trio.Event(), trio.Event()
    quick = scheduler.service.methods["submit"]

    async def take_long(*arguments: Any) -> Any:
        begun.set()
        await slow.wait()
        return await quick(*arguments)

    scheduler.service.methods["submit"] = take_long
    async with trio.open_nursery() as nursery:
        nursery.start_soon(submit, client)
        with trio.fail_after(3):
            await begun.wait()
            assert (await client.status(1, 0))["id"] == 1
        slow.set()
    assert len(scheduler.service.jobs) == 2


async def test_who_finds_no_turn_is_told_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "TURN_S", 0.2)
    async with scheduler_and_client(at_once=2) as (scheduler, client), trio.open_nursery() as nursery:
        await client.visible(0)
        scheduler.service.stalled = trio.Event()
        for _ in range(2):
            nursery.start_soon(client.visible, 0)
        await trio.testing.wait_all_tasks_blocked(0.01)
        with trio.fail_after(2):
            error = await refused(submit, client)
        assert error.errno == errno.EAGAIN
        assert "too many" in (error.strerror or "")
        scheduler.service.stalled.set()
