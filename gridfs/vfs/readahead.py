"""Read-ahead: bytes a handle is going to ask for, fetched before it does."""

from __future__ import annotations

import trio

from gridfs.buffers import Buffer
from gridfs.config import KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.vfs.budget import Budget
from gridfs.vfs.fetch import Fetcher
from gridfs.vfs.file import File

SEGMENT_MIN_BYTES, SEGMENT_MAX_BYTES = 128 * KIB, MIB
WINDOW_MAX_BYTES = 16 * MIB
"""Of one stream: two chunks, so that two nodes are at work."""
STREAMS_MAX = 8
BEHIND_BYTES = 2 * MIB
"""The kernel sends reads at the same time, which may arrive in another order: what was skipped is kept for so long."""
WASTE_SHARE, WASTE_START_BYTES = 4, MIB
"""What is fetched in vain stays below 1/4 of what was asked on the handle, and a first try."""


class Segment:
    """A range that is being fetched, or has been.

    `unread_bytes` have not been handed out. Its memory is free once it is dropped and filled: what a read that is being
    answered still holds of it is part of that request, as the bytes of a write are.
    """

    __slots__ = ("content", "done", "dropped", "end", "error", "stale", "start", "unread_bytes")

    def __init__(self, start: int, end: int) -> None:
        self.start, self.end = start, end
        self.unread_bytes = end - start
        self.content: bytearray | None = None
        self.error: FilesystemError | None = None
        self.done = trio.Event()
        self.dropped = self.stale = False

    def overlap(self, start: int, end: int) -> int:
        """How many bytes of [start, end) are in it."""
        return max(0, min(end, self.end) - max(start, self.start))


class Stream:
    """Reads that follow one another: from `start` on, and up to `next`, where the next one is expected.

    `run_bytes` is how much was read without a fault; `segments` are what was read ahead and not handed out wholly, in order.
    """

    __slots__ = ("next", "run_bytes", "segments", "start")

    def __init__(self, start: int) -> None:
        self.start = self.next = start
        self.run_bytes = 0
        self.segments: list[Segment] = []

    def covers(self, offset: int) -> bool:
        """True when it has read ahead the byte at `offset`."""
        return any(segment.start <= offset < segment.end for segment in self.segments)

    def covering(self, offset: int, end: int) -> list[Segment]:
        """The adjoining segments from `offset` on, as far as they go towards `end`."""
        found: list[Segment] = []
        for segment in self.segments:
            if segment.start <= offset < segment.end and offset < end:
                found.append(segment)
                offset = segment.end
        return found


class ReadAhead:
    """The reader of one handle.

    A read that begins where another one ended makes a stream of the two. From then on segments are fetched ahead, as large as
    the reads, in a window of half of what the stream has read so far. There are STREAMS_MAX streams at most, the one used
    longest ago goes; reads that are no stream fetch just what was asked. Whatever the reads are like, the bytes fetched and not
    read stay below 1/WASTE_SHARE of those asked for, and WASTE_START_BYTES. Segments are handed out without a copy.

    All of it changes between awaits only.
    """

    def __init__(self, file: File, fetcher: Fetcher, budget: Budget, nursery: trio.Nursery) -> None:
        self._file, self._fetcher, self._budget, self._nursery = file, fetcher, budget, nursery
        self._streams: list[Stream] = []
        """The one used last is last."""
        self._asked_bytes = self._ahead_bytes = self._wasted_bytes = 0
        file.readers.add(self)

    async def read(self, offset: int, length: int) -> Buffer:
        """The bytes [offset, offset + length), fewer at the end of the file. Raises EIO."""
        end = min(offset + length, self._file.size)
        if end <= offset:
            return b""
        held = self._file.held(offset, end)
        if held is not None:
            return held
        stream = self._follow(offset)
        wanted = stream.covering(offset, end) if stream.segments else []
        self._note(stream, offset, end)
        self._extend(stream, end - offset)
        if not wanted:
            return await self._fetcher.fetch(self._file, offset, end - offset)
        return await self._assemble(wanted, offset, end)

    # -- streams -----------------------------------------------------------------------------------------------------

    def _follow(self, offset: int) -> Stream:
        """The stream that a read at `offset` goes on with, or begins."""
        streams, found = self._streams, None
        for stream in reversed(streams):
            if stream.next == offset:
                found = stream
                break
            if found is None and stream.segments and stream.covers(offset):
                found = stream
        if found is not None:
            streams.remove(found)
        else:
            found = Stream(offset)
            if len(streams) == STREAMS_MAX:
                self._end(next((stream for stream in streams if not stream.segments), streams[0]))
        streams.append(found)
        return found

    def _note(self, stream: Stream, offset: int, end: int) -> None:
        """[offset, end) is being read as part of `stream`."""
        self._asked_bytes += end - offset
        stream.run_bytes += end - offset
        stream.next = max(stream.next, end)
        for segment in stream.segments[:]:
            read = min(segment.overlap(offset, end), segment.unread_bytes)
            segment.unread_bytes -= read
            self._ahead_bytes -= read
            if not segment.unread_bytes:
                self._drop(stream, segment)
            elif segment.end + BEHIND_BYTES <= stream.next:
                self._drop(stream, segment)
                stream.run_bytes = 0
        if offset > stream.start:
            self._join(stream)

    def _join(self, stream: Stream) -> None:
        """Take over a stream that begins where this one has arrived: its first read came too early."""
        for other in self._streams:
            if other.start == stream.next and other is not stream:
                stream.next, stream.run_bytes = other.next, stream.run_bytes + other.run_bytes
                if not stream.segments or stream.segments[-1].end <= other.start:
                    stream.segments += other.segments
                    other.segments = []
                self._end(other)
                return

    def _end(self, stream: Stream) -> None:
        self._streams.remove(stream)
        for segment in stream.segments[:]:
            self._drop(stream, segment)

    # -- segments ----------------------------------------------------------------------------------------------------

    def _extend(self, stream: Stream, length: int) -> None:
        """Begin to fetch what the stream has earned, up to where another one began; its first read has earned nothing."""
        if stream.run_bytes <= length:
            return
        size = min(max(length, SEGMENT_MIN_BYTES), SEGMENT_MAX_BYTES)
        at = max(stream.next, stream.segments[-1].end if stream.segments else 0)
        goal = stream.next + min(stream.run_bytes // 2, WINDOW_MAX_BYTES)
        last = min((other.start for other in self._streams if other.start >= stream.next), default=self._file.size)
        while at < last:
            end = min(at + size, last)
            if end > goal or not self._affords(end - at) or not self._budget.borrow(self, end - at):
                return
            self._ahead_bytes += end - at
            stream.segments.append(Segment(at, end))
            self._nursery.start_soon(self._fill, stream.segments[-1])
            at = end

    def _affords(self, size_bytes: int) -> bool:
        """Whether little enough would be wasted if nothing of what is ahead were ever read."""
        at_stake = self._wasted_bytes + self._ahead_bytes + size_bytes
        return at_stake <= WASTE_START_BYTES + self._asked_bytes // WASTE_SHARE

    async def _fill(self, segment: Segment) -> None:
        try:
            if not segment.dropped:
                segment.content = await self._fetcher.fetch_ahead(self._file, segment.start, segment.end - segment.start)
        except FilesystemError as error:
            segment.error = error
        finally:
            segment.done.set()
            if segment.dropped:
                self._budget.freed(segment.end - segment.start)

    async def _assemble(self, segments: list[Segment], offset: int, end: int) -> Buffer:
        """The bytes from segments that hold the first of them, and the rest from the chunk servers."""
        at = segments[-1].end
        rest = await self._fetcher.fetch(self._file, at, end - at) if at < end else None
        for segment in segments:
            await segment.done.wait()
        parts: list[Buffer] = []
        for segment in segments:
            if segment.content is None or segment.stale:
                return await self._fetcher.fetch(self._file, offset, end - offset)
            first, last = max(offset, segment.start) - segment.start, min(end, segment.end) - segment.start
            whole = first == 0 and last == len(segment.content)
            parts.append(segment.content if whole else memoryview(segment.content)[first:last])
        if rest is not None:
            parts.append(rest)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _drop(self, stream: Stream, segment: Segment) -> None:
        """Nobody is going to ask for what is left of it."""
        stream.segments.remove(segment)
        segment.dropped = True
        self._wasted_bytes += segment.unread_bytes
        self._ahead_bytes -= segment.unread_bytes
        self._budget.hand_back(self, segment.end - segment.start)
        if segment.done.is_set():
            self._budget.freed(segment.end - segment.start)

    # -- forgetting --------------------------------------------------------------------------------------------------

    def forget(self, start: int, end: int) -> None:
        """Bytes [start, end) have changed: what has been fetched of them is not used any more."""
        for stream in self._streams:
            for segment in stream.segments[:]:
                if segment.overlap(start, end):
                    segment.stale = True
                    self._drop(stream, segment)

    def give_way(self) -> None:
        """Drop all that was read ahead: others need the memory."""
        for stream in self._streams:
            for segment in stream.segments[:]:
                self._drop(stream, segment)

    def close(self) -> None:
        """The handle is released."""
        self.give_way()
        self._file.readers.discard(self)
