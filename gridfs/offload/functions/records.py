"""Lines of a file that is split anywhere: runs cut at their lines, and lines that cross from run to run joined again.

The partial result of a run is a sequence of msgpack objects [kind, value]:

* fragments of the line in which the run begins, the last of which ends it, if the run does;
* bodies: what a function makes of the lines that begin and end in the run;
* fragments of the line in which the run ends.

So a run within a line is fragments only. Memory: some blocks, and one line of LINE_MAX_BYTES.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import msgpack

from gridfs.config import MIB

BLOCK_BYTES = MIB
"""So many bytes are copied and looked at in one go."""
LINE_MAX_BYTES = 64 * MIB
_FRAGMENT, _LAST_FRAGMENT, _BODY = range(3)
_UNPACKED_MAX_BYTES = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class Lines:
    """Whole lines. Each ends with a newline, but for the file's last one, which comes alone when it does not."""

    content: bytes


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a line that crosses from run to run."""

    content: bytes
    is_last: bool

    def packed(self) -> bytes:
        """A piece of a partial result."""
        return pack(_LAST_FRAGMENT if self.is_last else _FRAGMENT, self.content)


@dataclass(frozen=True, slots=True)
class Body:
    """What a function has made of lines."""

    value: Any

    def packed(self) -> bytes:
        """A piece of a partial result."""
        return pack(_BODY, self.value)


def pack(*parts: Any) -> bytes:
    """An object of a partial result; `unpacked` gives them back as lists."""
    packed: bytes = msgpack.packb(parts)
    return packed


def unpacked(partial: Iterable[bytes]) -> Iterator[list[Any]]:
    """The objects of a partial result, whatever its pieces."""
    unpacker = msgpack.Unpacker(max_buffer_size=_UNPACKED_MAX_BYTES)
    for piece in partial:
        unpacker.feed(piece)
        yield from unpacker


def blocks(run: Iterable[memoryview]) -> Iterator[bytes]:
    """Copies of BLOCK_BYTES of the run each, the last one of what is left: the same however the run is split into views."""
    waiting = bytearray()
    for view in run:
        start = 0
        if waiting:
            start = BLOCK_BYTES - len(waiting)
            waiting += view[:start]
            if len(waiting) < BLOCK_BYTES:
                continue
            yield bytes(waiting)
            waiting = bytearray()
        end = start + (len(view) - start) // BLOCK_BYTES * BLOCK_BYTES
        for at in range(start, end, BLOCK_BYTES):
            yield bytes(view[at : at + BLOCK_BYTES])
        waiting += view[end:]
    if waiting:
        yield bytes(waiting)


def cut(content: Iterable[bytes], first: bool) -> Iterator[Lines | Fragment]:
    """A run's blocks cut at its lines, each block as soon as it is there. `first`: the run begins where the file does.

    Raises ValueError for a line of more than LINE_MAX_BYTES within the run.
    """
    is_inside, waiting = not first, _Waiting()
    for block in content:
        start = 0
        if is_inside:
            start = block.find(b"\n") + 1
            is_inside = not start
            yield Fragment(block[:start] if start else block, not is_inside)
        if not is_inside:
            end = block.rfind(b"\n", start) + 1
            if end:
                yield Lines(waiting.taken(block[start:end]))
                start = end
            waiting.add(block[start:])
    yield from (Fragment(piece, False) for piece in waiting.pieces)


def joined(partials: Iterable[Iterable[bytes]]) -> Iterator[Lines | Body]:
    """The bodies of partial results, and between them the lines that cross from run to run, in the order of the file.

    Raises ValueError for a line of more than LINE_MAX_BYTES.
    """
    waiting = _Waiting()
    for partial in partials:
        for kind, value in unpacked(partial):
            if kind == _BODY:
                yield Body(value)
            elif kind == _LAST_FRAGMENT:
                yield Lines(waiting.taken(value))
            else:
                waiting.add(value)
    if waiting.pieces:
        yield Lines(waiting.taken(b""))


class _Waiting:
    """A line's pieces until its end is there."""

    def __init__(self) -> None:
        self.pieces: list[bytes] = []
        self._length = 0

    def add(self, piece: bytes) -> None:
        if piece:
            self._check(len(piece))
            self.pieces.append(piece)
            self._length += len(piece)

    def taken(self, end: bytes) -> bytes:
        """What waits, and `end`, whose first line is the end of it. Nothing waits any more."""
        if not self.pieces:
            return end
        self._check(end.find(b"\n") + 1)
        whole = b"".join((*self.pieces, end))
        self.pieces, self._length = [], 0
        return whole

    def _check(self, more: int) -> None:
        if self._length + more > LINE_MAX_BYTES:
            raise ValueError(f"a line is longer than {LINE_MAX_BYTES >> 20} MiB")


class Tally(Protocol):
    """What a function counts about lines."""

    def add(self, lines: bytes) -> None:
        """Count these lines, as `Lines` has them."""

    def bodies(self) -> Iterator[Any]:
        """What was counted, for `merge`, as msgpack carries it."""

    def merge(self, body: Any) -> None:
        """Count what another tally, of earlier or later lines, has counted."""

    def result(self) -> Any:
        """The function's result."""


@dataclass(frozen=True, slots=True)
class Tallying:
    """A function whose result is a tally of the file's lines."""

    tally: Callable[[], Tally]
    """Makes an empty one."""
    splits: bool = True
    streams: bool = False

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`."""
        tally = self.tally()
        for part in cut(blocks(run), first):
            if isinstance(part, Lines):
                tally.add(part.content)
            else:
                yield part.packed()
        for body in tally.bodies():
            yield Body(body).packed()

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Any:
        """See `Function`."""
        tally = self.tally()
        for part in joined(partials):
            if isinstance(part, Lines):
                tally.add(part.content)
            else:
                tally.merge(part.value)
        return tally.result()
