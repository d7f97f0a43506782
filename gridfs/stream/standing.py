"""A connection for the length of a context, for those who have no task of their own to keep it."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from gridfs.stream.connection import Connection
from gridfs.stream.handshake import Identity
from gridfs.types import Address


@asynccontextmanager
async def standing(address: Address, secret: bytes, identity: Identity, **options: Any) -> AsyncIterator[Connection]:
    """Connect as `Connection.open` does, and raise as that; the connection ends with the context."""
    connection = await Connection.open(address, secret, identity, **options)
    failure: BaseException | None = None
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        try:
            yield connection
        except (Exception, KeyboardInterrupt) as error:  # noqa: BLE001 - raised below: the nursery would make it a group
            failure = error
        nursery.cancel_scope.cancel()
    if failure is not None:
        raise failure
