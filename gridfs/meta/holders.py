"""What the inode table tells the chunk servers: which sessions are fenced, and which chunks nobody needs any more."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Callable, Iterable

import trio

from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.stream.standing import standing
from gridfs.types import ChunkId, PlacementMap, PlacementNode

log = logging.getLogger(__name__)

RETRY_S = 1.0
CALL_TIMEOUT_S = 5.0
FENCE_TIMEOUT_S = 5.0
"""How long a fence may hold up those who wait for it. A server that is reached later is told before it is used again."""


class Holders:
    """Keeps every chunk server of the placement map told. `run` owns the connections, which last for one task each.

    A fence is (epoch, live epochs): of all sessions up to `epoch` only the live ones may go on.
    """

    def __init__(self, secret: bytes, placement: Callable[[], PlacementMap]) -> None:
        self._secret, self._placement = secret, placement
        self._fence: tuple[int, tuple[int, ...]] = (0, ())
        self._told: dict[str, int] = {}
        self._drops: dict[str, list[ChunkId]] = defaultdict(list)
        self._failed: set[str] = set()
        """Servers that could not be told what there was to tell the last time."""
        self._more = trio.Event()
        self._progress = trio.Event()

    def fence(self, epoch: int, live: Iterable[int]) -> None:
        """Sessions up to `epoch` that are not in `live` are over; the servers hear of it in the background."""
        self._fence = (epoch, tuple(live))
        self._more.set()

    def placed(self) -> None:
        """There is another placement map, perhaps with servers that know nothing yet."""
        self._more.set()

    async def fenced(self) -> None:
        """Return once every server that lives knows the newest fence, or FENCE_TIMEOUT_S are over."""
        with trio.move_on_after(FENCE_TIMEOUT_S) as scope:
            while self._ignorant():
                await self._progress.wait()
        if scope.cancelled_caught:
            hosts = ", ".join(node.host for node in self._ignorant())
            log.warning("%s could not be told of a fence; it will be before it is used again", hosts)

    def drop_soon(self, server: str, chunk_id: ChunkId) -> None:
        """Have a chunk forgotten of which the table's store has no trace any more."""
        self._drops[server].append(chunk_id)
        self._more.set()

    def _ignorant(self) -> list[PlacementNode]:
        """The living servers that do not know the newest fence."""
        epoch = self._fence[0]
        if not epoch:
            return []
        return [node for node in self._placement().nodes if node.alive and self._told.get(node.server, 0) < epoch]

    async def run(self) -> None:
        """Tell what there is to tell, until cancelled."""
        while True:
            await self._more.wait()
            self._more = trio.Event()
            if not self._placement().epoch:
                continue  # who there is is not known yet; `placed` follows
            nodes = {node.server: node for node in self._placement().nodes if node.alive}
            self._drops = defaultdict(list, {server: ids for server, ids in self._drops.items() if server in nodes})
            servers = {node.server for node in self._ignorant()} | set(self._drops)
            async with trio.open_nursery() as nursery:
                for server in servers:
                    nursery.start_soon(self._tell, nodes[server])
            if self._failed & servers:
                self._failed.clear()
                await trio.sleep(RETRY_S)
                self._more.set()

    async def _tell(self, node: PlacementNode) -> None:
        epoch, live = self._fence
        identity = {"role": "table", "epoch": epoch, "live": live}
        drops = self._drops.pop(node.server, [])
        try:
            with trio.fail_after(CALL_TIMEOUT_S):
                async with standing(node.address, self._secret, identity) as connection:
                    self._told[node.server] = epoch
                    self._signal()
                    if drops:
                        await connection.call("drop", drops)
        except (ConnectionLost, FilesystemError, trio.TooSlowError) as error:
            log.info("the chunk server on %s was not told: %s", node.host, error)
            self._drops[node.server] += drops
            self._failed.add(node.server)

    def _signal(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()
