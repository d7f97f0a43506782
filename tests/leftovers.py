"""What a test session may leave behind on the machine, and whether it did."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Iterator, Set
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
        self._mark = f"{MARK}={uuid.uuid4().hex}".encode()
        self._before = {*self._of_clusters(), *of_testbeds()}
        os.environ[MARK] = self._mark.decode().partition("=")[2]

    def find(self, levels: Set[str]) -> list[str]:
        """What is there that was not, one line each; waits some seconds for it to go away.

        Processes that were started from here always count. So does what else is new of the kinds that tests of these levels
        make, but for another session's: somebody else may be at work on this machine.
        """
        deadline_s = time.monotonic() + SETTLE_S
        while (left := self._left(levels)) and time.monotonic() < deadline_s:
            time.sleep(_POLL_S)
        return left

    def _left(self, levels: Set[str]) -> list[str]:
        left = {line for line, session in _processes() if session == self._mark}
        if levels & {"cluster", "mounted"}:
            left |= set(self._of_clusters()) - self._before
        if "mounted" in levels:
            left |= set(of_testbeds()) - self._before
        return sorted(left)

    def _of_clusters(self) -> Iterator[str]:
        """All shared memory, and the daemons that no other session has started."""
        yield from (f"shared memory /dev/shm/{name}" for name in _listing("/dev/shm"))
        for line, session in _processes():
            if session in (None, self._mark) and any(daemon in line for daemon in DAEMONS):
                yield line


def of_testbeds() -> Iterator[str]:
    """All mounts, network namespaces and testbeds. One session at a time has such tests, since there is one testbed."""
    yield from fuse_mounts(Path("/proc/self/mountinfo").read_text())
    yield from (f"network namespace {name}" for name in _listing("/run/netns"))
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


def _processes() -> Iterator[tuple[str, bytes | None]]:
    """Live processes but for this one, a line each, and the mark of the session that has started it."""
    for entry in _listing("/proc"):
        if not entry.isdigit() or int(entry) == os.getpid():
            continue
        try:
            command = Path("/proc", entry, "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
            environment = Path("/proc", entry, "environ").read_bytes().split(b"\0")
        except OSError:  # it has ended, or is not ours
            continue
        session = next((variable for variable in environment if variable.startswith(MARK.encode() + b"=")), None)
        yield f"process {entry}: {command[:120]}", session
