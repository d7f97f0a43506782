"""How much memory a mount's daemon takes while it is measured."""

from __future__ import annotations

import os
from pathlib import Path

PROC = Path("/proc")
RESET_PEAK = "5"


def mountpoint_of(directory: Path) -> Path:
    """The mountpoint of the filesystem that holds `directory`."""
    path = directory.resolve()
    while not path.is_mount():
        path = path.parent
    return path


def filesystem_type(mountpoint: Path) -> str:
    """What the kernel calls the filesystem mounted there last, `unknown` if nothing is."""
    kind = "unknown"
    for line in (PROC / "self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(mountpoint):
            kind = after.split()[0]
    return kind


def find_daemon(mountpoint: Path) -> int | None:
    """The process that serves `mountpoint`: it has /dev/fuse open and the mountpoint among its arguments."""
    for entry in PROC.iterdir():
        if entry.name.isdigit() and _serves(entry, mountpoint):
            return int(entry.name)
    return None


def _serves(process: Path, mountpoint: Path) -> bool:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
        if os.fsencode(mountpoint) not in arguments:
            return False
        return any(os.readlink(fd) == "/dev/fuse" for fd in (process / "fd").iterdir())
    except OSError:  # it ended meanwhile, or it is another user's
        return False


def resident_bytes() -> int:
    """The resident memory of this process now."""
    return int((PROC / "self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class PeakMemory:
    """The peak of a process's resident memory, from the moment this is made if the process is ours, else of its life."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        try:
            (PROC / str(pid) / "clear_refs").write_text(RESET_PEAK)
            self.since_start = False
        except PermissionError:
            self.since_start = True

    def peak_bytes(self) -> int | None:
        """The peak so far, None once the process is gone."""
        try:
            status = (PROC / str(self.pid) / "status").read_text()
        except OSError:
            return None
        for line in status.splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
        return None
