"""The pipes between a process and a child of a job: standard streams, pieces of results, and what the two tell each other."""

from __future__ import annotations

import fcntl
import os
import select
import struct
import threading
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, suppress

from gridfs.config import MIB
from gridfs.errors import GridfsError

Buffer = bytes | bytearray | memoryview

GIVEN = 3
"""The number of the descriptor that a child is given."""
PIECE_BYTES_MAX = 64 * MIB
"""A piece crosses whole, so it must fit into memory."""
_PIPE_BYTES = MIB
_LOWEST = 16
"""Descriptors start here, so that none is in the way of those that get a fixed number in the child."""
_HEADER = struct.Struct("=Q")


class Pipes:
    """All pipes of one child, both ends of each until it is forked. Of the names, `_in` is where one writes.

    `woken` and `ended` are events: the one who asks wakes the keeper, the keeper says that all is over.
    """

    def __init__(self, fed: bool) -> None:
        """`fed`: there will be something on its standard input. OSError, and nothing open, if there are no descriptors left."""
        with ExitStack() as undo:
            self.stdout_out, self.stdout_in = _pipe(undo)
            self.stderr_out, self.stderr_in = _pipe(undo)
            self.report_out, self.report_in = _pipe(undo)
            self.status_out, self.status_in = _pipe(undo)
            self.stdin_out, self.stdin_in = _pipe(undo) if fed else (_above(os.open(os.devnull, os.O_RDONLY), undo), -1)
            self.woken, self._ended = (_above(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), undo) for _ in range(2))
            undo.pop_all()
        self.childs = {self.stdout_in, self.stderr_in, self.report_in, self.status_in, self.stdin_out}
        """The child's ends."""
        for fd in (self.stdout_out, self.stderr_out, self.report_out, self.status_out, *([self.stdin_in] if fed else [])):
            os.set_blocking(fd, False)
        self.closed = False
        self._is_over = False
        self._lock = threading.Lock()

    # -- in the parent -------------------------------------------------------------------------------------------------

    def close_childs(self) -> None:
        """Close the child's ends: it has been forked."""
        while self.childs:
            os.close(self.childs.pop())

    def close(self) -> None:
        """Close everything that is open here."""
        self.close_childs()
        with self._lock:
            if self.closed:
                return
            self.closed = True
            for fd in (self.stdout_out, self.stderr_out, self.report_out, self.status_out, self.woken, self._ended):
                os.close(fd)
            self._close_stdin()

    def _close_stdin(self) -> None:
        if self.stdin_in >= 0:
            os.close(self.stdin_in)
            self.stdin_in = -1

    def wake(self) -> None:
        """Make `woken` readable."""
        with self._lock:
            if not self.closed:
                os.eventfd_write(self.woken, 1)

    def say_ended(self) -> None:
        """Nothing more will be written to the child's ends: whoever reads takes what is there, whoever feeds stops."""
        os.eventfd_write(self._ended, 1)

    def output(self) -> Iterator[bytes]:
        """The child's standard output, as it comes, up to its end."""
        while data := self._read(_PIPE_BYTES):
            yield data

    def pieces(self) -> Iterator[bytes]:
        """What `write_piece` was given; a last piece that is not whole is left out. GridfsError if it is none."""
        while len(header := self._read_whole(_HEADER.size)) == _HEADER.size:
            (size,) = _HEADER.unpack(header)
            if size > PIECE_BYTES_MAX:
                raise GridfsError("The job has written something else between its results.")
            piece = self._read_whole(size)
            if len(piece) < size:
                return
            yield piece

    def _read_whole(self, size: int) -> bytes:
        parts = []
        while size and (part := self._read(min(size, _PIPE_BYTES))):
            parts.append(part)
            size -= len(part)
        return b"".join(parts)

    def _read(self, size: int) -> bytes:
        """Some bytes, once there are any; none at the end."""
        while (data := read_now(self.stdout_out, size)) is None:
            if self._is_over:
                return b""
            self._is_over = self._ended in _wait({self.stdout_out: select.POLLIN, self._ended: select.POLLIN})
        return data

    def feed(self, pieces: Iterable[Buffer]) -> None:
        """Write all of it to the child's standard input, and close that; stop when the child reads no more."""
        try:
            for piece in pieces:
                if not self._put(memoryview(piece).cast("B")):
                    break
        finally:
            self._close_stdin()

    def _put(self, rest: memoryview) -> bool:
        while rest:
            try:
                rest = rest[os.write(self.stdin_in, rest[:_PIPE_BYTES]) :]
            except BlockingIOError:
                if self._ended in _wait({self.stdin_in: select.POLLOUT, self._ended: select.POLLIN}):
                    return False
            except BrokenPipeError:
                return False
        return True

    # -- in the child --------------------------------------------------------------------------------------------------

    def is_orphan(self) -> bool:
        """In a child that has no other ends open: whether the parent is gone."""
        return bool(_wait({self.status_in: 0}, 0))

    def place(self, given: int | None, program: bool) -> None:
        """Give the standard streams, and what was given, their numbers."""
        numbers = {0: self.stdin_out, 1: self.stdout_in if program else self.stderr_in, 2: self.stderr_in, GIVEN: given}
        for number, fd in numbers.items():
            if fd is not None:
                os.dup2(fd, number)
                os.set_inheritable(number, True)  # if it had that number, nothing was done

    def placed(self, given: int | None) -> set[int]:
        """What is open in the child from then on; a program gets the first four only."""
        return {0, 1, 2, self.stdout_in, self.report_in, *([] if given is None else [GIVEN])}

    def write_piece(self, data: Buffer) -> None:
        """Write one piece, waiting while the parent takes nothing. ValueError if it is longer than PIECE_BYTES_MAX."""
        piece = memoryview(data).cast("B")
        if len(piece) > PIECE_BYTES_MAX:
            raise ValueError(f"one piece of a result has {len(piece)} bytes, and may have {PIECE_BYTES_MAX}")
        write_all(self.stdout_in, _HEADER.pack(len(piece)))
        write_all(self.stdout_in, piece)


def write_all(fd: int, data: Buffer) -> None:
    """Write all of it, waiting where that is needed."""
    rest = memoryview(data).cast("B")
    while rest:
        rest = rest[os.write(fd, rest) :]


def read_now(fd: int, size: int = _PIPE_BYTES) -> bytes | None:
    """What is there, b"" at the end, None if nothing is there yet."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None


def _wait(events: dict[int, int], timeout_ms: int | None = None) -> set[int]:
    """Those of the descriptors on which something has happened."""
    poll = select.poll()
    for fd, event in events.items():
        poll.register(fd, event)
    return {fd for fd, _ in poll.poll(timeout_ms)}


def _pipe(undo: ExitStack) -> tuple[int, int]:
    ends = os.pipe()
    with ExitStack() as second:
        second.callback(os.close, ends[1])
        out = _above(ends[0], undo)
        second.pop_all()
    into = _above(ends[1], undo)
    with suppress(OSError):  # without privileges there is a limit for all pipes of a user
        fcntl.fcntl(into, fcntl.F_SETPIPE_SZ, _PIPE_BYTES)
    return out, into


def _above(fd: int, undo: ExitStack) -> int:
    """The same descriptor under a number that is in nobody's way; `undo` closes it."""
    try:
        moved = fcntl.fcntl(fd, fcntl.F_DUPFD_CLOEXEC, _LOWEST)
    finally:
        os.close(fd)
    undo.callback(os.close, moved)
    return moved
