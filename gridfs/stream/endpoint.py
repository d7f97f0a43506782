"""A server's end of the streams: accepts, authenticates, and carries out each connection's requests in order."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple, Protocol

import trio

from gridfs.buffers import Buffer
from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.stream import local
from gridfs.stream.handshake import Identity, challenge_client
from gridfs.stream.wire import Wire, pack_frame
from gridfs.types import Address

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
"""Beyond it new connections are closed at once: a stranger cannot exhaust our descriptors."""
_BACKLOG = 128


class Answer(NamedTuple):
    """A reply's result and payload; `sent` is called once the payload is no longer needed, sent or not."""

    result: Any = None
    payload: tuple[Buffer, ...] = ()
    sent: Callable[[], None] | None = None


Methods = dict[str, Callable[..., Awaitable[Answer]]]


class Peer:
    """One authenticated connection, as the service sees it."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.identity: Identity = {}
        self.payload_bytes = 0
        """What is left of the payload of the request that is being carried out."""

    async def receive_payload(self, view: memoryview) -> None:
        """Fill `view` with the next bytes of the request's payload."""
        self.payload_bytes -= len(view)
        await self._wire.receive_payload(view)

    def disconnect(self) -> None:
        """End the connection; `Service.goodbye` follows."""
        self._wire.close()


class Service(Protocol):
    """What a server does with authenticated connections. All of it runs in the endpoint's trio thread."""

    methods: Methods
    """Request name -> coroutine function (peer, *arguments). It raises FilesystemError to answer with an errno."""

    def greet(self, identity: Identity) -> Identity:
        """Accept a proven client and say hello, or refuse it with AuthenticationFailed."""

    def welcome(self, peer: Peer) -> None:
        """A client has been greeted."""

    def goodbye(self, peer: Peer) -> None:
        """The connection of a welcomed client has ended."""


class Endpoint:
    """Listens on one address, and beside it for its own host, from construction on; `serve` works until it is cancelled."""

    def __init__(self, address: Address, secret: bytes, service: Service) -> None:
        listener = socket.create_server(tuple(address), backlog=_BACKLOG)
        listener.setblocking(False)
        self.address = Address(*listener.getsockname()[:2])
        self._listeners = [sock for sock in (listener, local.listen(self.address, _BACKLOG)) if sock]
        self._secret, self._service = secret, service
        self._connections = 0

    async def serve(self) -> None:
        """Accept and serve; every connection's task lives in this call's nursery and ends with it."""
        try:
            async with trio.open_nursery() as nursery:
                for listener in self._listeners:
                    nursery.start_soon(self._accept, listener, nursery)
        finally:
            for listener in self._listeners:
                listener.close()

    async def _accept(self, listener: socket.socket, nursery: trio.Nursery) -> None:
        while True:
            await trio.lowlevel.wait_readable(listener)
            try:
                sock, _ = listener.accept()
            except (BlockingIOError, ConnectionError):
                continue
            except OSError as error:  # out of descriptors: those who are served go on
                log.error("cannot accept a connection: %s", error)
                await trio.sleep(0.1)
                continue
            nursery.start_soon(self._attend, sock)

    async def _attend(self, sock: socket.socket) -> None:
        """One connection, from the handshake to its end; whatever goes wrong ends this connection only."""
        wire = Wire(sock)
        if self._connections >= CONNECTIONS_MAX:
            log.warning("refused a connection: %d are open already", self._connections)
            wire.close()
            return
        self._connections += 1
        try:
            peer = Peer(wire)
            peer.identity = await challenge_client(wire, self._secret, self._service.greet)
            self._service.welcome(peer)
            try:
                await self._carry_out_requests(wire, peer)
            finally:
                self._service.goodbye(peer)
        except AuthenticationFailed as error:
            log.info("turned a connection away: %s", error)
        except ConnectionLost as error:
            log.debug("a connection ended: %s", error)
        except Exception:
            log.exception("a connection failed")
        finally:
            self._connections -= 1
            wire.close()

    async def _carry_out_requests(self, wire: Wire, peer: Peer) -> None:
        while True:
            (number, method, arguments), peer.payload_bytes = await wire.receive()
            code, answer = await self._carry_out(peer, method, arguments)
            try:
                head = pack_frame([number, code, answer.result], sum(map(len, answer.payload)))
                await wire.send([head, *answer.payload])
            finally:
                if answer.sent:
                    answer.sent()

    async def _carry_out(self, peer: Peer, method: str, arguments: tuple[Any, ...]) -> tuple[int, Answer]:
        """The errno, 0 for success, and the answer of one request. ConnectionLost passes."""
        try:
            return 0, await self._service.methods[method](peer, *arguments)
        except FilesystemError as error:
            return error.errno or errno.EIO, Answer(error.strerror)
        except ConnectionLost:
            raise
        except Exception as error:
            log.exception("request %s failed", method)
            return errno.EIO, Answer(f"{type(error).__name__}: {os.strerror(errno.EIO)}")
