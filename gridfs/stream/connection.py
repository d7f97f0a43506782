"""A client's end of a stream: requests go out as they are submitted, replies come back in order."""

from __future__ import annotations

import errno
import socket
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import trio

from gridfs.buffers import Buffer
from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.stream import local
from gridfs.stream.handshake import Identity, prove_to_server
from gridfs.stream.lookout import SHORT_S
from gridfs.stream.wire import Wire, pack_frame
from gridfs.types import Address

REPLY_TIMEOUT_S = 30.0
CONNECT_TIMEOUT_S = 5.0
_LOCAL_TIMEOUT_S = 1.0
"""For the whole handshake on a Unix socket: whoever does not answer by then may do so on TCP."""
_CHECK_INTERVAL_S = 1.0
PENDING_MAX = 1 << 16
"""Requests without a reply on one connection; callers have far tighter bounds of their own."""
_BATCH_BUFFERS = 256
"""Handed to one sendmsg(2); the system allows 1024."""
_GATHERED_MAX_BYTES = 64 << 10
"""A larger payload is worth a sendmsg(2) of its own."""
_NO_ROOM = memoryview(bytearray())


class Reply:
    """The reply to come of one request. `outcome` is set before `done`; callbacks run in the connection's receiver."""

    __slots__ = ("_callback", "_done", "_look", "error", "into", "number", "payload_bytes", "result", "submitted_s")

    def __init__(
        self,
        number: int,
        into: memoryview | None,
        callback: Callable[[Reply], None] | None,
        look: Callable[[Reply], None] | None = None,
    ) -> None:
        self.number, self.into, self._callback, self._look = number, into, callback, look
        self._done: trio.Event | None = None
        self.error: Exception | None = None
        self.result: Any = None
        self.payload_bytes = -1
        self.submitted_s = trio.current_time()

    def finish(self, result: Any, payload_bytes: int, error: Exception | None) -> None:
        """Settle it, once; called by the connection."""
        self.result, self.payload_bytes, self.error = result, payload_bytes, error
        self.into = self._look = None
        if self._done is not None:
            self._done.set()
        if self._callback:
            self._callback(self)

    def look(self) -> None:
        """Settle it now, if it is unsettled and about to come; for whoever is going to wait for it. Does not yield."""
        if self._look is not None:
            self._look(self)

    async def wait(self) -> Any:
        """The result; raises FilesystemError as the server did, or ConnectionLost.

        `payload_bytes` of the reply's payload are then in the buffer that the request named. Cancelling the wait does
        not take the request back, and the buffer must be left alone until the connection has settled the reply.
        """
        self.look()
        if self.payload_bytes < 0:
            self._done = trio.Event()
            await self._done.wait()
        if self.error:
            raise self.error
        return self.result


class Connection:
    """An authenticated stream to a server.

    State: `_pending` (requests in the order sent) and `_unsent` (what the kernel would not take yet, or has not been handed)
    change only in `submit`, in `Reply.look` and in the two tasks of `run`, none of which awaits between reading and changing
    them. Whoever starts `run` owns those tasks: the connection ends with them, or by `close`, or when a reply is overdue;
    then every pending request fails with ConnectionLost, and so does every later one.
    """

    def __init__(self, wire: Wire, greeting: Identity, reply_timeout_s: float | None = None) -> None:
        self._wire, self.greeting = wire, greeting
        self._reply_timeout_s = REPLY_TIMEOUT_S if reply_timeout_s is None else reply_timeout_s
        self._pending: deque[Reply] = deque()
        self._unsent: list[Buffer] = []
        self._is_full = False
        """The kernel has not taken all that it was handed last."""
        self._more_to_send = trio.Event()
        self._numbers = 0
        self._heard_s = 0.0
        """When the last reply came."""
        self._is_quick = False
        """Whether that was soon after its request."""
        self._lost: ConnectionLost | None = None

    @staticmethod
    async def open(address: Address, secret: bytes, identity: Identity, **options: Any) -> Connection:
        """Connect and authenticate, on this host over a Unix socket, and over TCP where that does not succeed.

        Raises ConnectionLost, or AuthenticationFailed when either end refuses the other.
        """
        sock = local.connect(address)
        if sock is not None:
            with suppress(ConnectionLost, AuthenticationFailed), trio.move_on_after(_LOCAL_TIMEOUT_S):
                return await Connection._prove(sock, secret, identity, options)
        return await Connection._prove(await _connect(address), secret, identity, options)

    @staticmethod
    async def _prove(sock: socket.socket, secret: bytes, identity: Identity, options: dict[str, Any]) -> Connection:
        wire = Wire(sock)
        try:
            return Connection(wire, await prove_to_server(wire, secret, identity), **options)
        except BaseException:
            wire.close()
            raise

    @property
    def lost(self) -> bool:
        """True once the connection has ended; it does not come back."""
        return self._lost is not None

    def submit(
        self,
        method: str,
        *arguments: Any,
        payload: Buffer = b"",
        into: memoryview | None = None,
        callback: Callable[[Reply], None] | None = None,
        may_wait: bool = False,
    ) -> Reply:
        """Send a request; on one connection the server carries requests out in the order they were submitted.

        `payload` must not change until the reply is there. `into` gets the reply's payload; one that does not fit is an
        error. `callback` runs when the reply is settled, and must neither raise nor block. A small request that `may_wait` goes
        out together with those that follow, if the server has others to answer before: with the first that may not wait,
        or once somebody waits for a reply or the loop's other tasks have their turn.
        """
        if self._lost:
            raise ConnectionLost(str(self._lost)) from self._lost
        if len(self._pending) >= PENDING_MAX:
            raise FilesystemError(errno.EAGAIN, "too many requests without a reply")
        self._numbers += 1
        reply = Reply(self._numbers, into, callback, self._look_for)
        buffers: list[Buffer] = [pack_frame([self._numbers, method, arguments], len(payload))]
        if len(payload):
            buffers.append(payload)
        gathers = may_wait and bool(self._pending) and len(payload) <= _GATHERED_MAX_BYTES
        self._pending.append(reply)
        self._unsent += buffers
        if not (gathers or self._is_full):
            self._send_now()
        if self._unsent:
            self._more_to_send.set()
        return reply

    def _send_now(self) -> None:
        """Hand the kernel what it takes of what is unsent, some of it if that is much."""
        batch, rest = self._unsent[:_BATCH_BUFFERS], self._unsent[_BATCH_BUFFERS:]
        try:
            left = self._wire.send_now(batch)
        except ConnectionLost as lost:
            self.close(lost)
        else:
            self._unsent, self._is_full = left + rest, bool(left)

    async def call(self, method: str, *arguments: Any, payload: Buffer = b"", into: memoryview | None = None) -> Any:
        """`submit`, and wait for the result."""
        return await self.submit(method, *arguments, payload=payload, into=into).wait()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Carry requests and replies until the connection ends; never raises but for cancellation."""
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._send_rest)
                nursery.start_soon(self._watch)
                task_status.started()
                await self._receive_replies()
        except* ConnectionLost as lost:
            self.close(ConnectionLost(str(lost.exceptions[0])))
        finally:
            self.close(ConnectionLost("the connection's owner ended it"))

    async def _send_rest(self) -> None:
        while True:
            await self._more_to_send.wait()
            self._more_to_send = trio.Event()
            while self._unsent:
                self._send_now()
                if self._is_full:
                    await self._wire.writable()

    async def _receive_replies(self) -> None:
        while True:
            (number, code, result), payload_bytes = await self._wire.receive()
            room = self._room_for(number, payload_bytes)
            if payload_bytes:
                await self._wire.receive_payload(room)
            self._settle(code, result, payload_bytes)

    def _look_for(self, reply: Reply) -> None:
        """Take in replies up to this one while they come soon, if the last one came soon; and what came together with them.

        The receiver waits for the kernel, and would not see what has been taken from there.
        """
        if self._unsent and not self._is_full:
            self._send_now()
        if not self._is_quick:
            return
        try:
            while frame := self._wire.receive_soon() if reply.payload_bytes < 0 else self._wire.staged():
                (number, code, result), payload = frame
                self._room_for(number, len(payload))[:] = payload
                self._settle(code, result, len(payload))
        except ConnectionLost as lost:
            self.close(lost)

    def _room_for(self, number: int, payload_bytes: int) -> memoryview:
        """Where the payload of the next reply goes, which is that to request `number`."""
        if not self._pending or self._pending[0].number != number:
            raise ConnectionLost(f"the server answered request {number}, which is not the next")
        room = self._pending[0].into
        if payload_bytes and (room is None or payload_bytes > len(room)):
            raise ConnectionLost(f"a payload of {payload_bytes} bytes has no room")
        return _NO_ROOM if room is None else room[:payload_bytes]

    def _settle(self, code: int, result: Any, payload_bytes: int) -> None:
        """The next reply is here, its payload in its place."""
        reply = self._pending.popleft()
        self._heard_s = trio.current_time()
        self._is_quick = self._heard_s - reply.submitted_s < SHORT_S
        reply.finish(result, payload_bytes, FilesystemError(code, result) if code else None)

    async def _watch(self) -> None:
        """End the connection when a reply is overdue: nothing waits for ever.

        Each reply starts the time anew: of many requests sent at once over a slow network the last is answered late, and
        that is no reason to lose all that are on their way.
        """
        while True:
            await trio.sleep(min(_CHECK_INTERVAL_S, self._reply_timeout_s / 10))
            if not self._pending:
                continue
            if trio.current_time() - max(self._heard_s, self._pending[0].submitted_s) > self._reply_timeout_s:
                raise ConnectionLost(f"no reply within {self._reply_timeout_s} s")

    def close(self, reason: ConnectionLost | None = None) -> None:
        """End the connection and fail what is pending. May be called again."""
        if self._lost:
            return
        self._lost = reason or ConnectionLost("the connection was closed")
        self._wire.close()
        pending, self._pending, self._unsent = self._pending, deque(), []
        for reply in pending:
            reply.finish(None, 0, ConnectionLost(str(self._lost)))


async def _connect(address: Address) -> socket.socket:
    """Connected over TCP. Raises ConnectionLost."""
    sock = trio.socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        with trio.fail_after(CONNECT_TIMEOUT_S):
            await sock.connect((address.host, address.port))
    except (OSError, trio.TooSlowError) as error:
        sock.close()
        raise ConnectionLost(f"cannot connect to {address.host}:{address.port}: {error or 'no answer'}") from error
    return socket.socket(fileno=sock.detach())
