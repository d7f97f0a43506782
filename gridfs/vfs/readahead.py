"""Read-ahead: bytes a handle is going to ask for, fetched before it does."""

from __future__ import annotations

from collections import deque

import trio

from gridfs.buffers import Buffer
from gridfs.config import KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.vfs.fetch import Fetcher
from gridfs.vfs.file import File

SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES = 128 * KIB, MIB
WINDOW_START_BYTES, WINDOW_MAX_BYTES = MIB, 8 * MIB
BUDGET_BYTES = 64 * MIB
"""Bytes read ahead, over all handles."""


class Budget:
    """Memory for read-ahead, shared by all handles; what does not fit is simply not read ahead."""

    def __init__(self, limit_bytes: int = BUDGET_BYTES) -> None:
        self.limit_bytes, self.used_bytes = limit_bytes, 0

    def take(self, size_bytes: int) -> bool:
        """Take memory, if it is there."""
        if self.used_bytes + size_bytes > self.limit_bytes:
            return False
        self.used_bytes += size_bytes
        return True


class Segment:
    """A range that is being fetched, or has been. `stale` once its bytes have changed since."""

    __slots__ = ("content", "done", "end", "error", "stale", "start")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.content: bytearray | None = None
        self.error: FilesystemError | None = None
        self.done = trio.Event()
        self.stale = False


class ReadAhead:
    """The reader of one handle.

    A read that begins where the last one ended is sequential; from the second on, segments are fetched ahead, as large as the
    reads, in a window that doubles up to WINDOW_MAX_BYTES. Any other read drops the window and fetches just what was asked.
    Segments are handed out without a copy, so a buffer lives as long as whoever got it needs it. `_segments` are adjoining and
    in order; they change between awaits only.
    """

    def __init__(self, file: File, fetcher: Fetcher, budget: Budget, nursery: trio.Nursery) -> None:
        self._file, self._fetcher, self._budget, self._nursery = file, fetcher, budget, nursery
        self._segments: deque[Segment] = deque()
        self._next = 0
        self._window_bytes = 0
        file.readers.add(self)

    async def read(self, offset: int, length: int) -> Buffer:
        """The bytes [offset, offset + length), fewer at the end of the file. Raises EIO."""
        end = min(offset + length, self._file.size)
        if end <= offset:
            return b""
        sequential = offset == self._next or self._covers(offset)
        self._next = end
        if not sequential:
            self.clear()
            return await self._fetcher.fetch(self._file, offset, end - offset)
        self._window_bytes = min(max(WINDOW_START_BYTES, 2 * self._window_bytes), WINDOW_MAX_BYTES)
        wanted = self._plan(offset, end, length)
        if not wanted:
            return await self._fetcher.fetch(self._file, offset, end - offset)
        return await self._assemble(wanted, offset, end)

    def _covers(self, offset: int) -> bool:
        return bool(self._segments) and self._segments[0].start <= offset < self._segments[-1].end

    def _plan(self, offset: int, end: int, length: int) -> list[Segment]:
        """Drop what has been read, fetch ahead, and return the segments that make up [offset, end); empty if they do not."""
        while self._segments and self._segments[0].end <= offset:
            self._release(self._segments.popleft())
        if not self._segments and offset == 0:
            return []  # the first read: nothing is fetched ahead until there is a second
        self._top_up(offset, max(end, offset + self._window_bytes), length)
        wanted = [segment for segment in self._segments if segment.start < end and offset < segment.end]
        whole = wanted and wanted[0].start <= offset and wanted[-1].end >= end
        return wanted if whole and not any(segment.stale for segment in wanted) else []

    def _top_up(self, start: int, goal: int, length: int) -> None:
        """Begin to fetch segments from the end of the window up to `goal`."""
        size = min(max(length, SEGMENT_MIN_BYTES), SEGMENT_MAX_BYTES)
        at = self._segments[-1].end if self._segments else start
        goal = min(goal, self._file.size)
        while at < goal:
            segment = Segment(at, min(at + size, self._file.size))
            if not self._budget.take(segment.end - segment.start):
                return
            self._segments.append(segment)
            self._nursery.start_soon(self._fill, segment)
            at = segment.end

    async def _fill(self, segment: Segment) -> None:
        try:
            segment.content = await self._fetcher.fetch(self._file, segment.start, segment.end - segment.start)
        except FilesystemError as error:
            segment.error = error
        finally:
            segment.done.set()

    async def _assemble(self, segments: list[Segment], offset: int, end: int) -> Buffer:
        parts: list[Buffer] = []
        for segment in segments:
            await segment.done.wait()
            if segment.error or segment.content is None or segment.stale:
                return await self._fetcher.fetch(self._file, offset, end - offset)
            first, last = max(offset, segment.start) - segment.start, min(end, segment.end) - segment.start
            whole = first == 0 and last == len(segment.content)
            parts.append(segment.content if whole else memoryview(segment.content)[first:last])
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _release(self, segment: Segment) -> None:
        self._budget.used_bytes -= segment.end - segment.start

    def forget(self, start: int, end: int) -> None:
        """Bytes [start, end) have changed: what has been fetched of them is not used any more."""
        if any(segment.start < end and start < segment.end for segment in self._segments):
            self.clear()

    def clear(self) -> None:
        """Drop the window; fetches under way come to nothing."""
        for segment in self._segments:
            segment.stale = True
            self._release(segment)
        self._segments.clear()
        self._window_bytes = 0

    def close(self) -> None:
        """The handle is released."""
        self.clear()
        self._file.readers.discard(self)
