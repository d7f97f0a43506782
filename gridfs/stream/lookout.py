"""Looking out for what comes next, for a moment, before going to sleep.

A request between two processes takes some 60 us of work. Where a processor has nothing else to do, falling asleep and being
woken costs as much again on each side, and more on a virtual machine. So a trio loop with a lookout looks again and again at
its descriptors before it sleeps: for SPIN_S at most, and only as long as that has not been in vain lately, nor at the cost of
others who want the processor.
"""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import trio

SPIN_S = 300e-6
"""A program's next request comes 10 to 30 us after an answer, another process's answer 100 to 250 us after the request."""
SHORT_S = 1.5 * SPIN_S
"""A wait of less than this was worth looking out, or would have been with a little more patience."""
BUSY_S = 1e-3
"""So long a task may go on with what has come soon, before the loop's other tasks have their turn."""
CROWDED_S, REST_S = 200e-6, 2e-3
"""Offering the processor to others takes 1 us, or an interrupt more; if it took as much as the first, somebody has had it."""

T = TypeVar("T")
_here = threading.local()
"""`lookout`: of this thread's loop."""


class Spinner:
    """Looks again and again, and lets whoever else wants the processor have it first.

    If somebody does, there are more of them than processors. Then nothing is looked out for until REST_S later: it would be at
    the cost of the very process that is waited for.
    """

    def __init__(self) -> None:
        self._resting_s = 0.0

    def spin(self, look: Callable[[], T], limit_s: float) -> T:
        """What `look` says once that is something, or after `limit_s`."""
        began_s = now_s = time.perf_counter()
        while not (seen := look()) and self._resting_s <= now_s <= began_s + limit_s:
            before_s = now_s
            os.sched_yield()
            now_s = time.perf_counter()
            if now_s - before_s > CROWDED_S:
                self._resting_s = now_s + REST_S
        return seen


class Lookout(trio.abc.Instrument):
    """Of one trio loop, in one thread."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._spinner = Spinner()
        self._looped_s = 0.0
        """When the loop last had run all tasks that could run."""
        self._is_short = False
        """Whether the loop's last wait was."""

    def watch(self, fd: int) -> None:
        """Look at this descriptor too, until it is closed."""
        self._epoll.register(fd, select.EPOLLIN)

    def soon(self, fd: int) -> bool:
        """Whether the descriptor, which is watched, can be read now or soon; the loop stands still meanwhile.

        False at once when there is something at another one, or when the loop has not come round for BUSY_S.
        """
        if time.perf_counter() - self._looped_s > BUSY_S:
            return False
        ready = self._spinner.spin(self._look, SPIN_S)
        return bool(ready) and ready[0][0] == fd

    def _look(self) -> list[tuple[int, int]]:
        return self._epoll.poll(0, 1)

    def before_io_wait(self, timeout: float) -> None:
        """See trio.abc.Instrument: for `timeout` seconds, which may be none, no task can run."""
        self._looped_s = time.perf_counter()
        if self._is_short and timeout > 0:
            self._spinner.spin(self._look, min(SPIN_S, timeout))

    def after_io_wait(self, timeout: float) -> None:
        """See trio.abc.Instrument."""
        if timeout > 0:
            now_s = time.perf_counter()
            self._is_short, self._looped_s = now_s - self._looped_s < SHORT_S, now_s

    def close(self) -> None:
        """Look at nothing any more."""
        self._epoll.close()


def here() -> Lookout | None:
    """The lookout of this thread's loop, if it has one."""
    return getattr(_here, "lookout", None)


@contextmanager
def looking_out() -> Iterator[None]:
    """Give the loop that runs this a lookout for the length of the context, unless it has one."""
    if here() is not None:
        yield
        return
    lookout = _here.lookout = Lookout()
    trio.lowlevel.add_instrument(lookout)
    try:
        yield
    finally:
        trio.lowlevel.remove_instrument(lookout)
        _here.lookout = None
        lookout.close()
