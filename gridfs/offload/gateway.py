"""What jobs of a node reach of the filesystem: inode table and chunk servers, over connections that all of them share."""

from __future__ import annotations

import errno
import logging
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import uuid4

import trio

from gridfs.chunk.client import ChunkClient
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.meta.table import Op
from gridfs.meta.thin import REPLY_TIMEOUT_S, ThinClient
from gridfs.stream.connection import Connection
from gridfs.stream.thread import TrioThread
from gridfs.types import NO_PLACEMENT, Address, PlacementMap

log = logging.getLogger(__name__)
T = TypeVar("T")

PLACEMENT_INTERVAL_S = 1.0
TABLE_PATIENCE_S = 20.0
"""How long an op that may be repeated is tried again: the inode table is restarted within a few seconds."""
RETRY_S = 0.2


class Gateway:
    """A trio thread that owns all connections of a runner, and what tasks its jobs have there.

    Threads of jobs reach it through `call` and `call_now`; the coroutine methods are for tasks of its own thread, such as
    those that `nursery` holds. The bytes in flight are bounded by those who ask: each file that is read or written has a
    window of its own.
    """

    def __init__(self, secret: bytes) -> None:
        """Start; nothing is connected before it is needed. `connect` says where."""
        self._secret = secret
        self._identity = {"role": "client", "client": uuid4().hex, "epoch": 0}
        self._table_address: Address | None = None
        self._table: Connection | None = None
        self.placement = NO_PLACEMENT
        """The newest that is known."""
        self.chunks: ChunkClient
        self.nursery: trio.Nursery
        self._opening: trio.Lock
        self._thread = TrioThread("offload", self._main)

    def connect(self, inode_table: Address, fallback: PlacementMap) -> None:
        """Where the inode table is, and which chunk servers there are for as long as that does not say."""
        self.call_now(self._connect, inode_table, fallback)

    def call(self, function: Callable[..., Awaitable[T]], *arguments: Any) -> T:
        """What the coroutine function returns, run in the gateway's thread; from any other thread, which waits."""
        return self._thread.call_async(function, *arguments)

    def call_now(self, function: Callable[..., T], *arguments: Any) -> T:
        """As `call`, for a plain function: it sees a state between two steps of the gateway's tasks."""
        return self._thread.call(function, *arguments)

    def stop(self) -> None:
        """End all connections and tasks."""
        self._thread.stop()

    # -- in the gateway's thread -------------------------------------------------------------------------------------

    async def _main(self, started: Callable[[], None]) -> None:
        self._opening = trio.Lock()
        self.chunks = ChunkClient(self._secret, lambda: self._identity, lambda: self.placement, trio.lowlevel.checkpoint)
        async with trio.open_nursery() as nursery:
            self.nursery = nursery
            await nursery.start(self.chunks.run)
            started()
            while True:
                await trio.sleep(PLACEMENT_INTERVAL_S)
                if self._table_address is not None:
                    await self._try_to_refresh()

    async def _try_to_refresh(self) -> None:
        """The placement map that is known stays where this fails."""
        try:
            await self.refresh_placement()
        except (ConnectionLost, FilesystemError) as error:
            log.debug("no placement map: %s", error)
        except Exception:
            log.exception("the placement map cannot be read")

    def _connect(self, inode_table: Address, fallback: PlacementMap) -> None:
        if self._table_address not in (None, inode_table) and self._table is not None:
            self._table.close()
        self._table_address = inode_table
        if not self.placement.epoch:
            self.placement = fallback

    async def refresh_placement(self) -> None:
        """Ask the inode table for the placement map. Raises ConnectionLost, FilesystemError."""
        placement = await (await self._client()).placement()
        if placement.epoch >= self.placement.epoch:
            self.placement = placement

    async def _client(self) -> ThinClient:
        assert self._table_address is not None, "connect comes first"
        async with self._opening:
            if self._table is None or self._table.lost:
                self._table = await Connection.open(
                    self._table_address, self._secret, self._identity, reply_timeout_s=REPLY_TIMEOUT_S
                )
                await self.nursery.start(self._table.run)
            return ThinClient(self._table)

    async def execute(self, op: Op) -> Any:
        """The result of one op, durable and seen by every mount. Raises FilesystemError as the inode table does.

        After ConnectionLost it may have taken effect, or not.
        """
        return await (await self._client()).execute(op)

    async def repeat(self, op: Op) -> Any:
        """As `execute`, for an op that may be carried out twice: it is, until it is answered. Raises EIO when it never is."""
        give_up_s = trio.current_time() + TABLE_PATIENCE_S
        while True:
            try:
                return await self.execute(op)
            except ConnectionLost as lost:
                if trio.current_time() > give_up_s:
                    raise FilesystemError(errno.EIO, f"the inode table does not answer: {lost}") from lost
                await trio.sleep(RETRY_S)
