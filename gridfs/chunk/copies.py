"""The other copies of a server's chunks: every write goes on to them, and a new copy is made of what is here."""

from __future__ import annotations

import errno
from collections import defaultdict
from collections.abc import Iterable
from typing import NamedTuple

from gridfs.buffers import Buffer
from gridfs.chunk.chunks import Chunks
from gridfs.chunk.forwarder import Forwarder
from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.stream.connection import Reply
from gridfs.stream.endpoint import Answer
from gridfs.types import Address, ChunkId


class Author(NamedTuple):
    """Whose write it is: the session's client and its epoch, 0 for one that has no session."""

    client: str
    epoch: int


class Copies:
    """Owned by the chunk server's trio thread.

    A write is sent on while its chunk's lock is held, so copies get the writes of a chunk in the order in which they were made
    here. `_followers` are copies in the making: they get every write from the moment on at which they were sent the chunk, also
    from clients who have not heard of them.
    """

    def __init__(self, chunks: Chunks, forwarder: Forwarder) -> None:
        self._chunks, self._forwarder = chunks, forwarder
        self._followers: dict[ChunkId, set[Address]] = defaultdict(set)

    def of(self, chunk_id: ChunkId, named: Iterable[tuple[str, int]]) -> list[Address]:
        """Where the chunk's other copies are: those that a client has named, and those in the making."""
        copies = dict.fromkeys(Address(*address) for address in named)
        return [*copies, *(self._followers.get(chunk_id, set()) - copies.keys())]

    async def send_on(
        self, chunk_id: ChunkId, copies: list[Address], offset: int, charge_bytes: int, author: Author, view: memoryview
    ) -> Answer:
        """Send bytes of the chunk that have just been written; its lock is held. The answer comes when each copy has them.

        Its result is [host, port, reason] of each copy that has not.
        """
        release = self._chunks.pin(chunk_id)
        replies = [
            await self._submit(address, "write", *chunk_id, offset, charge_bytes, author, payload=view) for address in copies
        ]

        async def once_they_have_them() -> Answer:
            try:
                failed = [failure for reply in replies if (failure := await _failure(*reply)) is not None]
            finally:
                release()
            for host, port, _ in failed:
                self.unfollow(chunk_id, Address(host, port))
            return Answer(failed)

        return Answer(later=once_they_have_them)

    async def make(self, chunk_id: ChunkId, address: Address, author: Author) -> None:
        """Send the whole chunk to the server at `address`, and every later write until `unfollow`.

        Raises ENOENT if the chunk is not here, EBADMSG if its bytes are not what they were, and EIO if they did not arrive.
        """
        await self._chunks.verify(chunk_id)  # a chunk that is found bad cannot be read any more
        async with self._chunks.locked(chunk_id) as chunk:
            view, sent = self._chunks.read(chunk_id, 0, chunk.length)
            reply = await self._submit(address, "put", *chunk_id, author, payload=view)
            self._followers[chunk_id].add(address)
        try:
            failure = await _failure(*reply)
        finally:
            if sent is not None:
                sent()
        if failure is not None:
            self.unfollow(chunk_id, address)
            raise FilesystemError(errno.EIO, f"the copy at {address.host}:{address.port} was not made: {failure[2]}")

    def unfollow(self, chunk_id: ChunkId, address: Address) -> None:
        """The copy is not in the making any more: every client knows of it, or it will not be one."""
        followers = self._followers.get(chunk_id, set())
        followers.discard(address)
        if not followers:
            self._followers.pop(chunk_id, None)

    async def _submit(self, address: Address, method: str, *arguments: object, payload: Buffer) -> tuple[Address, Reply | None]:
        """What is to be waited for; None when the server cannot be reached."""
        try:
            return address, await self._forwarder.submit(address, method, *arguments, payload=payload)
        except (AuthenticationFailed, ConnectionLost, FilesystemError):
            return address, None


async def _failure(address: Address, reply: Reply | None) -> tuple[str, int, str] | None:
    """Wait for the reply: (host, port, reason) unless it has been done."""
    if reply is None:
        return (*address, "it cannot be reached")
    try:
        await reply.wait()
    except (ConnectionLost, FilesystemError) as error:
        return (*address, str(error))
    return None
