"""Who a process is, and ending it for sure: a pid alone is not an identity, so its start time goes with it."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

_POLL_S = 0.02


@dataclass(frozen=True, slots=True)
class Process:
    """One process of this machine; `started_ticks` tells it from a later one with the same pid."""

    pid: int
    started_ticks: int

    @property
    def alive(self) -> bool:
        """True while this very process runs; a zombie does not run."""
        return identify(self.pid) == self


def identify(pid: int) -> Process | None:
    """The running process with this pid, or None; one that has ended and waits for its parent counts as none."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (OSError, ValueError):
        return None
    return None if fields[0] in "ZX" else Process(pid, int(fields[19]))


def mentioning(text: str) -> list[Process]:
    """The running processes that have `text` in their command line, except this one."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            command_line = (entry / "cmdline").read_bytes()
        except OSError:
            continue
        if text.encode() in command_line and (process := identify(int(entry.name))):
            found.append(process)
    return found


def children(pid: int) -> list[int]:
    """The pids of a process's children, whichever PID namespace they are in; none if it has ended."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return [int(child) for thread in threads for child in (thread / "children").read_text().split()]
    except OSError:
        return []


def kill(processes: Iterable[Process]) -> None:
    """SIGKILL those that still run; returns at once."""
    for process in processes:
        if process.alive:
            try:
                os.kill(process.pid, signal.SIGKILL)
            except ProcessLookupError:
                continue


def wait_gone(processes: Iterable[Process], timeout_s: float) -> list[Process]:
    """Wait until none of them runs, for `timeout_s` at most; returns those that still do."""
    deadline = time.monotonic() + timeout_s
    left = list(processes)
    while True:
        _reap(left)
        left = [process for process in left if process.alive]
        if not left or time.monotonic() > deadline:
            return left
        time.sleep(_POLL_S)


def _reap(processes: Iterable[Process]) -> None:
    """Collect those that are our own children, or they would stay zombies for as long as we run."""
    for process in processes:
        try:
            os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            continue
