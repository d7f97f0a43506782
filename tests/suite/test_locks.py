"""flock and fcntl locks between processes on the same mount."""

from __future__ import annotations

import errno
import fcntl
import os
from pathlib import Path

from tests.suite.syscalls import fails, in_child, opened, write


def try_flock(path: Path, kind: int) -> None:
    """Take a whole-file lock without waiting. Raises OSError."""
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, kind | fcntl.LOCK_NB)


def try_range(path: Path, kind: int, start: int, length: int) -> None:
    """Take a range lock without waiting. Raises OSError."""
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, kind | fcntl.LOCK_NB, length, start)


def test_an_exclusive_flock_keeps_others_out(root: Path) -> None:
    """Until it is released; a shared one lets shared ones in."""
    path = write(root / "file", b"")
    with opened(path, os.O_RDWR) as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        with fails(errno.EWOULDBLOCK):
            in_child(lambda: try_flock(path, fcntl.LOCK_SH))
        fcntl.flock(fd, fcntl.LOCK_SH)
        in_child(lambda: try_flock(path, fcntl.LOCK_SH))
        with fails(errno.EWOULDBLOCK):
            in_child(lambda: try_flock(path, fcntl.LOCK_EX))
    in_child(lambda: try_flock(path, fcntl.LOCK_EX))


def test_fcntl_locks_cover_their_range_only(root: Path) -> None:
    """Another process gets the bytes beside the range, not those in it."""
    path = write(root / "file", bytes(100))
    with opened(path, os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX, 10, 20)
        in_child(lambda: try_range(path, fcntl.LOCK_EX, 0, 20))
        in_child(lambda: try_range(path, fcntl.LOCK_EX, 30, 0))
        with fails(errno.EAGAIN, errno.EACCES):
            in_child(lambda: try_range(path, fcntl.LOCK_EX, 25, 10))
        fcntl.lockf(fd, fcntl.LOCK_UN, 10, 20)
        in_child(lambda: try_range(path, fcntl.LOCK_EX, 25, 10))


def test_locks_end_with_their_process(root: Path) -> None:
    """A child that ends leaves no lock behind."""
    path = write(root / "file", b"")

    def lock_and_end() -> None:
        fd = os.open(path, os.O_RDWR)
        fcntl.flock(fd, fcntl.LOCK_EX)
        fcntl.lockf(fd, fcntl.LOCK_EX)

    in_child(lock_and_end)
    try_flock(path, fcntl.LOCK_EX)
    try_range(path, fcntl.LOCK_EX, 0, 0)
