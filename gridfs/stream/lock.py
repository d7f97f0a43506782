"""Taking a lock that hardly ever is taken already."""

from __future__ import annotations

import trio


class Promptly:
    """As `async with lock`, but a free lock is taken at once, before other tasks have their turn.

    For what is locked with every request: a turn of all tasks takes several times as long as what is guarded. Those who wait
    get the lock in the order in which they came, as always.
    """

    __slots__ = ("_lock",)

    def __init__(self, lock: trio.Lock) -> None:
        self._lock = lock

    async def __aenter__(self) -> None:
        try:
            self._lock.acquire_nowait()
        except trio.WouldBlock:
            await self._lock.acquire()

    async def __aexit__(self, *_: object) -> None:
        self._lock.release()
