"""One chunk of a server, open, sealed or bad."""

from __future__ import annotations

import errno
import math
from contextlib import AbstractAsyncContextManager
from typing import Any, Literal, NamedTuple

import trio

from gridfs.chunk.packs import Pack
from gridfs.chunk.patch import Patch
from gridfs.chunk.pool import Buffer
from gridfs.errors import FilesystemError
from gridfs.stream.lock import Promptly
from gridfs.types import ChunkId

State = Literal["good", "bad", "open", "missing"]
"""What verifying a chunk can find; "open" says that there is no checksum of all of its bytes yet."""


class Chunk:
    """One chunk. Open: `buffer` holds its bytes [0, length). Sealed: `pack` does, from `start` on. Bad: they are lost.

    Patched: sealed, and `patch` lies over the bytes that `pack` holds. This is open too: not all of it is at rest.

    `version` counts the writes but those to the patch; `writers` are receiving into the buffer just now, so it must stay where
    it is. A bad chunk has a buffer only while all of it is written anew. `lock` is there while somebody holds or awaits it.
    """

    __slots__ = (
        *("bad", "buffer", "checksum", "dropped", "length", "lock", "pack", "patch"),
        *("start", "verified_s", "version", "writers", "written_s"),
    )

    def __init__(self) -> None:
        self.length = 0
        self.buffer: Buffer | None = None
        self.pack: Pack | None = None
        self.patch: Patch | None = None
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
    def is_sealed(self) -> bool:
        """True if all of it is at rest in an object."""
        return self.pack is not None and self.patch is None

    def pieces(self, offset: int, end: int) -> list[memoryview]:
        """Its bytes [offset, end), in order, if it has them."""
        if self.buffer is not None:
            return [self.buffer.view[offset:end]]
        view = self.view
        if view is None:
            return []
        return [view[offset:end]] if self.patch is None else self.patch.pieces(view, offset, end)

    @property
    def ref(self) -> Any:
        """The ref of the object that the sealed bytes are in."""
        return None if self.pack is None else self.pack.ref

    def locked(self) -> AbstractAsyncContextManager[None]:
        """Hold the lock."""
        return _Locked(self)


class _Locked(Promptly):
    """What `Chunk.locked` gives. Every write takes it: a generator in its place would cost as much as the lock."""

    __slots__ = ("_chunk",)

    def __init__(self, chunk: Chunk) -> None:
        chunk.lock = chunk.lock or trio.Lock()
        super().__init__(chunk.lock)
        self._chunk = chunk

    async def __aenter__(self) -> None:
        try:
            await super().__aenter__()
        except BaseException:
            self._let_go()
            raise

    async def __aexit__(self, *_: object) -> None:
        await super().__aexit__()
        self._let_go()

    def _let_go(self) -> None:
        if self._chunk.lock is self._lock and not self._lock.locked():
            self._chunk.lock = None


class Member(NamedTuple):
    """A chunk that is to be copied into a pack, as it was when the copy began."""

    chunk_id: ChunkId
    chunk: Chunk
    version: int
    buffer: Buffer | None
    pack: Pack | None
    patch: Patch | None

    @property
    def is_unchanged(self) -> bool:
        """True if the copy is what the chunk holds now, but for what was patched meanwhile."""
        now = self.chunk
        return now.version == self.version and not now.writers and now.buffer is self.buffer and now.pack is self.pack


def bad(chunk_id: ChunkId) -> FilesystemError:
    """What whoever asks for bytes of a bad chunk is told."""
    return FilesystemError(errno.EBADMSG, f"chunk {chunk_id} is bad")
