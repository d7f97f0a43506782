"""Injected faults: what may go wrong between a client and a chunk server, at the n-th request of a kind.

A `Proxy` stands between them and passes whole frames on. The placement map names it in place of the server
(`running(..., interposed=True)`), so everything that uses the map goes through it.
"""

from __future__ import annotations

import errno
import math
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from enum import StrEnum
from typing import TYPE_CHECKING, Any

import msgpack
import trio

from gridfs.errors import ConnectionLost
from gridfs.stream import connection, handshake
from gridfs.stream.wire import Wire, pack_frame
from gridfs.types import Address

if TYPE_CHECKING:
    from tests.vfs.cluster import Cluster


class Kind(StrEnum):
    """What happens to a request."""

    FAIL = "fail"
    """It is answered with `Fault.code`; the server never hears of it."""
    DELAY = "delay"
    """It is held for `Fault.delay_s`, and all that follows it on its connection."""
    STALL = "stall"
    """It is held until the fault is over, and all that follows it; the server gets it then, even if the client has gone."""
    CUT_BEFORE = "cut before"
    """The connection ends, and the server never hears of it."""
    CUT_AFTER = "cut after"
    """The server carries it out, and the connection ends in place of the reply."""
    CUT_ANSWERED = "cut answered"
    """The reply still arrives; the connection ends right behind it."""
    TORN = "torn"
    """The server gets half of the payload. The client's side ends, the server's stays until the fault is over."""


@dataclass
class Fault:
    """Requests `n` to `n + times - 1` of `method`, counted from 1 over all connections it is set on, meet `kind`."""

    kind: Kind
    method: str
    n: int
    times: float = 1
    delay_s: float = 0.1
    code: int = errno.EIO
    seen: int = 0
    met: trio.Event = field(default_factory=trio.Event)
    """Set once a request has met it."""
    over: trio.Event = field(default_factory=trio.Event)
    through: trio.Event = field(default_factory=trio.Event)
    """Set once the server has answered a request that met it, or that request's connection has ended."""

    def meets(self, method: str) -> bool:
        """Count a request; True if it meets the fault."""
        if self.method != method or self.over.is_set():
            return False
        self.seen += 1
        if not self.n <= self.seen < self.n + self.times:
            return False
        self.met.set()
        return True


class Proxy:
    """Passes the connections of one chunk server on. Requests and replies stay in order."""

    def __init__(self, server: Address) -> None:
        self._server = server
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._listener.setblocking(False)
        self.address = Address(*self._listener.getsockname()[:2])
        self.faults: list[Fault] = []
        self.silent = False
        """While set, nobody says a word to new connections."""
        self.connections: dict[str, int] = {}
        """How many were made of each kind of stream; those that did not get through the handshake are not counted."""

    async def serve(self) -> None:
        """Serve until cancelled."""
        with self._listener:
            async with trio.open_nursery() as nursery:
                while True:
                    await trio.lowlevel.wait_readable(self._listener)
                    nursery.start_soon(self._attend, Wire(self._listener.accept()[0]))

    async def _attend(self, client: Wire) -> None:
        server: Wire | None = None
        try:
            if self.silent:
                await trio.sleep_forever()
            server = Wire(socket.create_connection(self._server))
            await self._shake_hands(client, server)
            async with trio.open_nursery() as nursery:
                pair = _Pair(client, server, self.faults)
                nursery.start_soon(pair.pass_replies)
                nursery.start_soon(pair.pass_requests)
        except* (ConnectionLost, OSError):
            pass
        finally:
            client.close()
            if server is not None:
                server.close()

    async def _shake_hands(self, client: Wire, server: Wire) -> None:
        for giver, taker in ((server, client), (client, server), (server, client)):
            header, _ = await giver.receive()
            await taker.send([pack_frame(header)])
            if giver is client:
                stream = msgpack.unpackb(header[1]).get("stream", "")
                self.connections[stream] = self.connections.get(stream, 0) + 1


class _Pair:
    """Both sides of one connection that has been passed through the handshake."""

    def __init__(self, client: Wire, server: Wire, faults: list[Fault]) -> None:
        self._client, self._server, self._faults = client, server, faults
        self._due_in, self._due_out = trio.open_memory_channel[tuple[int, Fault | None]](math.inf)

    async def pass_requests(self) -> None:
        """What the client had sent before it went is passed on, as the network does."""
        while True:
            try:
                header, payload = await _take(self._client)
            except ConnectionLost:
                self._due_in.close()  # the server's end stays until it has answered
                return
            fault = next((fault for fault in self._faults if fault.meets(header[1])), None)
            if fault is not None and not await self._delivers(fault, header, payload):
                continue
            self._due_in.send_nowait((header[0], fault))
            if fault is None or fault.kind is not Kind.FAIL:
                await self._server.send([pack_frame(header, len(payload)), payload])

    async def _delivers(self, fault: Fault, header: Any, payload: bytearray) -> bool:
        """Do what the fault does before the request; raises ConnectionLost if the request gets no further."""
        if fault.kind is Kind.DELAY:
            await trio.sleep(fault.delay_s)
        elif fault.kind is Kind.STALL:
            await fault.over.wait()
        elif fault.kind is Kind.CUT_BEFORE:
            raise ConnectionLost("cut before the request")
        elif fault.kind is Kind.TORN:
            await self._server.send([pack_frame(header, len(payload)), payload[: len(payload) // 2]])
            self._client.close()
            await fault.over.wait()
            raise ConnectionLost("torn")
        return True

    async def pass_replies(self) -> None:
        """Replies, in the order of the requests; those that nobody waits for any more come to nothing."""
        async for number, fault in self._due_out:
            if fault is not None and fault.kind is Kind.FAIL:
                header, payload = (number, fault.code, "as asked"), bytearray()
            else:
                header, payload = await self._reply(fault)
                assert header[0] == number
            if fault is not None and fault.kind is Kind.CUT_AFTER:
                raise ConnectionLost("cut after the request")
            try:
                await self._client.send([pack_frame(header, len(payload)), payload])
            except ConnectionLost:
                continue
            if fault is not None and fault.kind is Kind.CUT_ANSWERED:
                raise ConnectionLost("cut after the reply")

    async def _reply(self, fault: Fault | None) -> tuple[Any, bytearray]:
        try:
            return await _take(self._server)
        finally:
            if fault is not None:
                fault.through.set()


async def _take(wire: Wire) -> tuple[Any, bytearray]:
    header, payload_bytes = await wire.receive()
    payload = bytearray(payload_bytes)
    await wire.receive_payload(memoryview(payload))
    return header, payload


@contextmanager
def faulty(
    cluster: Cluster, node: str | None, method: str, n: int, kind: Kind, *, times: float = 1, **details: Any
) -> Iterator[Fault]:
    """Within the context request `n` of `method` to `node` meets the fault; without a node, of all requests to any.

    It is over with the context, or when `over` is set: what it stalls then goes on.
    """
    fault = Fault(kind, method, n, times, **details)
    proxies = [each.proxy for each in cluster.nodes if each.proxy is not None and node in (None, each.name)]
    assert proxies, f"no proxy stands before {node}"
    for proxy in proxies:
        proxy.faults.append(fault)
    try:
        yield fault
    finally:
        fault.over.set()
        for proxy in proxies:
            proxy.faults.remove(fault)


@contextmanager
def deadlines(reply_s: float = 1.0, connect_s: float = 1.0) -> Iterator[None]:
    """Within the context clients of chunk servers are less patient: nobody need wait as long as programs do."""
    kept = connection.REPLY_TIMEOUT_S, connection.CONNECT_TIMEOUT_S, handshake.TIMEOUT_S
    connection.REPLY_TIMEOUT_S, connection.CONNECT_TIMEOUT_S, handshake.TIMEOUT_S = reply_s, connect_s, connect_s
    try:
        yield
    finally:
        connection.REPLY_TIMEOUT_S, connection.CONNECT_TIMEOUT_S, handshake.TIMEOUT_S = kept
