"""Taking looks at a filesystem that is in use."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any, NamedTuple

import trio

from gridfs.errors import ConnectionLost, GridfsError
from gridfs.fsck.compare import Fault, Look, certain, faults
from gridfs.meta.thin import Say, ThinClient
from gridfs.stream.connection import Connection
from gridfs.stream.standing import standing
from gridfs.types import ChunkId, PlacementMap, PlacementNode

PAUSE_S = 3.0
"""Between two looks: a mount commits sizes every second, and its bytes, drops and cuts are under way for less."""
PATIENCE_S = 10.0
"""How long a server that is counted as alive may not answer: the scheduler needs some seconds to see that one is lost."""
_RETRY_S = 0.5


class Finding(NamedTuple):
    """The newest look, and the faults that are certain."""

    look: Look
    faults: list[Fault]


class Examiner:
    """Takes looks. Owned by one task; the connections are those of `stack`, and end with it."""

    def __init__(self, client: ThinClient, secret: bytes, stack: AsyncExitStack, say: Say, pause_s: float = PAUSE_S) -> None:
        self.client = client
        self._secret, self._stack, self._say, self._pause_s = secret, stack, say, pause_s
        self._connections: dict[str, Connection] = {}

    async def examine(self) -> Finding:
        """Look once, and if anything seems wrong once more after a pause; `gridfs.fsck.compare` says why that is certain.

        Raises GridfsError when a living chunk server does not answer, or nobody says where the servers are, ConnectionLost when
        the inode table does not answer.
        """
        look = await self._look()
        found = await trio.to_thread.run_sync(faults, look)
        if found:
            self._say("looking again at what seems wrong")
            await trio.sleep(self._pause_s)
            look = await self._look()
            found = certain(found, await trio.to_thread.run_sync(faults, look))
        return Finding(look, found)

    async def _look(self) -> Look:
        """Inventories first, then the table: the order matters."""
        inventories = await self._inventories()
        snapshot = await self.client.snapshot(self._say)
        return Look(inventories, snapshot.table, snapshot.placement, snapshot.mounts)

    async def ask(self, server: str, method: str, *arguments: Any) -> Any:
        """The answer of a chunk server, on the connection on which it told its inventory last. Raises ConnectionLost."""
        return await self._connections[server].call(method, *arguments)

    async def _inventories(self) -> dict[str, dict[ChunkId, int]]:
        deadline_s = trio.current_time() + PATIENCE_S
        while True:
            placement = await self.client.placement()
            trouble = "nobody says where the chunks are: the scheduler does not run" if not placement.epoch else ""
            inventories = {}
            for node in placement.nodes:
                if node.alive:
                    try:
                        inventories[node.server] = await self._inventory(node, placement)
                    except ConnectionLost as lost:
                        trouble = f"the chunk server on {node.host} does not answer ({lost})"
            if not trouble:
                return inventories
            if trio.current_time() > deadline_s:
                raise GridfsError(f"{trouble}: see gridfs status, and try again")
            await trio.sleep(_RETRY_S)

    async def _inventory(self, node: PlacementNode, placement: PlacementMap) -> dict[ChunkId, int]:
        self._say(f"reading the inventory of {node.host}, one of {len(placement.nodes)} chunk servers")
        connection = self._connections.get(node.server)
        if connection is None or connection.lost:
            identity = {"role": "client"}
            connection = await self._stack.enter_async_context(standing(node.address, self._secret, identity))
            self._connections[node.server] = connection
        lengths: dict[ChunkId, int] = {}
        while page := await connection.call("inventory"):
            lengths.update((ChunkId(ino, index), length) for ino, index, length in page)
        return lengths
