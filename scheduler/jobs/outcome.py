"""What runners say of a job, put together. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from typing import Any

from gridfs.offload.job import KEPT_OUTPUT_BYTES, Job

LOST, BYTES_LOST = "lost", "bytes lost"
"""Failures of nodes, not of the job: it may be tried again. The first is that the runner does not answer."""
ERROR_MAX = 4000
"""Characters of the sentence that says why."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one call of a runner has given, as in `gridfs.offload.runner`."""

    failure: str = ""
    error: str = ""
    partials: tuple[bytes, ...] = ()
    result: Any = None
    stdout: bytes = b""
    stderr: bytes = b""
    exit_code: int | None = None
    local_bytes: int = 0
    network_bytes: int = 0
    output_bytes: int = 0


_NAMES = frozenset(field.name for field in fields(Result))


def result(told: Mapping[str, Any]) -> Result:
    """The result that a runner has packed."""
    known = {name: value for name, value in told.items() if name in _NAMES}
    return Result(**{**known, "partials": tuple(known.get("partials", ()))})


@dataclass(frozen=True, slots=True)
class Read:
    """Bytes of the input that were read where they are, and that crossed the network, partial results included."""

    local_bytes: int = 0
    network_bytes: int = 0


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attempt came to; `failure` is empty if it came to its end."""

    failure: str = ""
    error: str = ""
    last: Result = Result()
    """Of the node that had the last word."""
    stderr: bytes = b""
    read: Read = Read()

    @property
    def is_lost(self) -> bool:
        """Whether a node is to blame, not the job."""
        return self.failure in (LOST, BYTES_LOST)

    def read_changes(self, job: Job) -> dict[str, int]:
        """What the job has read with it; earlier attempts count as well."""
        return {
            "local_bytes": job.local_bytes + self.read.local_bytes,
            "network_bytes": job.network_bytes + self.read.network_bytes,
        }

    def changes(self, job: Job) -> dict[str, Any]:
        """The fields of the job that it changes."""
        return {
            **self.read_changes(job),
            "exit_code": self.last.exit_code,
            "result": self.last.result,
            "stdout": self.last.stdout[:KEPT_OUTPUT_BYTES],
            "stderr": self.stderr[:KEPT_OUTPUT_BYTES],
            "output_bytes": self.last.output_bytes,
        }


def read(results: Iterable[Result]) -> Read:
    """What all of them have read."""
    known = list(results)
    partials = sum(len(partial) for one in known for partial in one.partials)
    return Read(sum(one.local_bytes for one in known), partials + sum(one.network_bytes for one in known))


def of(results: Iterable[Result], last: Result) -> Outcome:
    """The outcome of results that include `last`, or of which it was made."""
    known = list(results)
    if not any(last is one for one in known):
        last = replace(last, exit_code=last.exit_code if last.exit_code is not None else _exit_code(known))
        known.append(last)
    stderr = b"".join(one.stderr for one in known)
    return Outcome(last.failure, _clean(last.error), last, stderr, read(known))


def _exit_code(results: Iterable[Result]) -> int | None:
    return next((one.exit_code for one in results if one.exit_code is not None), None)


def _clean(sentence: str) -> str:
    """What the store and streams carry: no half characters, and not for ever."""
    return sentence.encode(errors="backslashreplace").decode()[:ERROR_MAX]
