"""A client of the chunk servers: connections, grants of space, and requests for bytes."""

from __future__ import annotations

import errno
import logging
import math
from collections import defaultdict
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import trio

from gridfs.buffers import Buffer
from gridfs.chunk.grants import IDLE_S, Grants
from gridfs.config import KIB
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.stream.connection import Connection, Reply
from gridfs.types import ChunkId, PlacementMap, PlacementNode

log = logging.getLogger(__name__)

QUICK_MAX_BYTES = 128 * KIB
"""Reads up to this size have a connection of their own, so that no large transfer is in their way."""
SPACE_TIMEOUT_S = 2.0
PATIENCE_S = 0.5
"""How long a reader waits for a server before it asks for another copy: with the second one it is done within a second."""
STALLED_S = 5.0
LOST_CHECK_S = 0.5
DROPS_TIMEOUT_S = 5.0
SPACE_COMES_S = 2.0
"""How long a write that finds no space waits for what others hold or remove: what a client does not use is back in a second."""
SPACE_COMES_ANYHOW_S = 0.3
"""And how long if nothing is known of that: chunks that the inode table drops are not told to anybody."""
SPACE_CHECK_S = 0.1

WRITE, FETCH, QUICK = "write", "fetch", "quick"


class NodeLink:
    """This client's connections to one chunk server, opened when first needed and again after they were lost.

    Three streams: `write` carries all that changes chunks, in order; `fetch` large reads; `quick` small ones. `grants` is the
    space granted on the newest write stream.
    """

    def __init__(
        self, node: PlacementNode, secret: bytes, identity: Callable[[], dict[str, Any]], nursery: trio.Nursery
    ) -> None:
        self.node, self._secret, self._identity, self._nursery = node, secret, identity, nursery
        self._connections: dict[str, Connection] = {}
        self._locks: dict[str, trio.Lock] = defaultdict(trio.Lock)
        self.grants: Grants | None = None
        self.lost = False
        """The placement map says so: nothing is tried again."""
        self._failures: dict[str, tuple[float, FilesystemError]] = {}
        """Of each kind the last attempt to connect that failed: when, and how."""

    def ready(self, kind: str) -> Connection | None:
        """The connection of this kind, if it stands."""
        connection = self._connections.get(kind)
        return None if connection is None or connection.lost else connection

    async def connection(self, kind: str) -> Connection:
        """The connection of this kind, opened if need be. Raises EIO when the server cannot be reached."""
        connection = self.ready(kind)
        if connection:
            return connection
        began_s = trio.current_time()
        async with self._locks[kind]:
            connection = self.ready(kind)
            if connection:
                return connection
            failed_s, failure = self._failures.get(kind, (-math.inf, FilesystemError(errno.EIO)))
            if failed_s > began_s:
                raise failure  # somebody has tried while we waited: all who did hear of it
            try:
                connection = await Connection.open(self.node.address, self._secret, {**self._identity(), "stream": kind})
            except ConnectionLost as error:
                failure = self._eio(error)
                self._failures[kind] = (trio.current_time(), failure)
                raise failure from error
            if kind == WRITE:
                self.grants = Grants(connection)
            await self._nursery.start(connection.run)
            self._connections[kind] = connection
            return connection

    def give_up(self, reason: str) -> None:
        """End all connections, and whatever waits for them."""
        for connection in self._connections.values():
            connection.close(ConnectionLost(reason))

    async def call(self, kind: str, method: str, *arguments: Any, into: memoryview | None = None) -> Reply:
        """Ask, once more on a fresh connection if the first was lost: for requests that may be carried out twice.

        Returns the settled reply. Raises EIO when the server cannot be reached, or the errno that the server answers with.
        """
        for attempt in (1, 2):
            try:
                connection = await self.connection(kind)
                reply = connection.submit(method, *arguments, into=into)
                await reply.wait()
                return reply
            except ConnectionLost as lost:
                if attempt == 2 or self.lost:
                    raise self._eio(lost) from lost
        raise AssertionError

    def _eio(self, lost: ConnectionLost) -> FilesystemError:
        """What programs hear of a server that cannot be reached."""
        return FilesystemError(errno.EIO, f"chunk server on {self.node.host}: {lost}")

    async def granted(self) -> Grants:
        """The space granted on the write stream, which is opened if need be. Raises EIO when the server cannot be reached."""
        connection = await self.connection(WRITE)
        assert self.grants is not None
        assert self.grants.connection is connection
        return self.grants

    async def take(self, charge_bytes: int, room_bytes: int = 0, chunk_id: ChunkId | None = None) -> bool:
        """As `Grants.take`. Raises EIO when the server cannot be reached."""
        grants = await self.granted()
        try:
            return await grants.take(charge_bytes, room_bytes, chunk_id)
        except ConnectionLost as lost:
            raise self._eio(lost) from lost

    async def take_some(self, most_bytes: int) -> int:
        """As `Grants.take_some`. Raises EIO when the server cannot be reached."""
        grants = await self.granted()
        try:
            return await grants.take_some(most_bytes)
        except ConnectionLost as lost:
            raise self._eio(lost) from lost

    def give_back(self) -> None:
        """Tell the server of space that is not used. Never waits."""
        connection = self.ready(WRITE)
        if connection and self.grants and (surplus_bytes := self.grants.surplus()):
            connection.submit("give_back", surplus_bytes)


class ChunkClient:
    """Reaches every chunk server of the placement map. Owned by one trio thread.

    `run` owns all connections and the drop task; nothing works before it has started.
    """

    def __init__(
        self,
        secret: bytes,
        identity: Callable[[], dict[str, Any]],
        placement: Callable[[], PlacementMap],
        durable: Callable[[], Awaitable[None]],
    ) -> None:
        """`identity` is the session's at present; `placement` gives the newest map; `durable` returns once the inode table has
        all that has been said so far.
        """
        self._secret, self._placement, self._durable = secret, placement, durable
        self._identity = identity
        self._links: dict[str, NodeLink] = {}
        self._stalled_s: dict[str, float] = {}
        """Until when a server that has kept a reader waiting is asked last."""
        self._nursery: trio.Nursery
        self._to_drop: dict[str, list[ChunkId]] = defaultdict(list)
        self._drops_pending = 0
        self._dropping = trio.Event()
        self._dropped = trio.Event()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._drop_in_background)
            nursery.start_soon(self._give_up_the_lost)
            nursery.start_soon(self._give_back_in_background)
            task_status.started()
            await trio.sleep_forever()

    async def _give_up_the_lost(self) -> None:
        """End what is under way to a server that is lost, and may hang: there may be copies elsewhere, and else it is EIO."""
        while True:
            await trio.sleep(LOST_CHECK_S)
            for server, link in self._links.items():
                link.lost = not self.is_alive(server)
                if link.lost:
                    link.give_up("the chunk server is lost")

    @property
    def placement(self) -> PlacementMap:
        """The newest placement map."""
        return self._placement()

    def is_alive(self, server: str) -> bool:
        """False once the server is lost, as the newest placement map has it."""
        return self._living(server) is not None

    def _living(self, server: str) -> PlacementNode | None:
        return next((node for node in self.placement.nodes if node.server == server and node.alive), None)

    def link(self, server: str) -> NodeLink:
        """The link to a chunk server. Raises EIO when it is lost: its chunks are gone with it."""
        node = self._living(server)
        if node is None:
            raise FilesystemError(errno.EIO, f"chunk server {server} is lost")
        link = self._links.get(server)
        if link is None:
            link = self._links[server] = NodeLink(node, self._secret, self._identity, self._nursery)
        return link

    def connected(self, kind: str, servers: Sequence[str]) -> list[NodeLink]:
        """The links to these servers, if a connection of this kind stands to each of them; else none."""
        links = [link for server in servers if (link := self._links.get(server)) is not None and link.ready(kind)]
        return links if len(links) == len(servers) else []

    # -- bytes -------------------------------------------------------------------------------------------------------

    def write(
        self,
        links: Sequence[NodeLink],
        chunk_id: ChunkId,
        offset: int,
        data: Buffer,
        charge_bytes: int,
        callback: Callable[[Reply], None] | None = None,
    ) -> Reply:
        """Send bytes that `take` has found space for on each link; the first server passes them on to the others.

        `callback` hears of the outcome, as does who waits for the reply that is returned: it is [host, port, reason] of each of
        the others that has not got them. Never waits, never raises. On one link, writes, truncations and drops take effect in
        the order they were called.
        """
        first, others = links[0], links[1:]
        connection = first.ready(WRITE)
        if connection is None:
            reply = Reply(0, None, callback)
            reply.finish(None, 0, ConnectionLost("the connection ended before the write"))
            return reply
        copies: tuple[Any, ...] = (None, [link.node.address for link in others]) if others else ()
        arguments = (*chunk_id, offset, charge_bytes, *copies)
        return connection.submit("write", *arguments, payload=data, callback=callback, may_wait=True)

    def candidates(self, servers: Sequence[str]) -> list[tuple[str, float]]:
        """Whom to ask for a chunk that `servers` hold, and for how long (seconds) before the next is asked.

        One that stalled a moment ago is asked last, and nobody is given up for it: a server may just be busy.
        """
        if len(servers) == 1:
            return [(servers[0], math.inf)]
        now_s = trio.current_time()
        living = [server for server in servers if self.is_alive(server)]
        fresh = [server for server in living if self._stalled_s.get(server, 0) <= now_s]
        stalled = sorted(set(living) - set(fresh), key=lambda server: self._stalled_s[server])
        return [(server, PATIENCE_S) for server in fresh[:-1]] + [(server, math.inf) for server in [*fresh[-1:], *stalled]]

    async def read(self, server: str, chunk_id: ChunkId, offset: int, view: memoryview, patience_s: float = math.inf) -> None:
        """Fill `view` with the chunk's bytes from `offset` on, zeros where it ends.

        Raises EIO, and EBADMSG when the server finds that its bytes are not what they were. Raises TooSlowError when
        `patience_s` are over: then the bytes may still come, so `view` must not be used again.
        """
        kind = QUICK if len(view) <= QUICK_MAX_BYTES else FETCH
        link, arguments = self.link(server), (*chunk_id, offset, len(view))
        if patience_s == math.inf:
            reply = await link.call(kind, "read", *arguments, into=view)
        else:
            try:
                with trio.fail_after(patience_s):
                    reply = await link.call(kind, "read", *arguments, into=view)
            except trio.TooSlowError:
                self._stalled_s[server] = trio.current_time() + STALLED_S
                raise
        if reply.payload_bytes < len(view):
            view[reply.payload_bytes :] = bytes(len(view) - reply.payload_bytes)

    async def copy(self, chunk_id: ChunkId, source: str, target: str) -> None:
        """Have `target` hold the chunk as `source` does, with all that is written there until `unfollow`.

        Raises EIO, ENOSPC, ENOENT, and EBADMSG when the source's bytes are not what they were.
        """
        link, to = self.link(source), self.link(target)
        length = await self.length(source, chunk_id)
        if not await to.take(length):
            raise FilesystemError(errno.ENOSPC, f"{to.node.host} has no room for a copy")
        await link.call(WRITE, "copy", *chunk_id, *to.node.address)

    async def unfollow(self, chunk_id: ChunkId, source: str, target: str) -> None:
        """The copy that was made is named by all who write from now on, or is none."""
        link, to = self.link(source), self.link(target)
        await link.call(WRITE, "unfollow", *chunk_id, *to.node.address)

    async def length(self, server: str, chunk_id: ChunkId) -> int:
        """The chunk's length at the server."""
        length: int = (await self.link(server).call(WRITE, "length", *chunk_id)).result
        return length

    async def truncate(self, server: str, chunk_id: ChunkId, length: int) -> None:
        """Cut the chunk to at most `length` bytes."""
        await self.link(server).call(WRITE, "truncate", *chunk_id, length)

    # -- dropping ----------------------------------------------------------------------------------------------------

    async def drop(self, server: str, chunk_ids: list[ChunkId]) -> None:
        """Have chunks forgotten, and wait for it. One whose server is lost is gone already."""
        try:
            link = self.link(server)
        except FilesystemError:
            return
        await link.call(WRITE, "drop", chunk_ids)

    def drop_soon(self, server: str, chunk_id: ChunkId) -> None:
        """Have a chunk forgotten in the background, once the inode table durably has no use for it.

        Before that, a crash could bring the chunk's owner back. Bounded by the chunks there are.
        """
        self._to_drop[server].append(chunk_id)
        self._drops_pending += 1
        self._dropping.set()

    async def drops_settled(self) -> bool:
        """Wait until nothing is left to drop, or DROPS_TIMEOUT_S are over; True if there was something."""
        waited = False
        with trio.move_on_after(DROPS_TIMEOUT_S):
            while self._drops_pending:
                waited = True
                await self._dropped.wait()
        return waited

    async def _drop_in_background(self) -> None:
        while True:
            await self._dropping.wait()
            self._dropping = trio.Event()
            batch, self._to_drop = self._to_drop, defaultdict(list)
            for server, chunk_ids in batch.items():
                try:
                    await self._durable()
                    await self.drop(server, chunk_ids)
                except FilesystemError as error:
                    log.warning("%d chunks on %s wait to be collected: %s", len(chunk_ids), server, error)
                self._drops_pending -= len(chunk_ids)
            dropped, self._dropped = self._dropped, trio.Event()
            dropped.set()

    async def collect(self, wanted_bytes: Callable[[ChunkId, str], int]) -> int:
        """Cut every chunk to the bytes that are wanted of it where it is, and drop it if that is none; returns how many.

        For after a crash. A server that cannot be reached is passed over; the others are not.
        """
        count = 0
        for node in self.placement.nodes:
            if node.alive:
                try:
                    count += await self._collect_from(node.server, wanted_bytes)
                except FilesystemError as error:
                    log.warning("chunks without an owner on %s are collected at the next mount: %s", node.host, error)
        return count

    async def _collect_from(self, server: str, wanted_bytes: Callable[[ChunkId, str], int]) -> int:
        count = 0
        while page := (await self.link(server).call(WRITE, "inventory")).result:
            unwanted = []
            for ino, index, length in page:
                chunk_id = ChunkId(ino, index)
                wanted = wanted_bytes(chunk_id, server)
                if not wanted:
                    unwanted.append(chunk_id)
                elif length > wanted:
                    await self.truncate(server, chunk_id, wanted)
                    count += 1
            await self.drop(server, unwanted)
            count += len(unwanted)
        return count

    # -- space -------------------------------------------------------------------------------------------------------

    async def space(self) -> tuple[int, int]:
        """(capacity, free) in bytes over all nodes, asked of them just now; free is what this client could write.

        A node that does not answer in time counts as the newest placement map says; one that takes no chunks has nothing free.
        """
        total = [0, 0]

        async def add(node: PlacementNode) -> None:
            capacity, free = node.capacity_bytes, node.free_bytes
            with trio.move_on_after(SPACE_TIMEOUT_S):
                try:
                    capacity, _, free = (await self.link(node.server).call(WRITE, "space")).result
                except FilesystemError as error:
                    log.debug("space of %s taken from the map: %s", node.host, error)
            total[0] += capacity
            total[1] += free if node.weight > 0 else 0

        async with trio.open_nursery() as nursery:
            for node in self.placement.nodes:
                if node.alive:
                    nursery.start_soon(add, node)
        return total[0], total[1]

    def roomiest(self, nodes: list[PlacementNode]) -> list[PlacementNode]:
        """The nodes, the one first that had the most space for us when it was asked last."""
        grants = {server: link.grants for server, link in self._links.items()}

        def room_bytes(node: PlacementNode) -> int:
            found = grants.get(node.server)
            return found.held_bytes + found.free_bytes if found else node.free_bytes

        return sorted(nodes, key=room_bytes, reverse=True)

    async def more_space(self, since_s: float, *, removing: bool) -> bool:
        """For a write that found none, at `since_s` first: wait until there may be more. False if none is to be hoped for.

        Space comes from drops under way, from files that are being removed (`removing`), and from other clients, which give
        back what they do not use.
        """
        waited_s = trio.current_time() - since_s
        if waited_s < DROPS_TIMEOUT_S and await self.drops_settled():
            return True
        asked = [link.grants for link in self._links.values() if link.grants and link.grants.asked_s >= since_s]
        hopeful = removing or any(grants.elsewhere_bytes for grants in asked)
        if waited_s >= (SPACE_COMES_S if hopeful else SPACE_COMES_ANYHOW_S):
            return False
        await trio.sleep(SPACE_CHECK_S)
        return True

    async def _give_back_in_background(self) -> None:
        while True:
            await trio.sleep(IDLE_S)
            for link in self._links.values():
                link.give_back()
