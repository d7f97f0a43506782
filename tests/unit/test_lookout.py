"""Looking out for what comes next before going to sleep; pipes stand for sockets."""

import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator

import pytest
import trio

from gridfs.stream import lookout
from gridfs.stream.lookout import CROWDED_S, Lookout, Spinner, looking_out

LATER_S = 20e-6
BUSY_S = 0.2
"""Longer than a busy machine takes the processor away."""


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lookout, "BUSY_S", BUSY_S)


@pytest.fixture
def pipes() -> Iterator[list[tuple[int, int]]]:
    made = [os.pipe() for _ in range(2)]
    yield made
    for ends in made:
        for end in ends:
            os.close(end)


def watching(fd: int) -> Lookout:
    """This loop's lookout, which looks at the descriptor too."""
    out = lookout.here()
    assert out is not None
    out.watch(fd)
    return out


def looked_out(main: Callable[[], Awaitable[None]]) -> None:
    with_limit_s = 10.0

    async def limited() -> None:
        with looking_out(), trio.fail_after(with_limit_s):
            await main()

    trio.run(limited)


def write_later(fd: int) -> threading.Timer:
    """Write to the descriptor from another thread, soon."""
    timer = threading.Timer(LATER_S, os.write, (fd, b"1"))
    timer.start()
    return timer


def test_what_is_there_is_seen_at_once(pipes: list[tuple[int, int]]) -> None:
    async def main() -> None:
        out = watching(pipes[0][0])
        os.write(pipes[0][1], b"1")
        await trio.lowlevel.checkpoint()
        assert out.soon(pipes[0][0])

    looked_out(main)


def test_what_does_not_come_is_not_waited_for(pipes: list[tuple[int, int]]) -> None:
    async def main() -> None:
        out = watching(pipes[0][0])
        await trio.lowlevel.checkpoint()
        assert not out.soon(pipes[0][0])

    looked_out(main)


def test_something_on_another_descriptor_goes_first(pipes: list[tuple[int, int]]) -> None:
    async def main() -> None:
        out = watching(pipes[0][0])
        watching(pipes[1][0])
        os.write(pipes[1][1], b"1")
        await trio.lowlevel.checkpoint()
        assert not out.soon(pipes[0][0])

    looked_out(main)


def test_tasks_that_have_waited_go_first(pipes: list[tuple[int, int]]) -> None:
    async def main() -> None:
        out = watching(pipes[0][0])
        os.write(pipes[0][1], b"1")
        await trio.lowlevel.checkpoint()
        time.sleep(1.5 * BUSY_S)  # noqa: ASYNC251 - the loop is to stand still
        assert not out.soon(pipes[0][0])
        await trio.lowlevel.checkpoint()
        assert out.soon(pipes[0][0])

    looked_out(main)


def test_nobody_looks_out_where_others_want_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    """They were let in once, and have it to themselves for a while."""
    looks, spinner = 0, Spinner()

    def look() -> bool:
        nonlocal looks
        looks += 1
        return False

    monkeypatch.setattr(os, "sched_yield", lambda: time.sleep(2 * CROWDED_S))
    spinner.spin(look, 1.0)
    assert looks == 2
    spinner.spin(look, 1.0)
    assert looks == 3


def test_a_loop_without_a_lookout_has_none() -> None:
    async def main() -> None:
        assert lookout.here() is None

    trio.run(main)


def test_a_loop_that_has_nothing_to_do_costs_nothing(pipes: list[tuple[int, int]]) -> None:
    """Also one whose waits were short until now, and that has timeouts."""

    async def main() -> None:
        watching(pipes[0][0])
        for _ in range(20):
            await trio.sleep(50e-6)
        before_s = time.process_time()
        for _ in range(5):
            await trio.sleep(0.1)
        assert time.process_time() - before_s < 0.1

    looked_out(main)


def test_a_loop_sees_what_comes_while_it_looks_out(pipes: list[tuple[int, int]]) -> None:
    async def main() -> None:
        watching(pipes[0][0])
        for _ in range(50):
            timer = write_later(pipes[0][1])
            await trio.lowlevel.wait_readable(pipes[0][0])
            assert os.read(pipes[0][0], 1) == b"1"
            timer.join()

    looked_out(main)


def test_a_loop_leaves_no_descriptor_open() -> None:
    async def main() -> None:
        pass

    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        looked_out(main)
    assert len(os.listdir("/proc/self/fd")) == before
