"""The bytes of a job's input, as the chunk servers hold them: seen in place on this node, fetched from others."""

from __future__ import annotations

import logging
import math
import mmap
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import ray
import trio

from gridfs import cluster
from gridfs.buffers import allocate
from gridfs.chunk.client import FETCH, PATIENCE_S
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload.gateway import Gateway
from gridfs.offload.job import Input, Job

log = logging.getLogger(__name__)

PIECE_BYTES = 2 * MIB
"""What is fetched at a time."""
AHEAD_PIECES = 3
"""Fetched and not yet taken. With the piece that is being fetched and the one in use, a source takes 10 MiB of memory."""
HELD_TIMEOUT_S = 10.0
ENDED = "the job was ended"
_ZEROS = memoryview(bytes(CHUNK_SIZE_BYTES))
"""Which take no memory before somebody writes them, and nobody does."""
_COUNTS = struct.Struct("=QQQ")


class BytesLostError(GridfsError):
    """No server has a part of the input any more, or none can be reached."""


class Part(NamedTuple):
    """One chunk of the input: here (`view`), elsewhere (`servers`), or a hole."""

    index: int  # type: ignore[assignment]  # as in ChunkId
    length: int
    view: memoryview | None
    servers: Sequence[str]

    @property
    def is_remote(self) -> bool:
        """True if its bytes have to be fetched."""
        return self.view is None and bool(self.servers)

    def pieces(self) -> Iterator[tuple[int, int]]:
        """(offset, length) of what is fetched at a time."""
        for offset in range(0, self.length, PIECE_BYTES):
            yield offset, min(PIECE_BYTES, self.length - offset)

    def content(self) -> memoryview:
        """Of what is not remote: its bytes, not copied unless the file is longer than the chunk is here: zeros follow there."""
        if self.view is None:
            return _ZEROS[: self.length]
        if len(self.view) < self.length:
            return memoryview(bytes(self.view).ljust(self.length, b"\0"))
        return self.view[: self.length]


def parts(input_: Input, first: int, end: int, held: Mapping[int, memoryview]) -> list[Part]:
    """The chunks [first, end) of the input, `held` being what this node has of it."""
    return [Part(index, input_.length(index), held.get(index), input_.chunks.get(index, ())) for index in range(first, end)]


def held_here(host: str, job: int) -> dict[int, memoryview]:
    """Chunk index -> the bytes that this host's chunk server holds of the job's input, in the object store's own memory.

    Empty when it does not say: all can be fetched from it as from any other. The views pin their objects.
    """
    try:
        server = cluster.find(cluster.chunk_server_name(host), HELD_TIMEOUT_S)
        rows = cluster.call(server, "held", job, timeout_s=HELD_TIMEOUT_S) if server else []
        objects = ray.get([ref for _, ref, _, _ in rows], timeout=HELD_TIMEOUT_S)
    except (GridfsError, FilesystemError, ray.exceptions.RayError) as error:
        log.warning("job %d: what is held on this node has to be fetched: %s", job, error)
        return {}
    return {
        index: memoryview(content).cast("B")[start : start + length].toreadonly()
        for (index, _, start, length), content in zip(rows, objects, strict=True)
    }


class Counts:
    """How many bytes were taken in, in memory that a forked child shares. One process adds, any may read."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, mmap.PAGESIZE)

    def add(self, taken: int, local: int, network: int) -> None:
        """So many more bytes, holes included; of them so many from this node, and so many from others."""
        before = self.read()
        _COUNTS.pack_into(self._memory, 0, before[0] + taken, before[1] + local, before[2] + network)

    def read(self) -> tuple[int, int, int]:
        """(taken, local, network) so far; of a moment when they are not being added to, once the child has ended."""
        taken, local, network = _COUNTS.unpack_from(self._memory)
        return taken, local, network


class Fetch:
    """The pieces of all remote parts, in order, fetched a little ahead by a task in the gateway's thread.

    `take` is for one thread at a time, `stop` for any.
    """

    def __init__(self, gateway: Gateway, job: int, remote: Sequence[Part]) -> None:
        self._gateway, self._job, self._remote = gateway, job, remote
        self._scope = trio.CancelScope()
        self._failure: BytesLostError | None = None
        self._pieces_in, self._pieces_out = trio.open_memory_channel[memoryview](AHEAD_PIECES)
        self._started = False
        self._slow: set[str] = set()

    def take(self) -> memoryview:
        """The next piece; the caller's to keep. Raises BytesLostError, also once it was stopped."""
        return self._gateway.call(self._take)

    def stop(self) -> None:
        """Fetch no more; whoever waits for a piece hears of it."""
        self._gateway.call_now(self._scope.cancel)

    async def _take(self) -> memoryview:
        if not self._started:
            self._started = True
            self._gateway.nursery.start_soon(self._fetch_all)
        try:
            return await self._pieces_out.receive()
        except trio.EndOfChannel:
            raise self._failure or BytesLostError(ENDED) from None

    async def _fetch_all(self) -> None:
        with self._scope, self._pieces_in:
            try:
                for part in self._remote:
                    for offset, length in part.pieces():
                        await self._pieces_in.send(await self._fetch(part, offset, length))
            except BytesLostError as error:
                self._failure = error
            except Exception as error:  # the gateway goes on, for other jobs
                log.exception("job %d: the input could not be fetched", self._job)
                self._failure = BytesLostError(f"the input cannot be fetched: {error!r}")

    async def _fetch(self, part: Part, offset: int, length: int) -> memoryview:
        """From the first server that answers; each gets a buffer of its own, as the bytes of a late one may still come."""
        chunks, failure = self._gateway.chunks, "no server has it"
        for server, patience_s in self._candidates(part.servers):
            buffer = memoryview(allocate(length))
            try:
                with trio.fail_after(patience_s):
                    arguments = (self._job, part.index, offset, length)
                    reply = await chunks.link(server).call(FETCH, "read_held", *arguments, into=buffer)
            except trio.TooSlowError:
                self._slow.add(server)
                failure = f"{server} does not answer"
            except FilesystemError as error:
                failure = str(error.strerror)
            else:
                buffer[reply.payload_bytes :] = bytes(length - reply.payload_bytes)
                return buffer
        raise BytesLostError(f"chunk {part.index} of the input is lost: {failure}")

    def _candidates(self, servers: Sequence[str]) -> list[tuple[str, float]]:
        """Whom to ask, and for how long before the next is asked; those that were slow last, as they may just be busy."""
        living = sorted(filter(self._gateway.chunks.is_alive, servers), key=self._slow.__contains__)
        return [(server, PATIENCE_S) for server in living[:-1]] + [(server, math.inf) for server in living[-1:]]


class Source:
    """The bytes of some runs of chunks, in order and once, for one reader: a thread here (`run`), or a forked child.

    The child sees by itself what is here (`run_in_child`), and has `fetched` as its standard input. `counts` tell how far the
    reader is.
    """

    def __init__(self, gateway: Gateway, job: Job, runs: Sequence[tuple[int, int]], held: Mapping[int, memoryview]) -> None:
        """`runs` are ranges of chunk indices, the end not included; `held` is what this node has."""
        self._runs = [parts(job.input, first, end, held) for first, end in runs]
        self._remote = [part for run in self._runs for part in run if part.is_remote]
        self._fetch = Fetch(gateway, job.id, self._remote)
        self._buffer = memoryview(b"")
        self._is_stopped = False
        self.counts = Counts()

    @property
    def is_here(self) -> bool:
        """True if nothing has to be fetched."""
        return not self._remote

    def run(self, number: int) -> Iterator[memoryview]:
        """The bytes of that run, each piece valid until the next is asked for; to be exhausted before the next run.

        Raises BytesLostError.
        """
        for part in self._runs[number]:
            for _, length in part.pieces() if part.is_remote else [(0, part.length)]:
                piece = self._fetch.take() if part.is_remote else part.content()
                if self._is_stopped:
                    raise BytesLostError(ENDED)
                self._count(part, length)
                yield piece

    def run_in_child(self, number: int) -> Iterator[memoryview]:
        """As `run`, in a child that was forked since, and is given what `fetched` yields. A piece is a chunk of the file."""
        for part in self._runs[number]:
            piece = self._received(part.length) if part.is_remote else part.content()
            self._count(part, part.length)
            yield piece

    def fetched(self) -> Iterator[memoryview]:
        """The bytes of all runs that are not here. Raises BytesLostError."""
        for part in self._remote:
            for _ in part.pieces():
                yield self._fetch.take()

    def stop(self) -> None:
        """Fetch no more, and end whoever waits for a piece; any thread may call it, also when nothing has begun."""
        self._is_stopped = True
        self._fetch.stop()

    def _count(self, part: Part, length: int) -> None:
        self.counts.add(length, length if part.view is not None else 0, length if part.is_remote else 0)

    def _received(self, length: int) -> memoryview:
        """In the child: the next bytes of standard input. They stay until this is called again."""
        if not self._buffer:
            self._buffer = memoryview(bytearray(CHUNK_SIZE_BYTES))
        filled = 0
        while filled < length:
            count = os.readv(0, [self._buffer[filled:length]])
            if not count:
                raise BytesLostError("the input's bytes stopped coming")
            filled += count
        return self._buffer[:length]
