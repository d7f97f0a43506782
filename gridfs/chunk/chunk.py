"""One chunk of a server, open, sealed or bad."""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Literal, NamedTuple

import trio

from gridfs.chunk.packs import Pack
from gridfs.chunk.pool import Buffer
from gridfs.errors import FilesystemError
from gridfs.types import ChunkId

State = Literal["good", "bad", "open", "missing"]
"""What verifying a chunk can find; "open" says that there is no checksum yet."""


class Chunk:
    """One chunk. Open: `buffer` holds its bytes [0, length). Sealed: `pack` does, from `start` on. Bad: they are lost.

    `version` counts the writes; `writers` are receiving into the buffer just now, so it must stay where it is. A bad chunk has
    a buffer only while all of it is written anew. `lock` is there while somebody holds or awaits it.
    """

    __slots__ = (
        *("bad", "buffer", "checksum", "dropped", "length", "lock", "pack"),
        *("start", "verified_s", "version", "writers", "written_s"),
    )

    def __init__(self) -> None:
        self.length = 0
        self.buffer: Buffer | None = None
        self.pack: Pack | None = None
        self.start = 0
        self.checksum = 0
        """xxh3 of the bytes, while sealed."""
        self.verified_s = -math.inf
        """When the sealed bytes were last found to fit their checksum."""
        self.version = 0
        self.writers = 0
        self.written_s = 0.0
        self.bad = False
        self.dropped = False
        self.lock: trio.Lock | None = None

    @property
    def view(self) -> memoryview | None:
        """The sealed bytes: memory of the pack's object, which stays as long as the view does."""
        return None if self.pack is None else self.pack.view[self.start : self.start + self.length]

    @property
    def ref(self) -> Any:
        """The ref of the object that the sealed bytes are in."""
        return None if self.pack is None else self.pack.ref

    @asynccontextmanager
    async def locked(self) -> AsyncIterator[None]:
        """Hold the lock."""
        lock = self.lock = self.lock or trio.Lock()
        try:
            async with lock:
                yield
        finally:
            if self.lock is lock and not lock.locked():
                self.lock = None


class Member(NamedTuple):
    """A chunk that is to be copied into a pack, as it was when the copy began."""

    chunk_id: ChunkId
    chunk: Chunk
    version: int
    buffer: Buffer | None
    pack: Pack | None

    @property
    def content(self) -> memoryview:
        """Its bytes, open or sealed."""
        view = self.buffer.view[: self.chunk.length] if self.buffer is not None else self.chunk.view
        assert view is not None
        return view

    @property
    def is_unchanged(self) -> bool:
        """True if the copy is what the chunk holds now."""
        now = self.chunk
        return now.version == self.version and not now.writers and now.buffer is self.buffer and now.pack is self.pack


def bad(chunk_id: ChunkId) -> FilesystemError:
    """What whoever asks for bytes of a bad chunk is told."""
    return FilesystemError(errno.EBADMSG, f"chunk {chunk_id} is bad")
