"""An open file: what has been written to it and is not yet safe."""

from __future__ import annotations

import errno
from collections import deque
from typing import Any, NamedTuple, Protocol

import trio

from gridfs.errors import FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.stream.connection import Reply

_END = 1 << 63
"""Beyond every byte of a file, and every ticket."""


class Reader(Protocol):
    """Someone who holds copies of a file's bytes."""

    def forget(self, start: int, end: int) -> None:
        """Bytes [start, end) have changed: copies of them are stale."""


class InFlight(NamedTuple):
    """Bytes [start, end) on their way; `data` is what the connection sends. The file had `size_before` bytes until then."""

    start: int
    end: int
    data: memoryview
    size_before: int


class File:
    """The data state of one inode, shared by its handles; it exists while one of them does.

    Owned by the trio thread of the filesystem. `in_flight` holds what was sent to chunk servers and is not acknowledged, in
    order.
    `size` is the end of what has been written, ahead of the table's size until the bytes are safe: the table never claims
    bytes that no chunk server has. `lock` serialises writes and truncations.
    """

    def __init__(self, ino: int, meta: MetaClient) -> None:
        self.ino = ino
        self._meta = meta
        self.handles = 0
        self.readers: set[Reader] = set()
        self.lock = trio.Lock()
        self.in_flight: dict[int, InFlight] = {}
        self.chunk_lengths: dict[int, int] = {}
        """Length of each chunk, where this mount knows it: what a write costs in space follows from it."""
        self._size = 0
        self.mtime_ns: int | None = None
        """When bytes were last written, until the table has been told."""
        self._telling = 0
        """How often the table is being told of it just now."""
        self.broken: deque[Any] = deque()
        """Writes that not all copies have got, in the order in which they were made; no other is begun before they are safe."""
        self._tickets = 0
        self._replies: dict[int, Reply] = {}
        self._progress = trio.lowlevel.ParkingLot()
        """Who waits for writes to be safe."""
        self._error: int = 0
        self.error_count = 0

    @property
    def size(self) -> int:
        """The file's size as programs see it."""
        return max(self._size, self._meta.table.inode(self.ino).size)

    # -- writing -----------------------------------------------------------------------------------------------------

    def begin_write(self, start: int, end: int, now_ns: int, data: memoryview) -> int:
        """Bytes [start, end), which are `data`, are on their way; returns a ticket for `end_write`."""
        size_before, self._size = self._size, max(self._size, end)
        self.mtime_ns = now_ns
        for reader in self.readers:
            reader.forget(start, end)
        self._tickets += 1
        self.in_flight[self._tickets] = InFlight(start, end, data, size_before)
        return self._tickets

    def sent(self, ticket: int, reply: Reply) -> None:
        """`reply` is to say that the bytes of the ticket are safe; it may have said so already."""
        if ticket in self.in_flight:
            self._replies[ticket] = reply

    def end_write(self, ticket: int, error: int) -> None:
        """The bytes are safe, or lost with `error`: then every handle hears of it once."""
        del self.in_flight[ticket]
        self._replies.pop(ticket, None)
        if error:
            self._error = error
            self.error_count += 1
        self._progress.unpark_all()

    def raise_error(self, seen: int) -> int:
        """Raise the last write error if any came after the `seen` first; returns how many there were."""
        if self.error_count > seen:
            raise FilesystemError(self._error or errno.EIO, "an earlier write was lost")
        return self.error_count

    # -- waiting -----------------------------------------------------------------------------------------------------

    def _overlap(self, ticket: int, start: int, end: int) -> bool:
        write = self.in_flight[ticket]
        return write.start < end and start < write.end

    def held(self, start: int, end: int) -> memoryview | None:
        """Bytes [start, end), if they lie within the newest of the writes in flight that touch them."""
        for write in reversed(self.in_flight.values()):
            if write.start < end and start < write.end:
                within = write.start <= start and end <= write.end
                return write.data[start - write.start : end - write.start] if within else None
        return None

    async def settle(self, start: int = 0, end: int = _END) -> None:
        """Wait until none of the bytes of [start, end) that are in flight now is; bounded by the connections' reply timeout.

        What is written later is not waited for: that would take for ever beside a writer who goes on and on.
        """
        newest = self._tickets
        if len(self.in_flight) == 1 and newest in self._replies:
            self._replies[newest].look()
        while any(ticket <= newest and self._overlap(ticket, start, end) for ticket in self.in_flight):
            await self._progress.park()

    async def whole(self) -> None:
        """Wait until no write is broken."""
        while self.broken:
            await self._progress.park()

    # -- telling the table -------------------------------------------------------------------------------------------

    @property
    def dirty(self) -> bool:
        """True while the table has not been told of all that has been written."""
        return self.mtime_ns is not None or self._size > self._meta.table.inode(self.ino).size

    async def commit(self) -> None:
        """Tell the table of the size that is safe, and of the time of the last write. Raises as `MetaClient.execute`.

        A write that was lost counts as settled: its error has been kept for every handle, and its bytes read as EIO or as
        zeros.
        """
        known = self._meta.table.inode(self.ino).size
        safe = self._safe_size(known)
        if safe > known or self.mtime_ns is not None:
            await self._tell(max(safe, known))

    def _safe_size(self, known: int) -> int:
        """Up to where bytes are safe, which may be less than the `known` size.

        That is to where the first range in flight begins that makes the file longer; and all that was written before the
        oldest in flight is safe too, although those written since may go over it.
        """
        if not self.in_flight:
            return self._size
        oldest = next(iter(self.in_flight.values()))
        first = min((write.start for write in self.in_flight.values() if write.end > known), default=self._size)
        return max(first, oldest.size_before)

    async def commit_times(self) -> None:
        """Tell the table when the last write was, so that times set after it are not overwritten by it."""
        if self.mtime_ns is not None:
            await self._tell(0)

    async def _tell(self, size: int) -> None:
        """`mtime_ns` stays until the table has it: whoever commits meanwhile must not take the file for told, and waits too."""
        written_ns = self.mtime_ns
        self._telling += 1
        try:
            await self._meta.execute(("extend", written_ns, self.ino, size))
        finally:
            self._telling -= 1
        if self.mtime_ns == written_ns:
            self.mtime_ns = None

    def changed_elsewhere(self) -> None:
        """Another mount has changed the inode: what is known of its bytes counts no longer, but for our own unsafe ones."""
        if not self.in_flight and not self._telling and self.mtime_ns is None:
            self._size = 0
        self.chunk_lengths.clear()
        for reader in self.readers:
            reader.forget(0, _END)

    def truncated(self, size: int) -> None:
        """The file ends at `size` now; the table has been told."""
        self._size = min(self._size, size)
        self.chunk_lengths.clear()
        for reader in self.readers:
            reader.forget(size, _END)
