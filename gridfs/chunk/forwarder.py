"""Sending bytes on to the chunk servers that hold the other copies of a chunk."""

from __future__ import annotations

import secrets
from collections import defaultdict
from typing import Any

import trio

from gridfs.buffers import Buffer
from gridfs.stream.connection import Connection, Reply
from gridfs.types import Address

COPY_TIMEOUT_S = 5.0
"""Patience with the server of another copy: much less than a client's with us (30 s), so it hears which copy is wanting."""


class Forwarder:
    """One connection to each server that copies were sent to, opened when first needed and again after it was lost.

    Owned by the trio thread of `run`, which holds the connections. What is submitted to one server arrives there in the order
    of the calls: `_locks` keeps it while a connection is being opened.
    """

    def __init__(self, secret: bytes) -> None:
        self._secret, self._id = secret, secrets.token_hex(8)
        self._connections: dict[Address, Connection] = {}
        self._locks: dict[Address, trio.Lock] = defaultdict(trio.Lock)
        self._nursery: trio.Nursery

    async def run(self) -> None:
        """Hold the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await trio.sleep_forever()

    async def submit(self, address: Address, method: str, *arguments: Any, payload: Buffer) -> Reply:
        """Send a request, whose `payload` must not change until the reply is there.

        Raises ConnectionLost, AuthenticationFailed.
        """
        async with self._locks[address]:
            connection = self._connections.get(address)
            if connection is None or connection.lost:
                identity = {"role": "server", "client": self._id, "stream": "forward"}
                connection = await Connection.open(address, self._secret, identity, reply_timeout_s=COPY_TIMEOUT_S)
                await self._nursery.start(connection.run)
                self._connections[address] = connection
            return connection.submit(method, *arguments, payload=payload)
