"""A client of the inode table without a replica: for commands, which ask a few questions and end."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, NamedTuple, TypeVar

import trio

from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError, GridfsError
from gridfs.meta.rows import load_page, loading, pages_of
from gridfs.meta.table import Op, Table
from gridfs.stream.connection import Connection
from gridfs.stream.standing import standing
from gridfs.types import Endpoints, PlacementMap

REPLY_TIMEOUT_S = 40.0
"""Longer than the server takes to fence a mount that hangs."""

T = TypeVar("T")
Say = Callable[[str], None]
"""Takes one short line about what is being done now."""


class Snapshot(NamedTuple):
    """The table at one moment, with the placement map and the number of mounts of the same time."""

    table: Table
    placement: PlacementMap
    mounts: int


class ThinClient:
    """One connection to the inode table's server; requests are answered one after another. Owned by one task.

    No request takes longer than REPLY_TIMEOUT_S. All raise ConnectionLost, and FilesystemError with what the server answers.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    @staticmethod
    @asynccontextmanager
    async def connected(endpoints: Endpoints) -> AsyncIterator[ThinClient]:
        """A client for the length of the context. Raises ConnectionLost, AuthenticationFailed."""
        identity = {"role": "client", "id": uuid.uuid4().hex}
        address, secret = endpoints.inode_table, endpoints.secret
        async with standing(address, secret, identity, reply_timeout_s=REPLY_TIMEOUT_S) as connection:
            yield ThinClient(connection)

    async def placement(self) -> PlacementMap:
        """The newest placement map; of epoch 0 while the server knows none."""
        return PlacementMap.unpack(await self._connection.call("placement"))

    async def snapshot(self, say: Say) -> Snapshot:
        """The whole table. Every op that a mount has applied before the call is in it: the write lease is called back."""
        say("waiting for the mounts' changes")
        told = await self._connection.call("snapshot")
        table, rows = Table(), 0
        with loading(table):
            while page := await self._connection.call("page"):
                try:
                    load_page(table, page)
                except KeyError as error:
                    raise GridfsError(
                        f"the inode table cannot be read: a row is about inode {error}, which is not in it"
                    ) from error
                rows += len(page[1])
                say(f"reading the inode table: {rows:,} rows")
        table.next_ino = max(table.next_ino, told["next_ino"])
        return Snapshot(table, PlacementMap.unpack(told["map"]), told["mounts"])

    async def execute(self, op: Op) -> Any:
        """The result of one op, durable and seen by every mount then. After ConnectionLost nobody knows: do not repeat it."""
        return await self._connection.call("execute", op)

    async def load(self, table: Table, say: Say) -> None:
        """Put `table` in the place of the server's, which has to be empty and not mounted; all of it, or nothing.

        Raises FilesystemError with a sentence when the server refuses.
        """
        rows = 0
        for page in pages_of(table):
            await self._connection.call("load", page)
            rows += len(page[1])
            say(f"sending the inode table: {rows:,} rows")
        say("making it durable")
        await self._connection.call("load", None, table.next_ino)


def run(endpoints: Endpoints, work: Callable[[ThinClient], Awaitable[T]]) -> T:
    """What `work` returns, run in trio with a client. Raises GridfsError with a sentence for what a server could not do."""

    async def main() -> T:
        async with ThinClient.connected(endpoints) as client:
            return await work(client)

    try:
        return trio.run(main)
    except AuthenticationFailed as error:
        raise GridfsError(f"the inode table refused this command ({error}): is it another filesystem's?") from error
    except ConnectionLost as error:
        raise GridfsError(f"the inode table does not answer ({error}): see gridfs status") from error
    except FilesystemError as error:
        raise GridfsError(str(error.strerror)) from error


def fetch(endpoints: Endpoints, say: Say) -> Table:
    """The whole table, from outside trio. Raises as `run`."""

    async def work(client: ThinClient) -> Table:
        return (await client.snapshot(say)).table

    return run(endpoints, work)


def load(endpoints: Endpoints, table: Table, say: Say) -> None:
    """`ThinClient.load`, from outside trio. Raises as `run`."""
    run(endpoints, lambda client: client.load(table, say))
