"""What a test session may leave behind on the machine, and whether it did."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

MARK = "GRIDFS_TEST_SESSION"
"""In the environment of every process that the session starts, directly or not."""
DAEMONS = ("raylet", "gcs_server", "mount.gridfs")
TESTBED_STATE = Path("/run/gridfs-testbed.json")
SETTLE_S = 5.0
_POLL_S = 0.1


class Leftovers:
    """Compares the machine before and after a session."""

    def __init__(self) -> None:
        """Remember what there is now, and mark the processes that will be started from here."""
        self._mark = f"{MARK}={uuid.uuid4().hex}"
        self._before = set(on_machine())
        os.environ[MARK] = self._mark.partition("=")[2]

    def find(self, whole_machine: bool) -> list[str]:
        """What is there that was not, one line each; waits some seconds for it to go away.

        Processes that were started from here always count. With `whole_machine` so does everything else that is new, which
        is fair only to a session whose tests make such things: somebody else may be at work on this machine.
        """
        deadline_s = time.monotonic() + SETTLE_S
        while (left := self._left(whole_machine)) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return left

    def _left(self, whole_machine: bool) -> list[str]:
        left = set(_processes(mark=self._mark.encode()))
        if whole_machine:
            left |= set(on_machine()) - self._before
        return sorted(left)


def on_machine() -> Iterator[str]:
    """All mounts, network namespaces, shared memory, processes and testbeds of the kinds that tests make."""
    yield from fuse_mounts(Path("/proc/self/mountinfo").read_text())
    yield from (f"network namespace {name}" for name in _listing("/run/netns"))
    yield from (f"shared memory /dev/shm/{name}" for name in _listing("/dev/shm"))
    yield from _processes(words=DAEMONS)
    if TESTBED_STATE.exists():
        yield f"testbed {TESTBED_STATE}"


def fuse_mounts(mountinfo: str) -> Iterator[str]:
    """The FUSE mounts in the text of a mountinfo file; proc_pid_mountinfo(5) says what its fields are."""
    for line in mountinfo.splitlines():
        fields, _, rest = line.partition(" - ")
        filesystem_type = rest.split(" ")[0]
        if filesystem_type in ("fuse", "fuseblk") or filesystem_type.startswith("fuse."):
            yield f"mount of type {filesystem_type} at {fields.split(' ')[4]}"


def _listing(directory: str) -> list[str]:
    try:
        return os.listdir(directory)
    except FileNotFoundError:
        return []


def _processes(words: tuple[str, ...] = (), mark: bytes | None = None) -> Iterator[str]:
    """Live processes, but for this one, with one of `words` in their command line or `mark` in their environment."""
    for entry in _listing("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            marked = mark is not None and mark in Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        if marked or any(word in command for word in words):
            yield f"process {entry}: {command[:120]}"
