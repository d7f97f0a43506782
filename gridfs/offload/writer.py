"""The output of a job: a new file in the filesystem, which nobody sees under its name before it is complete."""

from __future__ import annotations

import errno
import logging
import stat
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import NamedTuple

import trio

from gridfs.buffers import Buffer, allocate
from gridfs.chunk.client import NodeLink
from gridfs.chunk.grants import Grants
from gridfs.chunk.layout import pick
from gridfs.config import CHUNK_SIZE_BYTES, NAME_MAX_BYTES
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.meta.directory import Servers
from gridfs.meta.inode import Inode
from gridfs.meta.table import RENAME_NOREPLACE
from gridfs.meta.xattrs import replicas
from gridfs.offload.gateway import Gateway
from gridfs.offload.job import Job, Output
from gridfs.types import ChunkId, PlacementNode

log = logging.getLogger(__name__)

CHUNKS_AT_ONCE = 2
"""On their way to chunk servers; with the one that is being filled, a file that is written takes three chunks of memory."""
SETTLE_S = 0.5
"""So long a file that is given up waits for what is on its way: a chunk that arrived after its file went would be nobody's."""
REMOVE_S = 5.0


def partial_name(name: bytes, job: int, attempt: int) -> bytes:
    """What an output is called until it is complete: another name for each attempt, so that none renames another's file."""
    suffix = b".job-%d-%d" % (job, attempt)
    return b"." + name[: NAME_MAX_BYTES - 1 - len(suffix)] + suffix


class Room(NamedTuple):
    """A chunk server that takes a chunk, and the grant of which the space has been taken."""

    link: NodeLink
    grants: Grants


class OutputFile:
    """One file that is written from its beginning to its end, by one thread at a time; `abort` may come from any.

    Each full chunk goes to the gateway's thread, where CHUNKS_AT_ONCE tasks (`_serve`) place and write them; `write` waits
    while they are busy, and raises what one of them has met. The inode table hears of a chunk's place and of the size it makes
    before the bytes are sent: a mount that attaches meanwhile cuts what the size does not cover.
    """

    def __init__(self, gateway: Gateway, job: Job, output: Output, attempt: int, server: str) -> None:
        """`server` is the chunk server of this node: it gets the chunks, and others when it is full."""
        self._gateway, self._job, self._output, self._own = gateway, job, output, server
        self._name, self._attempt = partial_name(output.name, job.id, attempt), attempt
        self._buffer, self._filled, self._index = memoryview(b""), 0, 0
        self.size = 0
        """How many bytes have been taken."""
        self._ino, self._wanted = 0, 1
        self._failure: BaseException | None = None
        self._aborted = False
        self._scope = trio.CancelScope()
        self._ended, self._removed = trio.Event(), trio.Event()
        self._chunks_in: trio.MemorySendChannel[tuple[int, memoryview]]

    # -- the writing thread ------------------------------------------------------------------------------------------

    def open(self) -> None:
        """Make the file under its partial name. Raises FilesystemError; then nothing is left."""
        self._gateway.call(self._open)

    def write(self, piece: Buffer) -> None:
        """Append bytes, which are copied. Raises FilesystemError: then, or later, for what was taken before."""
        rest = memoryview(piece).cast("B")
        while rest:
            if not self._filled:
                self._buffer = memoryview(allocate(CHUNK_SIZE_BYTES))
            count = min(len(rest), CHUNK_SIZE_BYTES - self._filled)
            self._buffer[self._filled : self._filled + count] = rest[:count]
            self._filled += count
            self.size += count
            rest = rest[count:]
            if self._filled == CHUNK_SIZE_BYTES:
                self._send()

    def commit(self) -> int:
        """Give the complete file its name; returns its size. Raises FilesystemError, EEXIST if the name is taken."""
        if self._filled:
            self._send()
        self._gateway.call(self._commit)
        return self.size

    def abort(self) -> None:
        """Remove what there is of the file, within a few seconds at most, mostly at once. Never raises; not after `commit`."""
        self._gateway.call(self._abort)

    def _send(self) -> None:
        content, self._buffer, self._filled = self._buffer[: self._filled], memoryview(b""), 0
        self._gateway.call(self._put, self._index, content)
        self._index += 1

    # -- in the gateway's thread -------------------------------------------------------------------------------------

    async def _open(self) -> None:
        with suppress(ConnectionLost, FilesystemError):
            await self._gateway.refresh_placement()
        await self._make()
        if self._aborted:
            await sweep(self._gateway, self._job, self._attempt)
            raise _given_up()
        self._chunks_in, chunks_out = trio.open_memory_channel[tuple[int, memoryview]](0)
        self._gateway.nursery.start_soon(self._serve, chunks_out)

    async def _make(self) -> None:
        """Whatever an earlier attempt has left goes first, and so does this one's when a reply was lost."""
        mode, uid, gid = stat.S_IFREG | self._output.mode, self._job.submitter.uid, self._job.submitter.gid
        while True:
            await sweep(self._gateway, self._job, self._attempt)
            try:
                packed = await self._gateway.execute(
                    ("make", time.time_ns(), 0, self._output.parent, self._name, mode, uid, gid)
                )
            except ConnectionLost:
                continue  # `sweep` gives up when nobody answers
            inode = Inode(packed)
            self._ino, self._wanted = inode.ino, replicas(inode) or 1
            return

    async def _put(self, index: int, content: memoryview) -> None:
        try:
            await self._chunks_in.send((index, content))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            await self._ended.wait()
            raise self._failure or _given_up() from None

    async def _serve(self, chunks_out: trio.MemoryReceiveChannel[tuple[int, memoryview]]) -> None:
        try:
            with self._scope:
                async with chunks_out, trio.open_nursery() as nursery:
                    for _ in range(CHUNKS_AT_ONCE):
                        nursery.start_soon(self._write_chunks, chunks_out)
        except* FilesystemError as errors:
            self._failure = _first(errors)
        except* Exception as errors:
            log.exception("job %d: the output could not be written", self._job.id)
            self._failure = FilesystemError(errno.EIO, f"the output could not be written: {_first(errors)!r}")
        finally:
            self._ended.set()

    async def _write_chunks(self, chunks_out: trio.MemoryReceiveChannel[tuple[int, memoryview]]) -> None:
        async for index, content in chunks_out:
            await self._write_chunk(index, content)

    async def _commit(self) -> None:
        await self._chunks_in.aclose()
        await self._ended.wait()
        if self._failure or self._aborted:
            raise self._failure or _given_up()
        output = self._output
        flags = 0 if output.overwrite else RENAME_NOREPLACE
        op = ("rename", time.time_ns(), output.parent, self._name, output.parent, output.name, flags)
        try:
            await self._gateway.execute(op)
        except ConnectionLost:
            await self._rename_again(op)

    async def _rename_again(self, op: tuple[object, ...]) -> None:
        """Nobody knows whether the file has its name: it has, if the partial one is gone and the file is not."""
        try:
            await self._gateway.repeat(op)
        except FilesystemError as error:
            if error.errno != errno.ENOENT or not await self._links():
                raise

    async def _links(self) -> int:
        """How many names the file has: an op that changes nothing tells."""
        try:
            return Inode(await self._gateway.repeat(("extend", None, self._ino, 0))).nlink
        except FilesystemError as error:
            if error.errno == errno.ENOENT:
                return 0
            raise

    async def _abort(self) -> None:
        if self._aborted:
            await self._removed.wait()
            return
        self._aborted = True
        try:
            if self._ino:
                await self._remove()
        finally:
            self._removed.set()

    async def _remove(self) -> None:
        self._chunks_in.close()
        with trio.move_on_after(SETTLE_S):
            await self._ended.wait()
        self._scope.cancel()
        await self._ended.wait()
        with trio.move_on_after(REMOVE_S) as limit:
            await sweep(self._gateway, self._job, self._attempt)
        if limit.cancelled_caught:
            log.warning("job %d: %r stays, as the inode table does not answer", self._job.id, self._name)

    # -- chunks ------------------------------------------------------------------------------------------------------

    async def _write_chunk(self, index: int, content: memoryview) -> None:
        """Have the chunk where it is to be, on as many servers as the file wants. Raises FilesystemError.

        A copy that fails is withdrawn, and a mount makes another; without the first server, which passes bytes on, all of it is
        written again.
        """
        chunk_id, end, failed, held = ChunkId(self._ino, index), index * CHUNK_SIZE_BYTES + len(content), set[str](), Servers()
        while True:
            rooms = await self._find_room(chunk_id, len(content), failed)
            chosen, links = tuple(room.link.node.server for room in rooms), [room.link for room in rooms]
            with _back_if_it_raises(rooms, len(content)):
                await self._place(chunk_id, held, chosen)
                await self._gateway.repeat(("extend", time.time_ns(), chunk_id.ino, end))
                reply = self._gateway.chunks.write(links, chunk_id, 0, content, len(content))
            try:
                refused = {(host, port) for host, port, _ in await reply.wait()}
                lacking = {link.node.server for link in links if link.node.address in refused}
            except (ConnectionLost, FilesystemError) as error:
                log.warning("job %d: chunk %d/%d goes elsewhere: %s", self._job.id, *chunk_id, error)
                lacking = {chosen[0]}
            left = tuple(server for server in chosen if server not in lacking)
            if lacking and left:
                await self._place(chunk_id, chosen, left)
            for server in lacking:
                self._gateway.chunks.drop_soon(server, chunk_id)
            if chosen[0] not in lacking:
                return
            failed |= lacking
            held = left or chosen

    async def _place(self, chunk_id: ChunkId, held: Servers, chosen: Sequence[str]) -> None:
        """Tell the inode table where the chunk is to be. Raises EIO when somebody else writes to the file."""
        op = ("replace", *chunk_id, held, chosen) if held else ("place", *chunk_id, chosen)
        if tuple(await self._gateway.repeat(op)) != tuple(chosen):
            raise FilesystemError(errno.EIO, "somebody else has written to the output before it was complete")

    async def _find_room(self, chunk_id: ChunkId, length: int, failed: Collection[str]) -> list[Room]:
        """Take space for the chunk at the servers that are to hold it. Raises ENOSPC."""
        since_s = trio.current_time()
        while True:
            rooms, done = list[Room](), False
            try:
                done = await self._look_for_room(chunk_id, length, failed, rooms)
                if done:
                    return rooms
            finally:
                if not done:
                    _put_back(rooms, length)
            if not await self._gateway.chunks.more_space(since_s, removing=False):
                raise FilesystemError(errno.ENOSPC, "no node has room for the output")

    async def _look_for_room(self, chunk_id: ChunkId, length: int, failed: Collection[str], rooms: list[Room]) -> bool:
        """Take space where there is some; True if it is enough. There are fewer copies only where fewer nodes are reached."""
        nodes, reachable = self._candidates(chunk_id), 0
        for node in nodes:
            if node.server in failed or len(rooms) == self._wanted:
                continue
            try:
                link = self._gateway.chunks.link(node.server)
                room = Room(link, await link.granted())
                if await link.take(length):
                    rooms.append(room)
                reachable += 1
            except FilesystemError as error:
                log.warning("job %d: the output goes elsewhere: %s", self._job.id, error.strerror)
        return len(rooms) == max(1, min(self._wanted, reachable))

    def _candidates(self, chunk_id: ChunkId) -> list[PlacementNode]:
        """Who may take the chunk, this node first: the bytes are here."""
        placement = self._gateway.placement
        nodes = pick(placement, *chunk_id, len(placement.nodes))
        return sorted(nodes, key=lambda node: node.server != self._own)


async def sweep(gateway: Gateway, job: Job, attempt: int) -> None:
    """Remove what the job's attempts, up to this one, have left of its output. Raises FilesystemError if it cannot be."""
    if job.output is None:
        return
    for number in range(1, attempt + 1):
        try:
            await gateway.repeat(("unlink", time.time_ns(), job.output.parent, partial_name(job.output.name, job.id, number)))
        except FilesystemError as error:
            if error.errno != errno.ENOENT:
                raise


@contextmanager
def _back_if_it_raises(rooms: Sequence[Room], length: int) -> Iterator[None]:
    try:
        yield
    except BaseException:
        _put_back(rooms, length)
        raise


def _put_back(rooms: Sequence[Room], length: int) -> None:
    for room in rooms:
        room.grants.put_back(length)


def _given_up() -> FilesystemError:
    return FilesystemError(errno.ECANCELED, "the output was given up")


def _first(error: BaseException) -> BaseException:
    """What a group, or a group of groups, is about."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    return error
