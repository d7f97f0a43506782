"""Holds: chunks kept as they were for a job, whatever becomes of them in the filesystem.

A sealed chunk's bytes are in an object, which never changes and stays as long as its ref. So a hold is the pack that a chunk
was in, and where in it.
"""

from __future__ import annotations

import errno
import logging
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

import trio

from gridfs.chunk.chunk import Chunk, bad
from gridfs.chunk.chunks import LARGE_READ_BYTES, VERIFIED_S, Chunks
from gridfs.chunk.packs import PACK_MAX_CHUNKS, Pack
from gridfs.errors import FilesystemError
from gridfs.stream.endpoint import Answer, Methods, Peer
from gridfs.types import ChunkId

log = logging.getLogger(__name__)

WRITERS_WAIT_S = 5.0
"""Patience with those who write a chunk that is to be held."""
FORGOTTEN_S = 60.0
"""A hold of a job that nobody knows stays for so long: it may be of one that is just being submitted."""


@dataclass(slots=True)
class Held:
    """One chunk's bytes as they were; `pack` is None if there were none."""

    chunk_id: ChunkId
    pack: Pack | None
    start: int
    length: int
    checksum: int
    verified_s: float

    @property
    def view(self) -> memoryview:
        """The bytes: memory of the pack's object."""
        return memoryview(b"") if self.pack is None else self.pack.view[self.start : self.start + self.length]


@dataclass(slots=True, eq=False)
class _Hold:
    """What is held for one job, which is about one file, or has been taken for it by a call of `hold` that is under way."""

    ino: int
    asked_s: float
    """When the job's chunks were last asked to be held."""
    chunks: dict[int, Held] = field(default_factory=dict)


class Holds:
    """The holds of a chunk server, and the requests about them; lives in its trio thread.

    A hold does not end with a connection: whoever made it releases it, by the job's number, or does not name the job any more
    when it says which ones are to be kept. Its memory counts: a pack that holds alone keep is wasted, and so not free.
    """

    def __init__(self, chunks: Chunks) -> None:
        self._chunks = chunks
        self._jobs: dict[int, _Hold] = {}
        self._begun: set[_Hold] = set()
        """Those of calls that are under way."""
        self.methods: Methods = {"hold": self.hold, "release": self.release, "read_held": self.read_held}

    # -- requests ----------------------------------------------------------------------------------------------------

    async def hold(self, peer: Peer, job: int, ino: int, indices: list[int]) -> Answer:
        """Seal chunks of the file and keep them as they are now for the job; the result is [index, length] of each.

        Each is as it was at one moment during this call, with all that was written before. One that the job has already stays
        what it is. Raises ENOENT if one is not here, EBADMSG if one is bad, ENOSPC if one cannot be sealed, EAGAIN if one is
        being written and goes on so, and EINVAL if the job is about another file; then nothing is held that was not before.
        """
        known = self._known(job, ino)
        missing = [index for index in dict.fromkeys(indices) if index not in known]
        for index in missing:
            self._present(ChunkId(ino, index))
        begun = _Hold(ino, self._chunks.clock())
        self._begun.add(begun)
        try:
            await self._take_all(begun, missing)
            chunks = self._settle(job, begun)
        finally:
            self._begun.remove(begun)
            self._let_go(begun)  # of what is not settled
        return Answer([(index, chunks[index].length) for index in indices])

    async def release(self, peer: Peer, job: int) -> Answer:
        """Hold nothing for the job any more; one that is not known is no error."""
        self._release(job)
        return Answer()

    async def read_held(self, peer: Peer, job: int, index: int, offset: int, length: int) -> Answer:
        """The held bytes from `offset` on, at most `length`; fewer where they end.

        Raises ENOENT if the job does not hold the chunk, and EBADMSG if its bytes are not what they were: as with other reads,
        a large one or one of all compares them with their checksum, if that was not done lately.
        """
        hold = self._jobs.get(job)
        held = hold.chunks.get(index) if hold is not None else None
        if held is None:
            raise FilesystemError(errno.ENOENT, f"chunk {index} is not held for job {job}")
        if length > LARGE_READ_BYTES or (offset == 0 and length >= held.length):
            await self._verify(held)
        return Answer(None, (held.view[offset : offset + length],))

    # -- for this node's processes, and the scheduler ------------------------------------------------------------------

    def refs(self, job: int) -> list[tuple[int, Any, int, int]]:
        """(index, ref of an object, start, length) of each held chunk: its bytes are object[start : start + length].

        In the order of the file. A chunk without bytes has no object, and is left out.
        """
        hold = self._jobs.get(job)
        several = sorted(hold.chunks.items()) if hold is not None else []
        return [(index, held.pack.ref, held.start, held.length) for index, held in several if held.pack is not None]

    def keep(self, jobs: Iterable[int]) -> None:
        """Release what is held for other jobs than these, unless they asked in the last FORGOTTEN_S."""
        kept, since_s = frozenset(jobs), self._chunks.clock() - FORGOTTEN_S
        for job in [job for job, hold in self._jobs.items() if job not in kept and hold.asked_s < since_s]:
            log.info("job %d is known to nobody: its chunks are held no more", job)
            self._release(job)

    def check(self) -> list[str]:
        """The invariants that do not hold, one sentence each."""
        held = [one for hold in (*self._begun, *self._jobs.values()) for one in hold.chunks.values()]
        packs = Counter(one.pack for one in held if one.pack is not None)
        faults = [] if packs == self._chunks.packs.held else ["the holds of packs are not rightly counted"]
        return faults + [f"what is held of chunk {one.chunk_id} is not there" for one in held if len(one.view) != one.length]

    # -- taking and letting go -----------------------------------------------------------------------------------------

    def _known(self, job: int, ino: int) -> dict[int, Held]:
        """What the job holds, which must be of that file."""
        hold = self._jobs.get(job)
        if hold is None:
            return {}
        if hold.ino != ino:
            raise FilesystemError(errno.EINVAL, f"job {job} holds chunks of inode {hold.ino}, not of {ino}")
        return hold.chunks

    def _present(self, chunk_id: ChunkId) -> Chunk:
        """The chunk. Raises ENOENT and EBADMSG as `hold`."""
        chunk = self._chunks.find(chunk_id)
        if chunk is None:
            raise FilesystemError(errno.ENOENT, f"chunk {chunk_id} is not here")
        if chunk.bad:
            raise bad(chunk_id)
        return chunk

    async def _take_all(self, begun: _Hold, indices: Iterable[int]) -> None:
        """Take those chunks. First all that are open are sealed together; then, one by one, those that were written meanwhile.

        In steps, since a file may have very many: others are served between them.
        """
        remaining = iter(indices)
        while step := list(islice(remaining, PACK_MAX_CHUNKS)):
            chunk_ids = [ChunkId(begun.ino, index) for index in step]
            await trio.lowlevel.checkpoint()
            await self._seal([chunk_id for chunk_id in chunk_ids if not self._chunks.is_sealed(chunk_id)])
            written = [chunk_id for chunk_id in chunk_ids if not self._take(begun, chunk_id)]
            for chunk_id in written:
                await self._take_from_writers(begun, chunk_id)

    async def _take_from_writers(self, begun: _Hold, chunk_id: ChunkId) -> None:
        """Take a chunk that is being written: its writers are kept away while it is sealed."""
        with trio.move_on_after(WRITERS_WAIT_S):
            async with self._chunks.locked(chunk_id):
                await self._seal([chunk_id])
                if self._take(begun, chunk_id):
                    return
        raise FilesystemError(errno.EAGAIN, f"chunk {chunk_id} is being written")

    async def _seal(self, chunk_ids: list[ChunkId]) -> None:
        if chunk_ids and not await self._chunks.seal_together(chunk_ids):
            raise FilesystemError(errno.ENOSPC, "no memory for chunks that are to be held")

    def _take(self, begun: _Hold, chunk_id: ChunkId) -> bool:
        """Hold the chunk as it is at this moment, if it is all at rest. Raises ENOENT and EBADMSG as `hold`."""
        chunk = self._present(chunk_id)
        if chunk.length and not chunk.is_sealed:
            return False
        if chunk.pack is not None:
            self._chunks.packs.hold(chunk.pack)
        held = Held(chunk_id, chunk.pack, chunk.start, chunk.length, chunk.checksum, chunk.verified_s)
        begun.chunks[chunk_id.index] = held
        return True

    def _settle(self, job: int, begun: _Hold) -> dict[int, Held]:
        """Have for the job what was taken, but for what another call has taken for it meanwhile; returns all that it holds."""
        known = self._known(job, begun.ino)
        hold = self._jobs.setdefault(job, _Hold(begun.ino, begun.asked_s))
        hold.asked_s = self._chunks.clock()
        for index in begun.chunks.keys() - known.keys():
            hold.chunks[index] = begun.chunks.pop(index)
        return hold.chunks

    def _release(self, job: int) -> None:
        hold = self._jobs.pop(job, None)
        if hold is not None:
            self._let_go(hold)

    def _let_go(self, hold: _Hold) -> None:
        for held in hold.chunks.values():
            if held.pack is not None:
                self._chunks.packs.let_go(held.pack)

    async def _verify(self, held: Held) -> None:
        if held.pack is None or self._chunks.clock() - held.verified_s <= VERIFIED_S:
            return
        if await self._chunks.hash(held.view) != held.checksum:
            log.error("what is held of chunk %d/%d is bad: its bytes do not fit their checksum", *held.chunk_id)
            raise bad(held.chunk_id)
        held.verified_s = self._chunks.clock()
