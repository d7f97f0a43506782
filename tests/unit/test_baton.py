"""How pyfuse3's tasks wait for the device; a pipe stands for it."""

import os
import time
from collections.abc import Iterator
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from mount import baton
from mount.baton import Baton, Device
from tests.unit.turns import Turns

LONG_S = 10.0
"""Far more than the others have to wait for their turn, also on a busy machine."""


@pytest.fixture
def pipe() -> Iterator[tuple[int, int]]:
    ends = os.pipe()
    os.set_blocking(ends[0], False)
    yield ends
    for end in ends:
        os.close(end)


async def test_a_free_baton_is_taken_without_yielding() -> None:
    shared = Baton()
    with trio.testing.assert_no_checkpoints():
        for _ in range(3):
            async with shared:
                pass


async def test_one_task_at_a_time_has_the_baton_and_all_have_it_in_the_end() -> None:
    shared, having, had = Baton(), 0, []

    async def work(number: int) -> None:
        nonlocal having
        for _ in range(20):
            async with shared:
                having += 1
                assert having == 1
                await trio.lowlevel.checkpoint()
                having -= 1
            had.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(8):
            nursery.start_soon(work, number)
    assert sorted(had) == sorted(list(range(8)) * 20)


async def test_a_waiting_task_gets_the_baton_when_the_one_before_is_busy_elsewhere() -> None:
    shared, busy = Baton(), trio.Event()

    async def other() -> None:
        async with shared:
            busy.set()

    async with trio.open_nursery() as nursery:
        async with shared:
            nursery.start_soon(other)
            await trio.testing.wait_all_tasks_blocked()
        with trio.fail_after(1):
            await busy.wait()


async def test_a_task_that_is_cancelled_while_it_waits_is_in_nobodys_way() -> None:
    shared = Baton()

    async def wait() -> None:
        async with shared:
            raise AssertionError

    async with trio.open_nursery() as nursery, shared:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    with trio.fail_after(1):
        async with shared:
            pass


async def test_a_device_with_a_request_is_readable_without_yielding(
    pipe: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(baton, "BUSY_S", LONG_S)  # a busy machine takes the processor away for longer than the real one
    device = Device()
    os.write(pipe[1], b"1")
    await device.wait_readable(pipe[0])  # the first time, and every BUSY_S, the others have their turn
    with trio.testing.assert_no_checkpoints():
        await device.wait_readable(pipe[0])


async def test_a_device_without_a_request_is_waited_for(pipe: tuple[int, int]) -> None:
    device = Device()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(device.wait_readable, pipe[0])
        await trio.testing.wait_all_tasks_blocked(0.01)
        os.write(pipe[1], b"1")


async def test_requests_without_end_do_not_keep_other_tasks_from_their_turn(pipe: tuple[int, int]) -> None:
    device, others = Device(), Turns()
    os.write(pipe[1], b"1")
    async with trio.open_nursery() as nursery:
        nursery.start_soon(others.take)
        end_s = time.perf_counter() + LONG_S
        while others.count < 3 and time.perf_counter() < end_s:
            await device.wait_readable(pipe[0])
        nursery.cancel_scope.cancel()
    assert others.count >= 3


async def test_a_device_that_is_closed_wakes_who_waits(pipe: tuple[int, int]) -> None:
    device = Device()

    async def wait() -> None:
        with pytest.raises(trio.ClosedResourceError):
            await device.wait_readable(pipe[0])

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        trio.lowlevel.notify_closing(pipe[0])


async def test_a_device_that_has_nothing_costs_nothing(pipe: tuple[int, int]) -> None:
    device = Device()
    before_s = time.process_time()
    with trio.move_on_after(0.5):
        await device.wait_readable(pipe[0])
    assert time.process_time() - before_s < 0.1


def test_pyfuse3_has_its_baton_from_here_and_all_else_from_trio(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pyfuse3, "trio", trio)
    baton.install()
    given: Any = vars(pyfuse3)["trio"]
    assert given.Lock is Baton
    assert isinstance(given.lowlevel, Device)
    assert given.ClosedResourceError is trio.ClosedResourceError
    assert given.lowlevel.current_task is trio.lowlevel.current_task
