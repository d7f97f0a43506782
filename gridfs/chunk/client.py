"""A client of the chunk servers: connections, grants of space, and requests for bytes."""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from gridfs.buffers import Buffer
from gridfs.config import KIB, MIB
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.stream.connection import Connection, Reply
from gridfs.types import ChunkId, PlacementMap, PlacementNode

log = logging.getLogger(__name__)

GRANT_BYTES = 64 * MIB
"""Space is asked for in steps of this: some 40 ms of writing at full speed."""
QUICK_MAX_BYTES = 128 * KIB
"""Reads up to this size have a connection of their own, so that no large transfer is in their way."""
SPACE_TIMEOUT_S = 2.0
DROPS_TIMEOUT_S = 5.0

WRITE, FETCH, QUICK = "write", "fetch", "quick"


class NodeLink:
    """This client's connections to one chunk server, opened when first needed and again after they were lost.

    Three streams: `write` carries all that changes chunks, in order; `fetch` large reads; `quick` small ones. `balance_bytes`
    is what is left of the space granted on the write stream; it is gone when that stream is.
    """

    def __init__(
        self, node: PlacementNode, secret: bytes, identity: Callable[[], dict[str, Any]], nursery: trio.Nursery
    ) -> None:
        self.node, self._secret, self._identity, self._nursery = node, secret, identity, nursery
        self._connections: dict[str, Connection] = {}
        self._locks: dict[str, trio.Lock] = defaultdict(trio.Lock)
        self._granting = trio.Lock()
        self.balance_bytes = 0

    def ready(self, kind: str) -> Connection | None:
        """The connection of this kind, if it stands."""
        connection = self._connections.get(kind)
        return None if connection is None or connection.lost else connection

    async def connection(self, kind: str) -> Connection:
        """The connection of this kind, opened if need be. Raises EIO when the server cannot be reached."""
        connection = self.ready(kind)
        if connection:
            return connection
        async with self._locks[kind]:
            connection = self.ready(kind)
            if connection:
                return connection
            try:
                connection = await Connection.open(self.node.address, self._secret, {**self._identity(), "stream": kind})
            except ConnectionLost as error:
                raise FilesystemError(errno.EIO, f"chunk server on {self.node.host}: {error}") from error
            if kind == WRITE:
                self.balance_bytes = 0
            await self._nursery.start(connection.run)
            self._connections[kind] = connection
            return connection

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
                if attempt == 2:
                    raise FilesystemError(errno.EIO, f"chunk server on {self.node.host}: {lost}") from lost
        raise AssertionError

    async def take(self, charge_bytes: int, room_bytes: int = 0) -> bool:
        """Take space for a write from the balance, asking for another grant when it is short.

        False, and nothing taken, when the node has not room for `charge_bytes`, or for `room_bytes` if that is more.
        """
        connection = await self.connection(WRITE)
        needed_bytes = max(charge_bytes, room_bytes)
        if self.balance_bytes < needed_bytes:
            async with self._granting:
                missing = needed_bytes - self.balance_bytes
                if missing > 0:
                    try:
                        granted = await connection.call("grant", max(GRANT_BYTES, missing), missing)
                    except ConnectionLost as lost:
                        raise FilesystemError(errno.EIO, f"chunk server on {self.node.host}: {lost}") from lost
                    self.balance_bytes += granted
        if connection.lost or self.balance_bytes < needed_bytes:
            return False
        self.balance_bytes -= charge_bytes
        return True


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
            task_status.started()
            await trio.sleep_forever()

    @property
    def placement(self) -> PlacementMap:
        """The newest placement map."""
        return self._placement()

    def link(self, server: str) -> NodeLink:
        """The link to a chunk server. Raises EIO when it is lost: its chunks are gone with it."""
        node = next((node for node in self.placement.nodes if node.server == server), None)
        if node is None or not node.alive:
            raise FilesystemError(errno.EIO, f"chunk server {server} is lost")
        link = self._links.get(server)
        if link is None:
            link = self._links[server] = NodeLink(node, self._secret, self._identity, self._nursery)
        return link

    # -- bytes -------------------------------------------------------------------------------------------------------

    def write(
        self,
        link: NodeLink,
        chunk_id: ChunkId,
        offset: int,
        data: Buffer,
        charge_bytes: int,
        callback: Callable[[Reply], None],
    ) -> None:
        """Send bytes that `link.take` has found space for; `callback` hears of the outcome. Never waits, never raises.

        On one link, writes, truncations and drops take effect in the order they were called.
        """
        connection = link.ready(WRITE)
        if connection is None:
            reply = Reply(0, None, callback)
            reply.finish(None, 0, ConnectionLost("the connection ended before the write"))
            return
        connection.submit("write", *chunk_id, offset, charge_bytes, payload=data, callback=callback)

    async def read(self, server: str, chunk_id: ChunkId, offset: int, view: memoryview) -> None:
        """Fill `view` with the chunk's bytes from `offset` on, zeros where it ends. Raises EIO."""
        kind = QUICK if len(view) <= QUICK_MAX_BYTES else FETCH
        reply = await self.link(server).call(kind, "read", *chunk_id, offset, len(view), into=view)
        if reply.payload_bytes < len(view):
            view[reply.payload_bytes :] = bytes(len(view) - reply.payload_bytes)

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
        """(capacity, free) in bytes over all nodes, asked of them just now; free counts what has been granted to us.

        A node that does not answer in time counts as the newest placement map says; one that takes no chunks has nothing free.
        """
        total = [0, 0]

        async def add(node: PlacementNode) -> None:
            capacity, free = node.capacity_bytes, node.free_bytes
            with trio.move_on_after(SPACE_TIMEOUT_S):
                try:
                    link = self.link(node.server)
                    capacity, _, free = (await link.call(WRITE, "space")).result
                    free += link.balance_bytes
                except FilesystemError as error:
                    log.debug("space of %s taken from the map: %s", node.host, error)
            total[0] += capacity
            total[1] += free if node.weight > 0 else 0

        async with trio.open_nursery() as nursery:
            for node in self.placement.nodes:
                if node.alive:
                    nursery.start_soon(add, node)
        return total[0], total[1]
