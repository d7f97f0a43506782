"""Whether other tasks of the loop have their turn."""

from __future__ import annotations

import trio


class Turns:
    """Counts them: `take` runs beside what is tested, until cancelled."""

    def __init__(self) -> None:
        self.count = 0

    async def take(self) -> None:
        """Have one turn after the other."""
        while True:
            await trio.lowlevel.checkpoint()
            self.count += 1
