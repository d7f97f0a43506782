"""What the children of a job run: a built-in function, or one of a Python module, over chunks that they see.

Each kind of work gives its result to the parent as pieces, and `result` makes of these what it was. A partial result is the
pieces that `map` has written for one run; it is packed by `pack_partial` to travel from node to node.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple, Protocol

import msgpack

from gridfs.config import MIB
from gridfs.errors import GridfsError
from gridfs.offload import python, registry
from gridfs.offload.functions.function import Function
from gridfs.offload.job import KEPT_OUTPUT_BYTES, Job
from gridfs.offload.pipes import Buffer
from gridfs.offload.python import Context, Outcome

VALUE_MAX_BYTES = 64 * MIB
"""As JSON, of a value that goes to an output; one that is kept with the job may have KEPT_OUTPUT_BYTES."""

Write = Callable[[Buffer], None]
_PIECE, _END = b"\0", b"\1"
"""What a piece of `map_runs` begins with."""


class Run(NamedTuple):
    """Adjacent bytes of the file."""

    pieces: Iterator[memoryview]
    first: bool
    last: bool
    """It begins, or ends, where the file does."""
    offset: int
    """Where in the file it begins."""


class TooLongError(GridfsError):
    """A result is longer than what is kept of one."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the result is longer than {limit_bytes} bytes: name an output for it, and let it be bytes")


class PartialsTooLongError(GridfsError):
    """What a process of a job has made of its runs is longer than what may travel."""

    def __init__(self, limit_bytes: int) -> None:
        super().__init__(f"the partial results of one process of the job are longer than {limit_bytes} bytes together")


class Work(Protocol):
    """One kind of work. `whole`, `map` and `reduce` run in a child, and write what they make; `result` in the parent."""

    def whole(self, pieces: Iterator[memoryview], write: Write) -> None:
        """The result over all bytes of the file, in order."""

    def map(self, run: Run, write: Write) -> None:
        """The partial result of one run."""

    def reduce(self, partials: Iterable[Sequence[bytes]], write: Write) -> None:
        """The result over the partials of all runs, in the order of the file."""

    def result(self, written: Iterator[bytes]) -> Outcome:
        """What `whole` or `reduce` has made, given all that it has written."""


class FunctionWork:
    """A built-in function."""

    def __init__(self, function: Function) -> None:
        self._function = function

    def whole(self, pieces: Iterator[memoryview], write: Write) -> None:
        """See `Work`."""
        self._write(iter([self._function.map(pieces, True, True)]), write)

    def map(self, run: Run, write: Write) -> None:
        """See `Work`."""
        for piece in self._function.map(*run):
            write(piece)

    def reduce(self, partials: Iterable[Sequence[bytes]], write: Write) -> None:
        """See `Work`."""
        self._write(map(iter, partials), write)

    def result(self, written: Iterator[bytes]) -> Outcome:
        """See `Work`."""
        if self._function.streams:
            return Outcome(None, written)
        text = b"".join(written)
        return Outcome(json.loads(text) if text else None, None)

    def _write(self, partials: Iterator[Iterator[bytes]], write: Write) -> None:
        result = self._function.reduce(partials)
        for piece in result if self._function.streams else [json.dumps(result).encode()]:
            for start in range(0, len(piece), MIB):
                write(memoryview(piece)[start : start + MIB])


class PythonWork:
    """A function of a Python module; `split` says that it has to be a pair, and what it gives does not depend on the nodes."""

    def __init__(self, name: str, context: Context, *, split: bool) -> None:
        self._name, self._context = name, context
        self._call = python.call_pair if split else python.call

    def whole(self, pieces: Iterator[memoryview], write: Write) -> None:
        """See `Work`."""
        self._call(self._name, pieces, self._context, write)

    def map(self, run: Run, write: Write) -> None:
        """See `Work`."""
        python.map_run(self._name, run.pieces, self._context, write)

    def reduce(self, partials: Iterable[Sequence[bytes]], write: Write) -> None:
        """See `Work`."""
        python.reduce(self._name, (piece for partial in partials for piece in partial), self._context, write)

    def result(self, written: Iterator[bytes]) -> Outcome:
        """See `Work`."""
        return python.outcome(written)


def of(job: Job, host: str) -> Work:
    """What a job that is no command runs, on that host. Raises ValueError with a sentence."""
    request = job.request
    if request.kind == "function":
        return FunctionWork(registry.make(request.name, request.arguments))
    context = Context(job.id, request.arguments, job.input.name, job.input.size, host)
    return PythonWork(request.name, context, split=request.split)


# -- partial results -------------------------------------------------------------------------------------------------


def map_runs(work: Work, runs: Iterable[Run], write: Write) -> None:
    """In a child: the partials of several runs, one after the other; `partials_of` takes them apart again."""
    for run in runs:
        work.map(run, lambda piece: write(_PIECE + piece))
        for _ in run.pieces:
            pass  # the next run begins behind what was left
        write(_END)


def partials_of(written: Iterator[bytes], limit_bytes: int) -> Iterator[bytes]:
    """In the parent: the packed partials of the runs. Raises PartialsTooLongError beyond `limit_bytes` in all."""
    partial: list[bytes] = []
    total = 0
    for piece in written:
        if piece[:1] == _END:
            yield msgpack.packb(partial)
            partial = []
            continue
        total += len(piece)
        if total > limit_bytes:
            raise PartialsTooLongError(limit_bytes)
        partial.append(piece[1:])


def unpack_partial(packed: bytes) -> list[bytes]:
    """The pieces of one run."""
    pieces: list[bytes] = msgpack.unpackb(packed)
    return pieces


def bounded_result(work: Work, written: Iterator[bytes], has_output: bool) -> Outcome:
    """As `Work.result`, never with a value that is too long to be kept. Raises TooLongError."""
    limit_bytes = VALUE_MAX_BYTES if has_output else KEPT_OUTPUT_BYTES
    left_bytes, bounded = limit_bytes, True

    def counted() -> Iterator[bytes]:
        nonlocal left_bytes
        for piece in written:
            left_bytes -= len(piece)
            if bounded and left_bytes < 0:
                raise TooLongError(limit_bytes)
            yield piece

    outcome = work.result(counted())
    bounded = outcome.stream is None
    return outcome


def packed_value(value: Any) -> bytes:
    """A value as it goes to an output."""
    return json.dumps(value).encode() + b"\n"
