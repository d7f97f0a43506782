"""A chunk server: holds chunks in one node's memory, and serves them as streams.

It runs in a detached Ray actor pinned to its node, and is never restarted: a new process cannot bring chunks back, so it gets a
new identity. Chunks at rest are Ray objects whose refs are held here and nowhere else.
"""

from __future__ import annotations

import errno
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from itertools import islice
from typing import Any

import trio

from gridfs import logs, node
from gridfs.buffers import keep_freed_memory
from gridfs.chunk.chunks import Chunks
from gridfs.chunk.copies import Author, Copies
from gridfs.chunk.forwarder import Forwarder
from gridfs.chunk.holds import Holds
from gridfs.chunk.objects import Objects, RayObjects
from gridfs.chunk.pool import BufferPool
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.stream.endpoint import Answer, Endpoint, Methods, Peer
from gridfs.stream.handshake import Identity
from gridfs.stream.thread import TrioThread
from gridfs.types import Address, ChunkId, ChunkServerStatistics, NodeSample

log = logging.getLogger(__name__)

OPEN_MAX_BYTES = 256 * MIB
OPEN_KEEP_BYTES = 128 * MIB
TICK_S = 0.25
SAMPLE_INTERVAL_S = 1.0
REPACK_INTERVAL_S = 1.0
RESERVE_SHARE = 0.05
"""This share of the node's memory is never lent: grants stop when its owner would have less."""
GRANT_SHARE = 8
"""A grant is at most this part of what is free, unless more is needed at once: the last bytes go to those who write."""
GRANT_MIN_BYTES = MIB
CHANGING_STREAMS = ("write", "forward")
PAGE_ROWS = 20_000
SEALS_WAITING_MAX = 64
"""Full chunks waiting to be sealed at once; others are found when they have been quiet, or when the pool is short."""


class ChunkService:
    """What a chunk server does with connections; lives in one trio thread.

    Space: `capacity_bytes` bounds the bytes of all chunks and of all grants. A client asks for a grant, and says with each
    write how much of it that may consume; what the chunk did not grow by is free. It gives back what it does not use, and a
    grant ends with its connection.
    """

    def __init__(
        self, capacity_bytes: int, objects: Objects, secret: bytes, sample: Callable[[], NodeSample] = node.sample
    ) -> None:
        self.capacity_bytes = capacity_bytes
        self._take_sample = sample
        self.sample = sample()
        self._sampled_used_bytes = 0
        """`chunks.used_bytes` when the sample was taken."""
        self._growing_bytes = 0
        """What chunks are growing by just now beyond what was granted for it."""
        self._pool = BufferPool(OPEN_MAX_BYTES, OPEN_KEEP_BYTES)
        self.chunks = Chunks(objects, self._pool)
        self.holds = Holds(self.chunks)
        self._forwarder = Forwarder(secret)
        self._copies = Copies(self.chunks, self._forwarder)
        self._grants: dict[Peer, int] = defaultdict(int)
        self._peers: set[Peer] = set()
        self._inventories: dict[Peer, Iterator[Any]] = {}
        self._inventoried_s: dict[Peer, float] = {}
        """When each connection's newest inventory was taken."""
        self._fenced_epoch, self._live_epochs = 0, frozenset[int]()
        self._full_in, self._full_out = trio.open_memory_channel[ChunkId](SEALS_WAITING_MAX)
        self.methods: Methods = {
            "grant": self.grant,
            "give_back": self.give_back,
            "write": self.write,
            "put": self.put,
            "copy": self.copy,
            "unfollow": self.unfollow,
            "read": self.read,
            "truncate": self.truncate,
            "drop": self.drop,
            "trim": self.trim,
            "seal": self.seal,
            "verify": self.verify,
            "inventory": self.inventory,
            "length": self.length,
            "space": self.space,
            **self.holds.methods,
        }

    # -- clients -----------------------------------------------------------------------------------------------------

    def greet(self, identity: Identity) -> Identity:
        """Accept a client whose session is not over. The inode table says which are, and those are disconnected at once.

        A client without a session (role "client") has none that could be over.
        """
        if identity.get("role") == "table":
            self._fence(identity["epoch"], frozenset(identity["live"]))
        elif self._is_fenced(identity):
            raise AuthenticationFailed(f"fenced: the session of epoch {identity.get('epoch')} is over")
        return {}

    def _fence(self, epoch: int, live: frozenset[int]) -> None:
        """Of the sessions up to `epoch` only those in `live` go on; what an older fence says is passed over."""
        if epoch < self._fenced_epoch:
            return
        self._fenced_epoch, self._live_epochs = epoch, live
        for peer in self._peers:
            if self._is_fenced(peer.identity):
                peer.disconnect()

    def _is_fenced(self, identity: Identity) -> bool:
        epoch = identity.get("epoch", 0)
        has_session = identity.get("role") not in ("table", "client", "server")
        return has_session and epoch <= self._fenced_epoch and epoch not in self._live_epochs

    def welcome(self, peer: Peer) -> None:
        """Count the connection in, unless it has been fenced since it was greeted.

        Of those on which one client changes chunks only the newest counts: it has given up the others, and what it sent there
        must not take effect any more.
        """
        if peer.identity.get("stream") in CHANGING_STREAMS:
            for other in self._peers:
                if all(other.identity.get(key) == peer.identity.get(key) for key in ("client", "stream")):
                    other.disconnect()
        self._peers.add(peer)
        if self._is_fenced(peer.identity):
            peer.disconnect()

    def goodbye(self, peer: Peer) -> None:
        """Take back what the connection was granted."""
        self._peers.discard(peer)
        self._grants.pop(peer, None)
        self._inventories.pop(peer, None)
        self._inventoried_s.pop(peer, None)

    # -- space -------------------------------------------------------------------------------------------------------

    @property
    def granted_bytes(self) -> int:
        """Promised to clients and not yet written."""
        return sum(self._grants.values())

    @property
    def free_bytes(self) -> int:
        """What could be granted now: within the capacity, and within what the node really has to spare.

        What was written since the sample was taken is in memory that the sample calls available.
        """
        promised = self.granted_bytes + self._growing_bytes
        within_capacity = self.capacity_bytes - self.chunks.used_bytes - self.chunks.packs.wasted_bytes - promised
        reserve = int(self.sample.total_bytes * RESERVE_SHARE)
        unsampled = max(0, self.chunks.used_bytes - self._sampled_used_bytes)
        spare = self.sample.available_bytes + self.chunks.packs.retained_bytes - reserve - unsampled - promised
        return max(0, min(within_capacity, spare))

    async def grant(self, peer: Peer, want_bytes: int, need_bytes: int, least_bytes: int) -> Answer:
        """Promise the client what it needs, or as much as is free of it, and up to `want_bytes` when there is plenty.

        Nothing if less than `least_bytes` are free. The result is [granted, free, granted to others] in bytes.
        """
        free = self.free_bytes
        granted = 0
        if free >= least_bytes:
            granted = min(free, max(need_bytes, min(want_bytes, max(free // GRANT_SHARE, GRANT_MIN_BYTES))))
        elsewhere = self.granted_bytes - self._grants[peer]
        self._grants[peer] += granted
        return Answer((granted, free - granted, elsewhere))

    async def give_back(self, peer: Peer, unused_bytes: int) -> Answer:
        """The client does not use so much of its grant."""
        self._grants[peer] -= min(unused_bytes, self._grants[peer])
        return Answer()

    async def space(self, peer: Peer) -> Answer:
        """[capacity, used, what the client could write] in bytes, as of now."""
        return Answer((self.capacity_bytes, self.chunks.used_bytes, self.free_bytes + self._grants[peer]))

    async def length(self, peer: Peer, ino: int, index: int) -> Answer:
        """The chunk's length, 0 if it has never been written."""
        chunk = self.chunks.find(ChunkId(ino, index))
        return Answer(chunk.length if chunk else 0)

    def _admit(self, peer: Peer, author: Author) -> Peer:
        """The connection whose grant pays for the write: its author's own. Raises ESTALE if that one's session is over."""
        if author.epoch and self._is_fenced({"epoch": author.epoch}):
            raise FilesystemError(errno.ESTALE, f"fenced: the session of epoch {author.epoch} is over")
        own = (other for other in self._grants if other.identity.get("client") == author.client)
        return peer if peer.identity.get("role") != "server" else next(own, peer)

    @contextmanager
    def _charged(self, peer: Peer, chunk_id: ChunkId, end: int, charge_bytes: int) -> Iterator[None]:
        """Let a chunk grow to `end` within the context, and settle the grant after it.

        Raises ENOSPC if the chunk grows by more than was granted and is free.
        """
        charge_bytes = min(charge_bytes, self._grants[peer])
        beyond_bytes = max(0, self.chunks.growth(chunk_id, end) - charge_bytes)
        if beyond_bytes and beyond_bytes > self.free_bytes:
            raise FilesystemError(errno.ENOSPC, "the write was larger than its grant")
        self._growing_bytes += beyond_bytes
        try:
            yield
        finally:
            self._growing_bytes -= beyond_bytes
            if peer in self._grants:
                self._grants[peer] -= min(charge_bytes, self._grants[peer])

    # -- requests ----------------------------------------------------------------------------------------------------

    async def write(
        self,
        peer: Peer,
        ino: int,
        index: int,
        offset: int,
        charge_bytes: int,
        author: tuple[str, int] | None = None,
        copies: Sequence[tuple[str, int]] = (),
    ) -> Answer:
        """The payload becomes the chunk's bytes from `offset` on, here and at the servers that hold the other `copies`.

        `author` is who sent it first, if that was not this peer. The result is [host, port, reason] of each copy that is
        wanting: it is not to be read any more.
        """
        chunk_id, length, answer = ChunkId(ino, index), peer.payload_bytes, Answer(())
        if not 0 <= offset <= offset + length <= CHUNK_SIZE_BYTES:
            raise FilesystemError(errno.EINVAL, "the bytes do not lie within a chunk")
        who = Author(*author) if author else Author(peer.identity.get("client", ""), peer.identity.get("epoch", 0))

        async def receive(view: memoryview) -> None:
            nonlocal answer
            await peer.receive_payload(view)
            if others := self._copies.of(chunk_id, copies):
                answer = await self._copies.send_on(chunk_id, others, offset, charge_bytes, who, view)

        with self._charged(self._admit(peer, who), chunk_id, offset + length, charge_bytes):
            await self.chunks.write(chunk_id, offset, length, receive)
        self._seal_if_full(chunk_id, offset + length)
        return answer

    def _seal_if_full(self, chunk_id: ChunkId, end: int) -> None:
        if end == CHUNK_SIZE_BYTES and self.chunks.is_full(chunk_id):
            try:
                self._full_in.send_nowait(chunk_id)
            except trio.WouldBlock:
                pass  # it is sealed when it has been quiet, or when the pool is short

    async def put(self, peer: Peer, ino: int, index: int, author: tuple[str, int]) -> Answer:
        """The payload becomes the chunk, whatever has been here of it: a copy that another server makes."""
        chunk_id, length = ChunkId(ino, index), peer.payload_bytes
        self.chunks.drop(chunk_id)
        with self._charged(self._admit(peer, Author(*author)), chunk_id, length, length):
            await self.chunks.write(chunk_id, 0, length, peer.receive_payload)
        return Answer()

    async def copy(self, peer: Peer, ino: int, index: int, host: str, port: int) -> Answer:
        """Have another server hold a copy too: the chunk as it is, and every write from now on. Raises as `Copies.make`."""
        author = Author(peer.identity.get("client", ""), peer.identity.get("epoch", 0))
        await self._copies.make(ChunkId(ino, index), Address(host, port), author)
        return Answer()

    async def unfollow(self, peer: Peer, ino: int, index: int, host: str, port: int) -> Answer:
        """A copy that was made is named by those who write from now on, or is none."""
        self._copies.unfollow(ChunkId(ino, index), Address(host, port))
        return Answer()

    async def read(self, peer: Peer, ino: int, index: int, offset: int, length: int) -> Answer:
        """The chunk's bytes from `offset` on, at most `length`; fewer where it ends, as zeros follow there.

        Raises EBADMSG if the chunk is found to be bad.
        """
        view, sent = await self.chunks.verified_read(ChunkId(ino, index), offset, length)
        return Answer(None, (view,), sent)

    async def truncate(self, peer: Peer, ino: int, index: int, length: int) -> Answer:
        """Cut the chunk to at most `length` bytes."""
        await self.chunks.truncate(ChunkId(ino, index), length)
        return Answer()

    async def drop(self, peer: Peer, chunk_ids: list[tuple[int, int]]) -> Answer:
        """Forget chunks; those that are not here are no error."""
        for chunk_id in chunk_ids:
            self.chunks.drop(ChunkId(*chunk_id))
        return Answer()

    async def trim(self, peer: Peer, ino: int, index: int, length: int, quiet_s: float) -> Answer:
        """Cut a chunk to `length` bytes, or drop it if that is none: for bytes that the connection's inventory has shown.

        False, and nothing done, if the chunk is being written, or was since that inventory or in the last `quiet_s`: whoever
        compared the inventory with the inode table does not know of those bytes. Raises EINVAL without an inventory.
        """
        since_s = self._inventoried_s.get(peer)
        if since_s is None:
            raise FilesystemError(errno.EINVAL, "no inventory was taken on this connection")
        chunk_id = ChunkId(ino, index)
        if not self.chunks.is_untouched(chunk_id, min(since_s, trio.current_time() - quiet_s)):
            return Answer(result=False)
        if length:
            await self.chunks.truncate(chunk_id, length)
        else:
            self.chunks.drop(chunk_id)
        return Answer(result=True)

    async def seal(self, peer: Peer, chunk_ids: list[tuple[int, int]]) -> Answer:
        """Seal chunks now; the result says for each whether it is sealed."""
        await self.chunks.seal_together([ChunkId(*chunk_id) for chunk_id in chunk_ids])
        return Answer([self.chunks.is_sealed(ChunkId(*chunk_id)) for chunk_id in chunk_ids])

    async def verify(self, peer: Peer, chunk_ids: list[tuple[int, int]]) -> Answer:
        """Compare sealed chunks with their checksums; the result says for each "good", "bad", "open" or "missing"."""
        return Answer([await self.chunks.verify(ChunkId(*chunk_id)) for chunk_id in chunk_ids])

    async def inventory(self, peer: Peer) -> Answer:
        """The next page of [ino, index, length] of all chunks there were at the first call; empty after the last."""
        if peer not in self._inventories:
            self._inventories[peer] = self.chunks.inventory()
            self._inventoried_s[peer] = trio.current_time()
        page = list(islice(self._inventories[peer], PAGE_ROWS))
        if not page:
            del self._inventories[peer]
        return Answer(page)

    # -- background --------------------------------------------------------------------------------------------------

    async def run(self) -> None:
        """Seal what is full and what is quiet, repack, and keep the sample fresh, until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._forwarder.run)
            nursery.start_soon(self._seal_full)
            nursery.start_soon(self._keep_repacking)
            nursery.start_soon(self._keep_sampling)
            while True:
                await trio.sleep(TICK_S)
                await self._try_to_seal(self.chunks.quiet())

    async def _keep_sampling(self) -> None:
        while True:
            await trio.sleep(SAMPLE_INTERVAL_S)
            self.sample, self._sampled_used_bytes = self._take_sample(), self.chunks.used_bytes

    async def _seal_full(self) -> None:
        async for chunk_id in self._full_out:
            await self._try_to_seal([chunk_id])

    async def _keep_repacking(self) -> None:
        while True:
            await trio.sleep(REPACK_INTERVAL_S)
            try:
                await self.chunks.repack()
            except Exception:
                log.exception("chunks could not be packed anew")

    async def _try_to_seal(self, chunk_ids: list[ChunkId]) -> None:
        """A chunk that cannot be sealed stays open, and is tried again when it has been quiet once more."""
        try:
            await self.chunks.seal_together(chunk_ids)
        except Exception:
            log.exception("%d chunks could not be sealed", len(chunk_ids))

    def check(self) -> list[str]:
        """The invariants of chunks and holds that are broken, one sentence each."""
        return self.chunks.check() + self.holds.check()

    def open_bytes(self) -> int:
        """Memory lent to open chunks."""
        return self._pool.lent_bytes


class ChunkServer:
    """The Ray actor's class. Every method is safe to call at any time; `refs` may wait for a chunk to be sealed."""

    def __init__(self, server: str, host: str, address: str, secret: bytes, capacity_bytes: int) -> None:
        """Hold up to `capacity_bytes` on this node, listening on IP `address`; `server` is this incarnation's identity."""
        logs.start()
        keep_freed_memory()
        self._server, self._host, self._secret = server, host, secret
        self._started_s = time.monotonic()
        self._service = ChunkService(capacity_bytes, RayObjects(), secret)
        self._endpoint = Endpoint(Address(address, 0), secret, self._service)
        self._thread = TrioThread("chunk-server", partial(_serve, self._service, self._endpoint))

    def endpoint(self) -> tuple[str, int]:
        """Where clients connect."""
        return self._endpoint.address.host, self._endpoint.address.port

    def statistics(self) -> dict[str, Any]:
        """A ChunkServerStatistics as a dict."""
        return self._thread.call(self._statistics)

    def _statistics(self) -> dict[str, Any]:
        service = self._service
        return asdict(
            ChunkServerStatistics(
                server=self._server,
                host=self._host,
                address=self._endpoint.address,
                capacity_bytes=service.capacity_bytes,
                used_bytes=service.chunks.used_bytes,
                granted_bytes=service.granted_bytes,
                free_bytes=service.free_bytes,
                open_bytes=service.open_bytes(),
                chunks=len(service.chunks),
                sealed_chunks=len(service.chunks) - service.chunks.open_count,
                sample=service.sample,
            )
        )

    def refs(self, ino: int, index: int) -> list[Any]:
        """[the ref] of the chunk's Ray object, sealing it first; for a job on this node. Raises FilesystemError."""
        return [self._thread.call_async(self._service.chunks.ref, ChunkId(ino, index))]

    def held(self, job: int) -> list[tuple[int, Any, int, int]]:
        """(index, ref, start, length) of each chunk that is held for the job: see `Holds.refs`."""
        return self._thread.call(self._service.holds.refs, job)

    def keep_holds(self, jobs: list[int]) -> None:
        """These are all the jobs there are; what is held for others is released, unless it is new."""
        self._thread.call(self._service.holds.keep, jobs)

    def check(self) -> list[str]:
        """The chunks' broken invariants, one sentence each; empty when all is well."""
        return self._thread.call(self._service.check)

    def stop(self) -> None:
        """Stop serving; the chunks go with the process."""
        self._thread.stop()


async def _serve(service: ChunkService, endpoint: Endpoint, started: Callable[[], None]) -> None:
    """The server's thread. A function, since a class with coroutine methods would become an asyncio actor in Ray."""
    async with trio.open_nursery() as nursery:
        nursery.start_soon(service.run)
        nursery.start_soon(endpoint.serve)
        started()
