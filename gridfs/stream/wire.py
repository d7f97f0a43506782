"""Frames on one connected socket."""

from __future__ import annotations

import socket
import struct
from typing import Any

import msgpack
import trio

from gridfs.buffers import Buffer
from gridfs.errors import ConnectionLost
from gridfs.stream import local, lookout

_LENGTHS = struct.Struct(">II")
HEADER_MAX_BYTES = 8 << 20
"""A batch of operations fits many times over; a peer that announces more is broken."""
PAYLOAD_MAX_BYTES = 64 << 20
_STAGING_BYTES = 64 << 10
_FAIRNESS_BYTES = 4 << 20
"""After receiving this much without ever having to wait, a task lets others run."""
_FRAME_COST_BYTES = 128 << 10
"""What a frame counts as in that, beside its payload: carrying it out takes as long as copying so much, some 50 us."""


def pack_frame(header: Any, payload_bytes: int = 0) -> bytes:
    """The lengths and the header of a frame whose payload has `payload_bytes`."""
    packed: bytes = msgpack.packb(header)
    return _LENGTHS.pack(len(packed), payload_bytes) + packed


class Wire:
    """Whole frames in and out of a non-blocking socket.

    At most one task receives at a time, and one task sends at a time: the owner sees to it. Every method raises
    `ConnectionLost` once the socket has ended or failed; after that only `close` makes sense.
    """

    def __init__(self, sock: socket.socket, *, frame_max_bytes: int = HEADER_MAX_BYTES) -> None:
        sock.setblocking(False)
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        elif sock.family == socket.AF_UNIX:
            local.widen(sock)
        self._socket = sock
        self._lookout = lookout.here()
        if self._lookout is not None:
            self._lookout.watch(sock.fileno())
        self._in_frame = False
        """True while a part of a frame is waited for that is not its beginning."""
        self.frame_max_bytes = frame_max_bytes
        self._staging = memoryview(bytearray(_STAGING_BYTES))
        self._start = self._end = 0
        self._payload_bytes = 0
        self._unyielded_bytes = 0
        self.closed = False

    # -- sending -----------------------------------------------------------------------------------------------------

    def send_now(self, buffers: list[Buffer]) -> list[Buffer]:
        """Hand the kernel as much of `buffers` as it takes without waiting; returns what is left, empty when all went."""
        while buffers:
            try:
                sent = self._socket.sendmsg(buffers)
            except BlockingIOError:
                return buffers
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            buffers = _rest(buffers, sent)
        return buffers

    async def send(self, buffers: list[Buffer]) -> None:
        """Send all of `buffers`, waiting as long as the peer lets it."""
        while buffers := self.send_now(buffers):
            await self.writable()

    async def writable(self) -> None:
        """Wait until the kernel takes bytes again."""
        await self._wait(trio.lowlevel.wait_writable)

    # -- receiving ---------------------------------------------------------------------------------------------------

    async def receive(self) -> tuple[Any, int]:
        """The next frame's header, and how many payload bytes follow: they must be taken before the next `receive`."""
        if self._payload_bytes:
            await self.discard_payload()
        self._unyielded_bytes += _FRAME_COST_BYTES
        header_bytes, payload_bytes = self._checked(await self._take(_LENGTHS.size))
        self._in_frame = True
        header = _unpacked(await self._take(header_bytes))
        self._in_frame, self._payload_bytes = False, payload_bytes
        return header, payload_bytes

    def receive_soon(self) -> tuple[Any, memoryview] | None:
        """The next frame's header and payload, if it is small and all there now or soon; never yields.

        None if not, and then `receive` gives it; one task may be waiting in that, for bytes that the kernel has not got yet. So
        who got a frame takes those that `staged` gives, too. The payload is valid until the next call. For loops with a
        lookout; without one it is always None.
        """
        if self._lookout is None:
            return None
        while (frame := self.staged()) is None and self._is_between_frames and self._end < _STAGING_BYTES:
            if not self._lookout.soon(self._socket.fileno()):
                return None
            try:
                count = self._socket.recv_into(self._staging[self._end :])
            except BlockingIOError:
                return None
            except OSError as error:
                raise ConnectionLost(str(error)) from error
            if not count:
                return None  # `receive` says so
            self._end += count
        return frame

    def staged(self) -> tuple[Any, memoryview] | None:
        """The next frame, if all of it has been received already and nobody is receiving it."""
        lengths = self._staged_lengths()
        if lengths is None:
            return None
        header_bytes, payload_bytes = lengths
        head_bytes = _LENGTHS.size + header_bytes
        staged = self._staging[self._start : self._start + head_bytes + payload_bytes]
        header = _unpacked(staged[_LENGTHS.size : head_bytes])
        self._start += len(staged)
        if self._start == self._end:
            self._start = self._end = 0
        return header, staged[head_bytes:]

    @property
    def has_staged(self) -> bool:
        """Whether all of the next frame has been received already: `receive` is going to return at once."""
        return self._staged_lengths() is not None

    def _staged_lengths(self) -> tuple[int, int] | None:
        """Of the next frame's header and payload, if all of both are in the staging buffer and nobody is receiving them."""
        staged_bytes = self._end - self._start
        if not self._is_between_frames or staged_bytes < _LENGTHS.size:
            return None
        header_bytes, payload_bytes = self._checked(self._staging[self._start : self._start + _LENGTHS.size])
        return (header_bytes, payload_bytes) if staged_bytes >= _LENGTHS.size + header_bytes + payload_bytes else None

    @property
    def _is_between_frames(self) -> bool:
        return not (self._in_frame or self._payload_bytes or self.closed)

    def _checked(self, lengths: bytes | memoryview) -> tuple[int, int]:
        header_bytes, payload_bytes = _LENGTHS.unpack(lengths)
        if header_bytes > self.frame_max_bytes or payload_bytes > PAYLOAD_MAX_BYTES:
            raise ConnectionLost(f"the peer announced a frame of {header_bytes} + {payload_bytes} bytes")
        return header_bytes, payload_bytes

    async def receive_payload(self, view: memoryview) -> None:
        """Fill `view` with the next len(view) bytes of the payload."""
        if len(view) > self._payload_bytes:
            raise ConnectionLost("the payload is shorter than what the header promised")
        self._payload_bytes -= len(view)
        self._in_frame = True
        filled = self._from_staging(view)
        while filled < len(view):
            filled += await self._receive_into(view[filled:])
        self._in_frame = False

    async def discard_payload(self) -> None:
        """Drop what is left of the payload."""
        scratch = memoryview(bytearray(min(self._payload_bytes, _STAGING_BYTES)))
        while self._payload_bytes:
            await self.receive_payload(scratch[: self._payload_bytes])

    async def _take(self, size_bytes: int) -> bytes:
        """The next `size_bytes` bytes, by way of the staging buffer."""
        if size_bytes <= _STAGING_BYTES:
            await self._stage(size_bytes)
        if size_bytes <= _STAGING_BYTES:
            taken = bytes(self._staging[self._start : self._start + size_bytes])
            self._start += size_bytes
            return taken
        large = bytearray(size_bytes)
        view = memoryview(large)
        filled = self._from_staging(view)
        while filled < size_bytes:
            filled += await self._receive_into(view[filled:])
        return bytes(large)

    async def _stage(self, size_bytes: int) -> None:
        """Receive into the staging buffer, where there is room for `size_bytes` in all.

        What to receive into is looked at after each wait: `receive_soon` may have moved it.
        """
        await self._be_fair()
        while (staged := self._end - self._start) < size_bytes:
            if _STAGING_BYTES - self._start < size_bytes:
                self._staging[:staged] = bytes(self._staging[self._start : self._end])
                self._start, self._end = 0, staged
            if count := self._receive_now(self._staging[self._end :]):
                self._end += count
            else:
                await self._readable()

    def _from_staging(self, view: memoryview) -> int:
        count = min(self._end - self._start, len(view))
        view[:count] = self._staging[self._start : self._start + count]
        self._start += count
        if self._start == self._end:
            self._start = self._end = 0
        return count

    async def _receive_into(self, view: memoryview) -> int:
        """At least one byte into `view`, directly from the kernel."""
        await self._be_fair()
        while not (count := self._receive_now(view)):
            await self._readable()
        return count

    async def _be_fair(self) -> None:
        if self._unyielded_bytes > _FAIRNESS_BYTES:
            self._unyielded_bytes = 0
            await trio.lowlevel.checkpoint()

    def _receive_now(self, view: memoryview) -> int:
        """As much as the kernel has of what fits in `view`, perhaps nothing."""
        try:
            count = self._socket.recv_into(view)
        except BlockingIOError:
            return 0
        except OSError as error:
            raise ConnectionLost(str(error)) from error
        if not count:
            raise ConnectionLost("the peer closed the connection")
        self._unyielded_bytes += count
        return count

    async def _readable(self) -> None:
        """Wait until the kernel has bytes."""
        self._unyielded_bytes = 0
        await self._wait(trio.lowlevel.wait_readable)

    async def _wait(self, until: Any) -> None:
        try:
            await until(self._socket)
        except (trio.ClosedResourceError, OSError, ValueError) as error:
            raise ConnectionLost("the connection was closed") from error

    def close(self) -> None:
        """End the connection; tasks that wait on it get `ConnectionLost`. Never raises, may be called again."""
        if not self.closed:
            self.closed = True
            self._start = self._end = 0  # nothing of what has been received takes effect any more
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()


def _unpacked(packed: bytes | memoryview) -> Any:
    try:
        return msgpack.unpackb(packed, use_list=False, strict_map_key=False)
    except ValueError as error:
        raise ConnectionLost(f"the peer sent a header that is not msgpack: {error}") from error


def _rest(buffers: list[Buffer], sent_bytes: int) -> list[Buffer]:
    """What is left of `buffers` after their first `sent_bytes` bytes."""
    for position, buffer in enumerate(buffers):
        if sent_bytes < len(buffer):
            return [memoryview(buffer)[sent_bytes:], *buffers[position + 1 :]]
        sent_bytes -= len(buffer)
    return []
