"""How pyfuse3's tasks wait for the device, without going to sleep between requests that follow one another.

pyfuse3 has one task wait for the device at a time, and after each request hands that on to the next task, which waits with
epoll(7). A program that makes one call after the other has its next request there some 10 us later; by then the daemon is going
to sleep, and most of a request's time is falling asleep and being woken, of the daemon and of the processor that has nothing
else to do. Here the task that has answered goes on itself if the device has more, and looks out for more before it sleeps.

pyfuse3 takes what it needs of trio from its module's name `trio`, so that pyfuse3.asyncio can put another library there. That
is where `install` puts this.
"""

from __future__ import annotations

import select
import time
from collections import deque
from typing import Any

import pyfuse3
import trio

from gridfs.stream import lookout
from gridfs.stream.lookout import BUSY_S, Spinner
from mount.greeting import Greeting

SPIN_S = 40e-6
"""The next request of a program that waits for each is there after 10 to 30 us. Nothing else is looked at meanwhile."""


class Baton:
    """Who has it waits for the device: one task at a time, as with trio.Lock, but no task is made to wait for nothing.

    A free baton is taken at once, also by the task that has just let go of it; one of those that wait is woken then, and looks
    again. Changes between awaits only.
    """

    def __init__(self) -> None:
        self._is_taken = False
        self._waiting = deque[trio.lowlevel.Task]()
        self._is_waking = False
        """One has been woken and has not run yet."""

    async def __aenter__(self) -> None:
        while self._is_taken:
            await self._wait()
        self._is_taken = True

    async def _wait(self) -> None:
        task = trio.lowlevel.current_task()
        self._waiting.append(task)

        def abort(_: object) -> trio.lowlevel.Abort:
            self._waiting.remove(task)
            return trio.lowlevel.Abort.SUCCEEDED

        await trio.lowlevel.wait_task_rescheduled(abort)
        self._is_waking = False

    async def __aexit__(self, *_: object) -> None:
        self._is_taken = False
        if self._waiting and not self._is_waking:
            self._is_waking = True
            trio.lowlevel.reschedule(self._waiting.popleft())


class Device:
    """Waits for the device: what pyfuse3 uses of trio.lowlevel. Used by one task at a time, the one with the baton."""

    def __init__(self, greeting: Greeting | None = None) -> None:
        """`greeting` comes before all other requests."""
        self._greeting = greeting
        self._poll = select.poll()
        self._fd = -1
        self._spinner = Spinner()
        self._rested_s = 0.0
        """When other tasks last had their turn."""
        self._is_short = False
        """Whether the last wait was, or would have been with a little more patience."""

    def __getattr__(self, name: str) -> Any:
        return getattr(trio.lowlevel, name)

    async def wait_readable(self, fd: int) -> None:
        """Return once the device has a request; without yielding if it has one now or soon, but for every BUSY_S."""
        if self._greeting is not None:
            if self._greeting.is_to_be_read():
                return
            self._greeting = None
        if self._fd != fd:
            self._fd = fd
            self._poll.register(fd, select.POLLIN)
            if (out := lookout.here()) is not None:
                out.watch(fd)
        began_s = time.perf_counter()
        if began_s - self._rested_s > BUSY_S:
            await trio.lowlevel.checkpoint()
            self._rested_s = began_s
        if not (self._spinner.spin(self._look, SPIN_S) if self._is_short else self._look()):
            await trio.lowlevel.wait_readable(fd)
            self._rested_s = time.perf_counter()
            self._is_short = self._rested_s - began_s < 2 * SPIN_S

    def _look(self) -> list[tuple[int, int]]:
        return self._poll.poll(0)


class _Trio:
    """trio, but for the two things that are here."""

    Lock = Baton

    def __init__(self, greeting: Greeting | None) -> None:
        self.lowlevel = Device(greeting)

    def __getattr__(self, name: str) -> Any:
        return getattr(trio, name)


def install(greeting: Greeting | None = None) -> None:
    """Have pyfuse3's tasks wait like this from now on. Before `pyfuse3.main`; once in a process, like all of pyfuse3."""
    pyfuse3.trio = _Trio(greeting)  # type: ignore[attr-defined]
