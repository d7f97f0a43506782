"""The ops of one mount on their way to the inode table, in order, each with its number."""

from __future__ import annotations

import errno
from collections import deque
from collections.abc import Iterable
from itertools import islice
from typing import Any, NamedTuple

from gridfs.errors import FilesystemError
from gridfs.meta.table import Op

BATCH_MAX_OPS, BATCH_MAX_BYTES = 2000, 1 << 20


class Call:
    """One op that the server is to execute, and what came of it."""

    __slots__ = ("error", "number", "op", "settled", "value")

    def __init__(self, op: Op) -> None:
        self.op = op
        self.number = 0
        """The number that the author's replica has to reach before the value means anything; 0 when applied right there."""
        self.value: Any = None
        self.error: FilesystemError | None = None
        self.settled = False

    def finish(self, value: Any = None, error: FilesystemError | None = None, number: int = 0) -> None:
        """Settle it, once."""
        self.value, self.error, self.number = value, error, number
        self.settled = True

    def result(self) -> Any:
        """The value, or the error raised; once it is settled."""
        if self.error:
            raise self.error
        return self.value


class Batch(NamedTuple):
    """What one request carries. It is sent again, as it is, until it is answered."""

    first: int
    ops: list[Op]
    calls: list[Call]
    """Empty for ops that have been applied already, under the lease."""


class Uplink:
    """The queues behind a mount's ops; no method awaits.

    `applied` holds the ops number `saved` + 1 to `last`, applied under the lease and not known to be durable at the server;
    `received` is the number up to which the server has them. `calls` are to be executed, after all of those.
    """

    def __init__(self) -> None:
        self.applied: deque[Op] = deque()
        self.calls: deque[Call] = deque()
        self.last = self.received = self.saved = 0
        self.executing: Batch | None = None

    @property
    def drained(self) -> bool:
        """True once the server has all that was applied here."""
        return self.received >= self.saved + len(self.applied)

    @property
    def settled(self) -> bool:
        """True once everything is durable, and nothing waits to be executed."""
        return self.saved == self.last and not self.calls and self.executing is None

    def append(self, op: Op) -> None:
        """An op that has been applied here."""
        self.applied.append(op)
        self.last += 1

    def next_applied(self) -> Batch | None:
        """The next ops to send of those that were applied here; the last may pass BATCH_MAX_BYTES."""
        unsent = islice(self.applied, self.received - self.saved, None)
        ops = _take(unsent)
        return Batch(self.received + 1, ops, []) if ops else None

    def next_calls(self) -> Batch | None:
        """The batch that is being executed, or a new one of the calls that wait."""
        if self.executing is None and self.calls:
            ops = _take(call.op for call in self.calls)
            calls = [self.calls.popleft() for _ in ops]
            self.executing = Batch(self.last + 1, ops, calls)
            self.last += len(ops)
        return self.executing

    def executed(self, number: int, results: list[tuple[int, Any]]) -> None:
        """The server has answered: every op is executed and durable, or has failed."""
        assert self.executing is not None
        batch, self.executing = self.executing, None
        self.received = self.saved = self.last
        self.applied.clear()
        for call, (code, value) in zip(batch.calls, results, strict=True):
            if code:
                call.finish(error=FilesystemError(code, value), number=number)
            else:
                call.finish(value, number=number)

    def acknowledge(self, received: int, saved: int) -> None:
        """The server has the ops up to `received`, and durably those up to `saved`."""
        self.received = max(self.received, received)
        while self.saved < saved and self.applied:
            self.applied.popleft()
            self.saved += 1
        self.received = max(self.received, self.saved)

    def send_again_from(self, seq: int) -> None:
        """The server has lost what it had after `seq` (it restarted), or has got more than it could say."""
        self.received = min(seq, self.saved + len(self.applied))

    def fail(self, error: FilesystemError) -> None:
        """Nothing can be executed any more: every call hears of it."""
        calls = [*(self.executing.calls if self.executing else ()), *self.calls]
        self.executing = None
        self.calls.clear()
        for call in calls:
            call.finish(error=FilesystemError(error.errno or errno.EIO, str(error.strerror)))


def _take(ops: Iterable[Op]) -> list[Op]:
    batch, size = [], 0
    for op in islice(ops, BATCH_MAX_OPS):
        batch.append(op)
        size += sum(len(part) for part in op if isinstance(part, bytes))
        if size >= BATCH_MAX_BYTES:
            break
    return batch
