"""The memory that bytes on their way may take: the write window, reads under way and read-ahead share it."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import Protocol

import trio

from gridfs.config import MIB

SPARE_SHARE = 8
"""Read-ahead leaves this part of the budget free, 1/8: else every plain read would have to take it back."""
IDLE_S = 1.0
"""Who has not borrowed for so long gives way to others that read ahead."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a mount's bytes may take of memory: in all, and those of it that are written and not acknowledged."""

    budget_bytes: int = 256 * MIB
    window_bytes: int = 64 * MIB


LIMITS = Limits()


class Borrower(Protocol):
    """Someone who holds memory that nobody has asked for yet."""

    def give_way(self) -> None:
        """Hand back all that was borrowed, at once."""


class Budget:
    """Memory that is taken and given back. Owned by one trio thread.

    Takers wait in line, first come first served, so none starves. No deadlock: nobody waits here while holding memory of this
    budget that others could not get back. What was taken is given back when a chunk server answers, or its connection ends,
    which the reply timeout bounds; what was borrowed is handed back as soon as a taker has to wait. A budget `within` another
    one takes from both: from itself first, and what it holds then while waiting for the other nobody there waits for.
    """

    def __init__(self, limit_bytes: int, within: Budget | None = None) -> None:
        self.limit_bytes, self._within = limit_bytes, within
        self.used_bytes = 0
        self._waiting: deque[tuple[int, trio.Event]] = deque()
        self._lent: dict[Borrower, tuple[int, float]] = {}
        """What each holds and when it borrowed last; in that order."""
        self._leaving_bytes = 0
        """Handed back, and still being filled."""

    # -- taking ------------------------------------------------------------------------------------------------------

    async def take(self, size_bytes: int) -> None:
        """Take memory, as soon as it is there; `give` takes the same figure. More than all there is counts as all."""
        size = min(size_bytes, self.limit_bytes)
        if self._waiting or self.used_bytes + size > self.limit_bytes:
            await self._wait(size)
        else:
            self.used_bytes += size
        if self._within is not None:
            try:
                await self._within.take(size)
            except BaseException:
                self._put_back(size)
                raise

    def give(self, size_bytes: int) -> None:
        """Give back what was taken."""
        size = min(size_bytes, self.limit_bytes)
        self._put_back(size)
        if self._within is not None:
            self._within.give(size)

    async def _wait(self, size: int) -> None:
        place = (size, trio.Event())
        self._waiting.append(place)
        self._call_back()
        try:
            await place[1].wait()
        except BaseException:
            if place[1].is_set():
                self._put_back(size)
            else:
                self._waiting.remove(place)
                self._put_back(0)
            raise

    def _put_back(self, size: int) -> None:
        self.used_bytes -= size
        while self._waiting and self.used_bytes + self._waiting[0][0] <= self.limit_bytes:
            size, turn = self._waiting.popleft()
            self.used_bytes += size
            turn.set()

    def _call_back(self) -> None:
        """Have borrowers give way, those first that borrowed longest ago, until those who wait have enough."""
        while self._lent:
            wanted = sum(size for size, _ in self._waiting) + self.used_bytes - self._leaving_bytes
            if wanted <= self.limit_bytes:
                return
            next(iter(self._lent)).give_way()

    # -- borrowing ---------------------------------------------------------------------------------------------------

    def borrow(self, borrower: Borrower, size_bytes: int) -> bool:
        """Take memory if it is there and the borrower has not had its share, which is the same for all that borrow."""
        now_s = trio.current_time()
        lent, _ = self._lent.pop(borrower, (0, 0.0))
        lendable = self.limit_bytes - self.limit_bytes // SPARE_SHARE
        fair = lent + size_bytes <= lendable // (len(self._lent) + 1)
        while fair and self.used_bytes + size_bytes > lendable and self._lent:
            oldest, (_, borrowed_s) = next(iter(self._lent.items()))
            if now_s - borrowed_s < IDLE_S:
                break
            oldest.give_way()
        granted = fair and not self._waiting and self.used_bytes + size_bytes <= lendable
        if granted:
            self.used_bytes += size_bytes
            lent += size_bytes
        if lent:
            self._lent[borrower] = (lent, now_s)
        return granted

    def hand_back(self, borrower: Borrower, size_bytes: int) -> None:
        """The borrower has no more use for it; it is free once `freed` says so."""
        lent, borrowed_s = self._lent[borrower]
        if lent > size_bytes:
            self._lent[borrower] = (lent - size_bytes, borrowed_s)
        else:
            del self._lent[borrower]
        self._leaving_bytes += size_bytes

    def freed(self, size_bytes: int) -> None:
        """Memory that was handed back is not being filled any more, nor read."""
        self._leaving_bytes -= size_bytes
        self._put_back(size_bytes)
