"""Space that a chunk server has granted this client, and what it is kept for."""

from __future__ import annotations

import trio

from gridfs.config import MIB
from gridfs.stream.connection import Connection
from gridfs.types import ChunkId

GRANT_BYTES = 64 * MIB
"""Space is asked for in steps of this: some 40 ms of writing at full speed. A server that gets full grants less."""
ROOMS_MAX_BYTES = 64 * MIB
IDLE_S = 0.5
"""What was not used for this long is given back; so all that a client does not use is back after twice as long."""


class Grants:
    """What one connection to a chunk server has been granted; it ends with the connection. Owned by one trio thread.

    Granted bytes are in `balance_bytes`, in a chunk's room, or taken: for a write that is on its way or about to be sent. A
    room is kept for a chunk that was begun, so that it can be filled: a chunk cannot grow past its server's space. When there
    is no other space left, rooms go to whoever writes first.
    """

    def __init__(self, connection: Connection) -> None:
        self.connection = connection
        self.balance_bytes = 0
        self.free_bytes = self.elsewhere_bytes = 0
        """What the server could still grant, and what other clients held, when it was asked at `asked_s`."""
        self.asked_s = 0.0
        self._rooms: dict[ChunkId, int] = {}
        """The one taken from longest ago first."""
        self._used: set[ChunkId] = set()
        """Chunks whose rooms were made or taken from since `surplus` was last asked."""
        self._used_bytes = 0
        self._asking = trio.Lock()

    @property
    def held_bytes(self) -> int:
        """Granted and not taken."""
        return self.balance_bytes + sum(self._rooms.values())

    async def take(self, charge_bytes: int, room_bytes: int = 0, chunk_id: ChunkId | None = None) -> bool:
        """Take space for a write; what `room_bytes` is more than that stays the room of the chunk, if it is named.

        False, and nothing taken, when the server has not so much. Other chunks' rooms are used only if none is wanted. Raises
        ConnectionLost.
        """
        needed_bytes = max(charge_bytes, room_bytes)
        if room_bytes:
            self._let_go_of_rooms(ROOMS_MAX_BYTES - room_bytes)
        own_bytes = self._rooms.pop(chunk_id, 0) if chunk_id else 0
        self.balance_bytes += own_bytes
        if self.balance_bytes < needed_bytes:
            await self._ask(needed_bytes, least_bytes=needed_bytes if room_bytes else 1)
        if self.balance_bytes < needed_bytes and not room_bytes:
            self._let_go_of_rooms(0, needed_bytes)
        if self.balance_bytes < needed_bytes:
            return False
        self.balance_bytes -= charge_bytes
        self._used_bytes += charge_bytes
        if chunk_id:
            self._keep(chunk_id, min(self.balance_bytes, max(room_bytes, own_bytes) - charge_bytes))
        return True

    async def take_some(self, most_bytes: int) -> int:
        """Take what there is, at most `most_bytes`; how many. For when there is not enough."""
        if self.balance_bytes < most_bytes:
            await self._ask(most_bytes, least_bytes=1)
            self._let_go_of_rooms(0, most_bytes)
        taken_bytes = min(self.balance_bytes, most_bytes)
        self.balance_bytes -= taken_bytes
        return taken_bytes

    def put_back(self, taken_bytes: int) -> None:
        """Nothing was written with it."""
        self.balance_bytes += taken_bytes

    def surplus(self) -> int:
        """What was not used since this was last asked, and is given back now: it counts as granted no more."""
        for chunk_id in self._rooms.keys() - self._used:
            self.balance_bytes += self._rooms.pop(chunk_id)
        surplus_bytes = max(0, self.balance_bytes - self._used_bytes)
        self.balance_bytes -= surplus_bytes
        self._used.clear()
        self._used_bytes = 0
        return surplus_bytes

    async def _ask(self, needed_bytes: int, least_bytes: int) -> None:
        """Ask the server for what the balance lacks, and more. It grants nothing if it has less than `least_bytes`."""
        async with self._asking:
            missing_bytes = needed_bytes - self.balance_bytes
            if missing_bytes > 0:
                want_bytes, least_bytes = max(GRANT_BYTES, missing_bytes), min(least_bytes, missing_bytes)
                said = await self.connection.call("grant", want_bytes, missing_bytes, least_bytes)
                granted_bytes, self.free_bytes, self.elsewhere_bytes = said
                self.asked_s = trio.current_time()
                self.balance_bytes += granted_bytes

    def _keep(self, chunk_id: ChunkId, room_bytes: int) -> None:
        if room_bytes > 0:
            self.balance_bytes -= room_bytes
            self._rooms[chunk_id] = room_bytes
            self._used.add(chunk_id)

    def _let_go_of_rooms(self, most_bytes: int, enough_bytes: int | None = None) -> None:
        """Move rooms to the balance, the oldest first, until they are at most `most_bytes` or the balance is enough."""
        total_bytes = sum(self._rooms.values())
        for chunk_id in list(self._rooms):
            if total_bytes <= most_bytes or (enough_bytes is not None and self.balance_bytes >= enough_bytes):
                break
            room_bytes = self._rooms.pop(chunk_id)
            total_bytes -= room_bytes
            self.balance_bytes += room_bytes
