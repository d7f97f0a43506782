"""Watching a child of a job: what it may take, when it must end, and how it has ended."""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import time
from dataclasses import dataclass, replace
from typing import Any, Literal

from gridfs.config import GIB
from gridfs.offload import pipes, sandbox, usage
from gridfs.offload.job import KEPT_OUTPUT_BYTES, Request

Failure = Literal["", "memory", "timeout", "cancelled", "function"]

THREADS_MAX = 512
_SAMPLE_S = 0.1
_STUCK_S = 10.0
"""After so long a killed process is one that the kernel does not let go."""
ERROR_MAX = 500
REPORT_MAX = 4096
"""Characters of an error; bytes of what carries it, which a pipe takes in one piece."""
FAILED_EXIT = 70
"""The exit code of a child that has failed before it came to its work."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a child may take before it is killed."""

    timeout_s: float
    memory_bytes: int = GIB
    """For all of its processes together, sampled (`usage.below`), and for each of them at any time (RLIMIT_DATA). Files that
    it makes in its own directory may take as much again."""
    threads: int = THREADS_MAX
    """For all of its processes together; a process is one at least."""
    shared_bytes: int | None = None
    """Shared memory of each process beyond so much counts too: the size of what it was given. None: none of it counts."""

    @staticmethod
    def of(request: Request, shared_bytes: int | None = None) -> Limits:
        """The limits that the request names."""
        return Limits(request.timeout_s, request.memory_bytes, THREADS_MAX, shared_bytes)


@dataclass(frozen=True, slots=True)
class Ending:
    """How a child ended."""

    exit_code: int | None = None
    """None if it was killed, by whomever."""
    signal: int | None = None
    """What killed the work, unless that was us."""
    failure: Failure = ""
    """"function" is any failure of the work's own, an exit code other than 0 included."""
    error: str = ""
    """One sentence; empty if all went well."""

    @property
    def timed_out(self) -> bool:
        """True if the time limit ended it."""
        return self.failure == "timeout"

    @property
    def out_of_memory(self) -> bool:
        """True if it was killed for memory, or said that it got none."""
        return self.failure == "memory"


STUCK = Ending(failure="function", error="the job was killed, but the kernel does not let go of it")


class Keeper:
    """What the thread that has forked a child knows of it."""

    def __init__(self, pid: int, separated: bool, limits: Limits, ends: pipes.Pipes, own_bytes: int) -> None:
        """`own_bytes` of each process's memory are not counted. Raises OSError when there are no descriptors left."""
        self._pid, self._separated, self._limits, self._ends, self._own_bytes = pid, separated, limits, ends, own_bytes
        self._pidfd = os.pidfd_open(pid)
        self._stderr = bytearray()
        self._dropped_bytes = 0

    def watch(self) -> Ending | None:
        """Wait until it ends by itself: None; or must be ended: why."""
        deadline_s = time.monotonic() + self._limits.timeout_s
        sample_s = time.monotonic()
        poll = select.poll()
        for fd in (self._pidfd, self._ends.woken, self._ends.stderr_out):
            poll.register(fd, select.POLLIN)
        while True:
            now_s = time.monotonic()
            if now_s >= deadline_s:
                return Ending(failure="timeout", error=f"the job took longer than its {self._limits.timeout_s:g} seconds")
            if now_s >= sample_s:
                if exceeded := self._exceeded():
                    return exceeded
                sample_s = now_s + _SAMPLE_S
            ready = {fd for fd, _ in poll.poll(max(0.0, min(deadline_s, sample_s) - now_s) * 1000 + 1)}
            if self._ends.woken in ready:
                return Ending(failure="cancelled", error="the job was cancelled")
            if self._ends.stderr_out in ready and not self._take_stderr():
                poll.unregister(self._ends.stderr_out)
            if self._pidfd in ready:
                return None

    def _exceeded(self) -> Ending | None:
        taken = usage.below(self._pid, self._limits.threads, self._own_bytes, self._limits.shared_bytes)
        if taken.threads > self._limits.threads:
            most = f"{self._limits.threads} processes and threads"
            return Ending(failure="function", error=f"the job had more than {most}")
        if taken.memory_bytes > self._limits.memory_bytes:
            return _out_of_memory(f"the job took more than its {self._limits.memory_bytes} bytes of memory")
        return None

    def _take_stderr(self) -> bool:
        """False at its end, and when nothing is there."""
        data = pipes.read_now(self._ends.stderr_out)
        kept = (data or b"")[: KEPT_OUTPUT_BYTES - len(self._stderr)]
        self._stderr += kept
        self._dropped_bytes += len(data or b"") - len(kept)
        return bool(data)

    def end(self) -> bool:
        """Kill what is left and reap it; False if the kernel does not let go of it."""
        deadline_s = time.monotonic() + _STUCK_S
        while not self._separated and not self._has_ended(0.02) and time.monotonic() < deadline_s:
            sandbox.kill_below(self._pid)
        signal.pidfd_send_signal(self._pidfd, signal.SIGKILL)
        if not self._has_ended(_STUCK_S):
            return False
        self.reap()
        return True

    def reap(self) -> None:
        """Wait until it is gone, however long that takes."""
        os.waitpid(self._pid, 0)
        os.close(self._pidfd)

    def _has_ended(self, timeout_s: float) -> bool:
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        return bool(poll.poll(timeout_s * 1000))

    def ending(self) -> Ending:
        """How the work ended by itself, as the children told."""
        told = pipes.read_now(self._ends.status_out)
        report = pipes.read_now(self._ends.report_out)
        if not told:
            return _reported(report, FAILED_EXIT) if report else _killed(signal.SIGKILL)
        code = os.waitstatus_to_exitcode(struct.unpack("=i", told)[0])
        if code < 0:
            return _killed(-code)
        if report and code:
            return _reported(report, code)
        return Ending(code, failure="function", error=f"it ended with exit code {code}") if code else Ending(0)

    def stderr(self) -> bytes:
        """What was kept of it."""
        while self._take_stderr():
            pass
        note = f"\n[{self._dropped_bytes} more bytes were not kept]\n" if self._dropped_bytes else ""
        return bytes(self._stderr) + note.encode()


def _killed(number: int) -> Ending:
    try:
        name = signal.Signals(number).name
    except ValueError:  # a real-time one
        name = str(number)
    return Ending(signal=int(number), failure="function", error=f"it was killed by the signal {name}")


def _out_of_memory(error: str, exit_code: int | None = None) -> Ending:
    return Ending(exit_code, failure="memory", error=error)


def _reported(report: bytes, code: int) -> Ending:
    try:
        told: dict[str, Any] = json.loads(report)
        ending = Ending(code, failure="function", error=str(told["error"])[:ERROR_MAX])
        return replace(ending, failure="memory") if told["memory"] is True else ending
    except (ValueError, KeyError, TypeError):  # a function has written there
        return Ending(code, failure="function", error=f"it ended with exit code {code}")
