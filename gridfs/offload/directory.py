"""The directory in which a job starts: private, empty, and gone with it."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from gridfs.offload.job import Submitter

_PREFIX = "gridfs-job-"
YOUNG_S = 60.0
"""What is younger may be just being made, by another process of this machine."""


class Directory:
    """A directory of the submitter's own, locked as long as the process lives that has made it."""

    def __init__(self, job: int, owner: Submitter) -> None:
        """Raises OSError where it cannot be made."""
        self.path = tempfile.mkdtemp(prefix=f"{_PREFIX}{job}-")
        self._fd = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        fcntl.flock(self._fd, fcntl.LOCK_EX)
        os.chown(self._fd, owner.uid, owner.gid if os.geteuid() == 0 else -1)

    def remove(self) -> None:
        """Remove it and what is in it; what cannot be is left."""
        _remove(self.path)
        os.close(self._fd)


def sweep(young_s: float = YOUNG_S) -> None:
    """Remove the directories of processes that were killed; those younger than `young_s` may be just being made."""
    for path in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(OSError):  # it is somebody else's, or in use, or gone
            if time.time() - path.lstat().st_mtime >= young_s:
                _sweep(path)


def _sweep(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        _remove(str(path))
    finally:
        os.close(fd)


def _remove(directory: str) -> None:
    with suppress(OSError, RecursionError):  # a tree may be too deep for Python
        shutil.rmtree(directory)
    if os.path.lexists(directory):
        with suppress(OSError):
            subprocess.run(["rm", "-rf", "--", directory], check=False)
