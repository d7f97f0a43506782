"""A control group for the processes of a job: the one limit of their number that root cannot pass.

RLIMIT_NPROC does not hold for root, and a sample comes too late for processes that multiply. Both versions of the interface
(docs.kernel.org, admin-guide/cgroup-v1/pids and cgroup-v2) call the files that are used here the same.
"""

from __future__ import annotations

import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from gridfs.offload.directory import YOUNG_S

_PREFIX = "gridfs-job-"


class Group:
    """A group below this process's own, or nothing where that cannot be made: `path` is empty then."""

    def __init__(self, job: int, threads_max: int) -> None:
        """At most `threads_max` processes and threads can be in it at once."""
        self.path = ""
        if (parent := _parent()) is None or os.geteuid():
            return
        with suppress(OSError):
            self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{job}-", dir=parent)
            try:
                Path(self.path, "pids.max").write_text(str(threads_max))
            except OSError:  # its parent does not hand this controller on
                self.remove()

    def join(self) -> None:
        """Put the calling process into it, and so all that it will start. Raises OSError."""
        if self.path:
            with open(f"{self.path}/cgroup.procs", "w") as file:
                file.write("0")

    def remove(self) -> None:
        """Remove it; all that was in it must have ended."""
        if self.path:
            with suppress(OSError):
                os.rmdir(self.path)
        self.path = ""


def sweep(young_s: float = YOUNG_S) -> None:
    """Remove what processes that were killed have left behind.

    The kernel leaves groups that are in use; one that is younger than `young_s` may be about to be joined.
    """
    parent = _parent()
    for path in parent.glob(f"{_PREFIX}*") if parent else ():
        with suppress(OSError):
            if time.time() - path.stat().st_mtime >= young_s:
                path.rmdir()


def _parent() -> Path | None:
    """The group of this process in which the number of processes is counted."""
    groups = Path("/sys/fs/cgroup")
    unified = None
    with suppress(OSError):
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            number, controllers, path = line.split(":", 2)
            if "pids" in controllers.split(","):
                return _visible(groups / "pids", path)
            if number == "0":
                unified = _visible(groups, path)
    return unified


def _visible(root: Path, path: str) -> Path:
    """In a container the path may be that of the host."""
    group = root / path.lstrip("/")
    return group if group.is_dir() else root
