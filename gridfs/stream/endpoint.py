"""A server's end of the streams: accepts, authenticates, and carries out each connection's requests in order."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple, Protocol

import trio

from gridfs.buffers import Buffer
from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.stream import local
from gridfs.stream.handshake import Identity, challenge_client
from gridfs.stream.lock import Promptly
from gridfs.stream.wire import Wire, pack_frame
from gridfs.types import Address

log = logging.getLogger(__name__)

CONNECTIONS_MAX = 512
"""Beyond it new connections are closed at once: a stranger cannot exhaust our descriptors."""
LATER_MAX = 64
"""Requests of one connection that have been carried out and whose answers are not there yet; then no more are begun."""
_BACKLOG = 128


class Answer(NamedTuple):
    """A reply's result and payload; `sent` is called once the payload is no longer needed, sent or not.

    `later` gives the true answer in its place, or raises as a request does: it is awaited while the next requests are carried
    out. Answers are sent in the order of their requests all the same.
    """

    result: Any = None
    payload: tuple[Buffer, ...] = ()
    sent: Callable[[], None] | None = None
    later: Callable[[], Awaitable[Answer]] | None = None


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
        """One request after the other, until the connection ends: raises ConnectionLost."""
        lost: BaseException | None = None
        try:
            async with trio.open_nursery() as nursery:
                answers = _Answers(wire)
                nursery.start_soon(answers.send_later_ones)
                nursery.start_soon(answers.send_gathered)
                while True:
                    (number, method, arguments), peer.payload_bytes = await wire.receive()
                    request = partial(self._carry_out, peer, method, arguments)
                    await answers.give(number, *await _carried_out(request, method))
        except* ConnectionLost as several:
            lost = several.exceptions[0]
        raise ConnectionLost(str(lost)) from lost

    async def _carry_out(self, peer: Peer, method: str, arguments: tuple[Any, ...]) -> Answer:
        return await self._service.methods[method](peer, *arguments)


class _Answers:
    """The answers of one connection, in order.

    One goes out at once, in the task that has carried out its request, unless one that comes later is before it: then
    `send_later_ones` sends it, in its turn. `_unsent` counts what that task has not sent yet. And a short one to a request that
    has the next already behind it is gathered: it goes out with the next that is not, or as soon as that task has to wait for
    anything, by `send_gathered`. Who holds `_sending` sends, and what was gathered before its own.
    """

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._sending = trio.Lock()
        self._gathered: list[Buffer] = []
        """Frames, bounded by the requests that fit into a wire's staging buffer."""
        self._has_gathered = trio.Event()
        self._unsent = 0
        self._put, self._take = trio.open_memory_channel[tuple[int, int, Answer]](LATER_MAX)

    async def give(self, number: int, code: int, answer: Answer) -> None:
        """Send the answer, gather or queue it; waits while LATER_MAX are queued. Raises ConnectionLost."""
        if answer.later is None and not self._unsent:
            if answer.payload or not self._wire.has_staged:
                await self._send(number, code, answer)
            else:
                self._gathered.append(pack_frame([number, code, answer.result]))
                self._has_gathered.set()
                _let_go(answer)
            return
        self._unsent += 1
        try:
            await self._put.send((number, code, answer))
        except BaseException:
            _let_go(answer)
            raise

    async def send_later_ones(self) -> None:
        """Send what was queued, as it comes, until cancelled. Raises ConnectionLost."""
        try:
            async for number, code, answer in self._take:
                if answer.later is not None:
                    await self._send(number, *await _carried_out(answer.later, "that answers later"))
                else:
                    await self._send(number, code, answer)
                self._unsent -= 1
        finally:
            with suppress(trio.WouldBlock):
                while True:
                    _let_go(self._take.receive_nowait()[2])

    async def _send(self, number: int, code: int, answer: Answer) -> None:
        try:
            head = pack_frame([number, code, answer.result], sum(map(len, answer.payload)))
            async with Promptly(self._sending):
                await self._wire.send([*self._take_gathered(), head, *answer.payload])
        finally:
            _let_go(answer)

    async def send_gathered(self) -> None:
        """Send what was gathered, whenever it is this task's turn, until cancelled. Raises ConnectionLost."""
        while True:
            await self._has_gathered.wait()
            self._has_gathered = trio.Event()
            async with Promptly(self._sending):
                await self._wire.send(self._take_gathered())

    def _take_gathered(self) -> list[Buffer]:
        gathered, self._gathered = self._gathered, []
        return gathered


def _let_go(answer: Answer) -> None:
    if answer.sent:
        answer.sent()


async def _carried_out(request: Callable[[], Awaitable[Answer]], method: str) -> tuple[int, Answer]:
    """The errno, 0 for success, and the answer of one request. ConnectionLost passes."""
    try:
        return 0, await request()
    except FilesystemError as error:
        return error.errno or errno.EIO, Answer(error.strerror)
    except ConnectionLost:
        raise
    except Exception as error:
        log.exception("request %s failed", method)
        return errno.EIO, Answer(f"{type(error).__name__}: {os.strerror(errno.EIO)}")
