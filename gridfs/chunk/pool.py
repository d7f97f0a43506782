"""Recycled memory for chunks that are being written."""

from __future__ import annotations

import mmap
from collections import defaultdict

from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB

_SIZES_BYTES = (16 * KIB, 128 * KIB, MIB, CHUNK_SIZE_BYTES)
_LARGE_WRITE_BYTES = 512 * KIB
"""A chunk that gets this much in one piece is probably going to be full: it starts with a full buffer, and never grows."""


class Buffer:
    """Memory of one open chunk; its content is undefined until written.

    `pins` counts the sends under way from it; a buffer that is given back meanwhile is recycled after the last of them.
    """

    __slots__ = ("pins", "retired", "view")

    def __init__(self, size_bytes: int) -> None:
        self.view = memoryview(mmap.mmap(-1, size_bytes))
        self.pins = 0
        self.retired = False

    def __len__(self) -> int:
        return len(self.view)


class BufferPool:
    """Hands out buffers up to a limit and keeps what comes back. All in one thread; nothing awaits."""

    def __init__(self, limit_bytes: int, keep_bytes: int) -> None:
        """At most `limit_bytes` are lent at a time, and at most `keep_bytes` are kept when they come back."""
        self.limit_bytes, self._keep_bytes = limit_bytes, keep_bytes
        self.lent_bytes = self._kept_bytes = 0
        self._kept: dict[int, list[Buffer]] = defaultdict(list)

    @staticmethod
    def size_for(length: int, piece_bytes: int) -> int:
        """The size of buffer for a chunk that gets `length` bytes long by a write of `piece_bytes`."""
        if piece_bytes >= _LARGE_WRITE_BYTES:
            return CHUNK_SIZE_BYTES
        return next(size for size in _SIZES_BYTES if size >= length)

    def lend(self, size_bytes: int) -> Buffer | None:
        """A buffer of one of the pool's sizes; None while that would pass the limit."""
        if self.lent_bytes + size_bytes > self.limit_bytes:
            return None
        self.lent_bytes += size_bytes
        kept = self._kept[size_bytes]
        if not kept:
            return Buffer(size_bytes)
        self._kept_bytes -= size_bytes
        buffer = kept.pop()
        buffer.retired = False
        return buffer

    def give_back(self, buffer: Buffer) -> None:
        """The chunk needs it no more; it is lent again once its last pin is gone."""
        buffer.retired = True
        if not buffer.pins:
            self._recycle(buffer)

    def unpin(self, buffer: Buffer) -> None:
        """A send from it has ended."""
        buffer.pins -= 1
        if buffer.retired and not buffer.pins:
            self._recycle(buffer)

    def _recycle(self, buffer: Buffer) -> None:
        self.lent_bytes -= len(buffer)
        if self._kept_bytes + len(buffer) <= self._keep_bytes:
            self._kept_bytes += len(buffer)
            self._kept[len(buffer)].append(buffer)
