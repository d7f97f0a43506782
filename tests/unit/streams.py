"""Two ends of a stream in one process."""

from __future__ import annotations

import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.stream.connection import Connection
from gridfs.stream.endpoint import Answer, Endpoint, Methods, Peer
from gridfs.stream.wire import Wire
from gridfs.types import Address

SECRET = secrets.token_bytes(32)
ANY_PORT = Address("127.0.0.1", 0)
LIMIT_S = 20.0


class Echo:
    """A service that answers with what it was sent."""

    def __init__(self) -> None:
        self.methods: Methods = {
            "echo": self.echo,
            "fail": self.fail,
            "crash": self.crash,
            "hang": self.hang,
            "later": self.later,
        }
        self.peers = 0
        self.begun = 0
        self.now = trio.Event()
        """What `later` waits for."""

    def greet(self, identity: dict[str, Any]) -> dict[str, Any]:
        if identity.get("epoch") == 0:
            raise AuthenticationFailed("epoch 0 is fenced")
        return {"hello": identity.get("client")}

    def welcome(self, peer: Peer) -> None:
        self.peers += 1

    def goodbye(self, peer: Peer) -> None:
        self.peers -= 1

    async def echo(self, peer: Peer, *arguments: Any) -> Answer:
        payload = memoryview(bytearray(peer.payload_bytes))
        await peer.receive_payload(payload)
        return Answer(arguments, (payload,))

    async def fail(self, peer: Peer, code: int) -> Answer:
        raise FilesystemError(code, "as asked")

    async def crash(self, peer: Peer) -> Answer:
        raise RuntimeError("a bug")

    async def hang(self, peer: Peer) -> Answer:
        await trio.sleep_forever()
        raise AssertionError

    async def later(self, peer: Peer, code: int) -> Answer:
        async def once_it_is_time() -> Answer:
            await self.now.wait()
            return await self.fail(peer, code) if code else Answer("late")

        self.begun += 1
        return Answer(later=once_it_is_time)


@asynccontextmanager
async def serving(address: Address = ANY_PORT, make: type[Echo] = Echo) -> AsyncIterator[tuple[Endpoint, Echo]]:
    service = make()
    async with trio.open_nursery() as nursery:
        endpoint = Endpoint(address, SECRET, service)
        nursery.start_soon(endpoint.serve)
        yield endpoint, service
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def connected(make: type[Echo] = Echo, **options: Any) -> AsyncIterator[Connection]:
    async with serving(make=make) as (endpoint, _), trio.open_nursery() as nursery:
        connection = await Connection.open(endpoint.address, SECRET, {"client": "me"}, **options)
        await nursery.start(connection.run)
        with trio.fail_after(LIMIT_S):
            yield connection
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def talking() -> AsyncIterator[tuple[Connection, socket.socket]]:
    """A connection, and the bare socket at the server's end of it."""
    ours, theirs = socket.socketpair()
    with theirs, trio.fail_after(LIMIT_S):
        async with trio.open_nursery() as nursery:
            connection = Connection(Wire(ours), {})
            await nursery.start(connection.run)
            yield connection, theirs
            nursery.cancel_scope.cancel()
