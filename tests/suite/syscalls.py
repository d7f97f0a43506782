"""System calls that Python lacks, and calls made as another user or in another process."""

from __future__ import annotations

import ctypes
import errno
import os
import pickle
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import pytest

AT_FDCWD = -100
RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
STRANGER = 23456
"""A uid and gid that own nothing."""
PATIENCE_S = 20.0

_libc = ctypes.CDLL(None, use_errno=True)
T = TypeVar("T")


def renameat2(old: Path, new: Path, flags: int) -> None:
    """rename(2) with flags. Raises OSError."""
    if _libc.renameat2(AT_FDCWD, os.fsencode(old), AT_FDCWD, os.fsencode(new), ctypes.c_uint(flags)):
        code = ctypes.get_errno()
        raise OSError(code, os.strerror(code), str(old))


def syncfs(fd: int) -> None:
    """syncfs(2). Raises OSError."""
    if _libc.syncfs(fd):
        raise OSError(ctypes.get_errno(), "syncfs")


@contextmanager
def fails(*codes: int) -> Iterator[None]:
    """The block must end in an OSError with one of the errnos given."""
    with pytest.raises(OSError) as caught:
        yield
    names = [errno.errorcode[code] for code in codes]
    assert errno.errorcode.get(caught.value.errno or 0) in names, f"{caught.value!r}, expected {names}"


def in_child(action: Callable[[], T]) -> T:
    """What `action` returns, or raises, in a forked child."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            try:
                answer: tuple[bool, object] = (True, action())
            except BaseException as error:
                answer = (False, error)
            with os.fdopen(writer, "wb") as pipe:
                pickle.dump(answer, pipe)
        finally:
            os._exit(0)
    os.close(writer)
    with os.fdopen(reader, "rb") as pipe:
        packed = pipe.read()
    os.waitpid(child, 0)
    succeeded, value = pickle.loads(packed)
    if not succeeded:
        raise value
    return value  # type: ignore[no-any-return]


def as_user(action: Callable[[], T], uid: int = STRANGER, gid: int = STRANGER, groups: Sequence[int] = ()) -> T:
    """What `action` returns, or raises, in a child that has given up root for `uid`."""

    def drop_and_act() -> T:
        os.setgroups(groups)
        os.setresgid(gid, gid, gid)
        os.setresuid(uid, uid, uid)
        return action()

    return in_child(drop_and_act)


def eventually(condition: Callable[[], bool], what: str, patience_s: float = PATIENCE_S) -> None:
    """Wait until `condition` holds; AssertionError with `what` when it does not in time."""
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {patience_s} s: {what}"
        time.sleep(0.02)


def let_the_clock_tick(directory: Path) -> None:
    """Wait until the filesystem's clock, which may be as coarse as 10 ms, has moved past the present."""
    probe = directory / "clock-probe"
    probe.touch()
    before_ns = probe.stat().st_ctime_ns

    def moved() -> bool:
        probe.touch()
        return probe.stat().st_ctime_ns > before_ns

    eventually(moved, "the clock moves")
    probe.unlink()


def filesystem_type(directory: Path) -> str:
    """What the kernel calls the filesystem that holds `directory`."""
    path, kind = directory.resolve(), "unknown"
    while not path.is_mount():
        path = path.parent
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[4] == str(path):
            kind = after.split()[0]
    return kind


def write(path: Path, content: bytes) -> Path:
    """Make a file with that content, and return its path."""
    path.write_bytes(content)
    return path


def listing(path: Path) -> list[str]:
    """The names in a directory, sorted."""
    return sorted(os.listdir(path))


@contextmanager
def opened(path: Path, flags: int, mode: int = 0o644) -> Iterator[int]:
    """A file descriptor, closed afterwards."""
    fd = os.open(path, flags, mode)
    try:
        yield fd
    finally:
        os.close(fd)
