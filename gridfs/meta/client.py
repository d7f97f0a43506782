"""The mount's end of the metadata: a replica of the inode table, and the uplink that carries its ops to the server.

The mount holds the only session that may write, so its replica is always as new as the table: an op is applied here, answered
from here, and sent on in the background. `settle` waits until the server has made everything durable.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import uuid
from collections import deque
from itertools import islice
from typing import Any

import trio

from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.meta.rows import load_page
from gridfs.meta.table import Op, Table
from gridfs.stream.connection import Connection
from gridfs.types import NO_PLACEMENT, Endpoints, PlacementMap

log = logging.getLogger(__name__)

QUEUE_MAX_OPS = 50_000
"""Ops not yet acknowledged; beyond it `ready` makes producers wait."""
BATCH_MAX_OPS, BATCH_MAX_BYTES = 2000, 1 << 20
GATHER_S = 0.003
"""While nobody waits for durability, ops gather this long, so that the server writes fewer and larger transactions."""
HEARTBEAT_S = 1.0
RETRY_S = 0.2
SETTLE_TIMEOUT_S = 60.0
REPLY_TIMEOUT_S = 10.0
PLACEMENT_TIMEOUT_S = 10.0
"""How long an attaching mount waits for the first map; the scheduler publishes every second, and restarts within a few."""


class MetaClient:
    """A replica with a write session.

    Owned by the trio thread that runs `run`. `table` changes in `apply` alone, which does not await: an op is applied and
    queued in one step. `_queue` holds the ops from number `_acked + 1` to `_last`, in order; the uplink alone shortens it.
    """

    def __init__(self, endpoints: Endpoints, mountpoint: str) -> None:
        self.table = Table()
        self.placement: PlacementMap = NO_PLACEMENT
        self.epoch = 0
        self._endpoints = endpoints
        self._identity: dict[str, Any] = {
            "role": "mount",
            "id": uuid.uuid4().hex,
            "host": os.environ.get("GRIDFS_HOST") or socket.gethostname(),
            "mountpoint": mountpoint,
            "pid": os.getpid(),
        }
        self._queue: deque[Op] = deque()
        self._acked = self._last = 0
        self._more = trio.Event()
        self._progress = trio.Event()
        self._waiting = 0
        self._urgent = trio.Event()
        """Set while somebody waits for durability."""
        self.failure: str | None = None

    @property
    def client_id(self) -> str:
        """This session's identity, to show to chunk servers together with the epoch."""
        identifier: str = self._identity["id"]
        return identifier

    # -- ops ---------------------------------------------------------------------------------------------------------

    async def ready(self) -> None:
        """Wait until another op may be applied. Raises EIO when the session is lost, or the queue stays full."""
        if len(self._queue) >= QUEUE_MAX_OPS:
            await self._until(lambda: len(self._queue) < QUEUE_MAX_OPS)
        self._refuse_if_failed()

    def apply(self, op: Op) -> Any:
        """Carry out one op on the replica and queue it for the server; raises as `Table.apply`, having queued nothing.

        A crash of this process may lose it until `settle` has returned.
        """
        self._refuse_if_failed()
        result = self.table.apply(op)
        self._queue.append(op)
        self._last += 1
        self._more.set()
        return result

    async def settle(self) -> None:
        """Return once every op applied so far is durable at the server. Raises EIO after SETTLE_TIMEOUT_S, or if fenced."""
        goal = self._last
        if self._acked < goal:
            await self._until(lambda: self._acked >= goal)

    async def _until(self, condition: Any) -> None:
        self._waiting += 1
        self._more.set()
        self._urgent.set()
        try:
            with trio.move_on_after(SETTLE_TIMEOUT_S):
                while not condition():
                    self._refuse_if_failed()
                    await self._progress.wait()
                return
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._urgent = trio.Event()
        raise FilesystemError(errno.EIO, f"the inode table has not answered for {SETTLE_TIMEOUT_S} s")

    def _refuse_if_failed(self) -> None:
        if self.failure:
            raise FilesystemError(errno.EIO, self.failure)

    # -- the uplink --------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attach, load the replica, say `started`, then carry ops until cancelled, reconnecting as often as it takes.

        Raises ConnectionLost or AuthenticationFailed when the first attachment fails. Once attached it raises nothing: a
        session that is lost for good shows as `failure`, and in the log.
        """
        connection = await self._open()
        loaded = False
        while True:
            try:
                async with trio.open_nursery() as nursery:
                    await nursery.start(connection.run)
                    if not loaded:
                        await self._load(connection)
                        loaded = True
                        task_status.started()
                    nursery.start_soon(self._beat, connection)
                    await self._carry(connection)
            except* ConnectionLost as lost:
                if not loaded:
                    raise ConnectionLost(str(lost.exceptions[0])) from lost
                log.warning("the inode table's connection ended: %s", lost.exceptions[0])
            reopened = await self._reopen()
            if reopened is None:
                return
            connection = reopened

    async def _open(self) -> Connection:
        identity = {**self._identity, "epoch": self.epoch}
        address, secret = self._endpoints.inode_table, self._endpoints.secret
        connection = await Connection.open(address, secret, identity, reply_timeout_s=REPLY_TIMEOUT_S)
        self.epoch = connection.greeting["epoch"]
        return connection

    async def _reopen(self) -> Connection | None:
        """Try until it works; None when the session is lost for good."""
        while not self.failure:
            try:
                connection = await self._open()
            except AuthenticationFailed as refusal:
                self._fail(str(refusal))
            except ConnectionLost:
                await trio.sleep(RETRY_S)
            else:
                log.info("the inode table is back; %d ops to send again", len(self._queue))
                self._acknowledge(connection.greeting["applied"])
                return connection
        return None

    async def _load(self, connection: Connection) -> None:
        while page := await connection.call("page"):
            load_page(self.table, page)
        self.table.next_ino = connection.greeting["next_ino"]  # numbers of inodes that are gone are not used again
        self.placement = await self._first_placement(connection)

    async def _first_placement(self, connection: Connection) -> PlacementMap:
        """The newest map; a server that has just restarted knows none until the scheduler's next cycle, which is waited for.

        Without a map every chunk would look lost, and what a crash has left could not be collected before it is served.
        """
        with trio.move_on_after(PLACEMENT_TIMEOUT_S):
            while True:
                newest = PlacementMap.unpack(await connection.call("placement"))
                if newest.epoch:
                    return newest
                await trio.sleep(RETRY_S)
        log.warning(
            "nobody has said where the chunks are for %.0f s: files cannot be read until the scheduler is back",
            PLACEMENT_TIMEOUT_S,
        )
        return NO_PLACEMENT

    async def _beat(self, connection: Connection) -> None:
        """Say that we live, and hear where chunks may go."""
        while True:
            await trio.sleep(HEARTBEAT_S)
            newest = PlacementMap.unpack(await connection.call("placement"))
            if newest.epoch:  # a server that has just restarted knows none yet
                self.placement = newest

    async def _carry(self, connection: Connection) -> None:
        """Send the queue in batches, one at a time, until the connection or the session ends."""
        while not self.failure:
            if not self._queue:
                self._more = trio.Event()
                await self._more.wait()
            with trio.move_on_after(GATHER_S):
                await self._urgent.wait()
            batch = self._batch()
            self.table.changes.clear()  # the replica has no store
            try:
                self._acknowledge(await connection.call("apply", self._acked + 1, batch))
            except FilesystemError as error:
                if error.errno == errno.ESTALE:
                    self._fail(str(error))
                    break
                log.error("the inode table could not store %d ops, will try again: %s", len(batch), error.strerror)
                await trio.sleep(HEARTBEAT_S)
        connection.close()

    def _batch(self) -> list[Op]:
        """The next ops to send; the last of them may pass BATCH_MAX_BYTES."""
        batch, size = [], 0
        for op in islice(self._queue, BATCH_MAX_OPS):
            batch.append(op)
            size += sum(len(part) for part in op if isinstance(part, bytes))
            if size >= BATCH_MAX_BYTES:
                break
        return batch

    def _acknowledge(self, applied: int) -> None:
        while self._acked < applied:
            self._queue.popleft()
            self._acked += 1
        self._signal()

    def _fail(self, reason: str) -> None:
        log.error("this mount's session is lost, nothing more can be written through it: %s", reason)
        self.failure = reason
        self._signal()

    def _signal(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()
