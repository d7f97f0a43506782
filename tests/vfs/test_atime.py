"""atime moves as `relatime` says. The kernel would hide it: reads that its page cache answers move nothing."""

from __future__ import annotations

import os
from pathlib import Path

from tests.calls import Calls, put
from tests.calls.vfs import bed

HANDLE = 1


def atime_moves(calls: Calls) -> bool:
    """Read, and say whether that moved atime."""
    before_ns = calls.fstat(HANDLE).atime_ns
    calls.read(HANDLE, 0, 1)
    return calls.fstat(HANDLE).atime_ns > before_ns


def test_the_first_read_after_a_change_moves_atime(tmp_path: Path) -> None:
    with bed(tmp_path) as cluster:
        calls = cluster.mounts[0]
        put(calls, "file", b"x")
        calls.open(HANDLE, "file", os.O_RDWR)
        assert [atime_moves(calls), atime_moves(calls)] == [True, False]
        calls.chmod("file", 0o600)
        assert [atime_moves(calls), atime_moves(calls)] == [True, False]
        calls.close(HANDLE)


def test_the_first_read_after_a_write_moves_atime(tmp_path: Path) -> None:
    with bed(tmp_path) as cluster:
        calls = cluster.mounts[0]
        put(calls, "file", b"x")
        calls.open(HANDLE, "file", os.O_RDWR)
        assert atime_moves(calls)
        calls.write(HANDLE, 0, b"y")
        moved = atime_moves(calls)
        calls.close(HANDLE)
        assert moved
