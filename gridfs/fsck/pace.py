"""Keeping what several tasks do together within a rate."""

from __future__ import annotations

from collections.abc import Callable

import trio


class Pace:
    """Says when work may begin, so that over any time no more is begun than the rate allows, but for one piece.

    What was not used is not saved up: after an idle time there is no burst.
    """

    def __init__(self, rate_bytes_s: int, clock: Callable[[], float] = trio.current_time) -> None:
        self._rate_bytes_s, self._clock = rate_bytes_s, clock
        self._free_s = clock()
        """When all that was booked so far is over, at the rate."""

    def book(self, size_bytes: int) -> float:
        """Book work of that size; how long to wait before it begins, in seconds."""
        now_s = self._clock()
        begin_s = max(now_s, self._free_s)
        self._free_s = begin_s + size_bytes / self._rate_bytes_s
        return begin_s - now_s

    async def keep(self, size_bytes: int) -> None:
        """Wait until work of that size may begin."""
        await trio.sleep(self.book(size_bytes))
