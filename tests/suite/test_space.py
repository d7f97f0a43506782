"""Space: what statfs says, and what happens when there is none left."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.suite.syscalls import eventually, fails, opened, write

MIB = 1 << 20
SAMPLE_BYTES = 192 * MIB
SLACK_BYTES = 32 * MIB
SHARE = 0.02
"""By this much of what statfs called free may what can be written differ from it."""
MOST_TO_FILL_BYTES = 8 << 30


def free_bytes(path: Path) -> int:
    """What an unprivileged process may still write."""
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


def free_at_rest(path: Path) -> int:
    """The same, once the space of what was removed before is back: when it has not grown for a second."""
    free, since_s = free_bytes(path), time.monotonic()
    while time.monotonic() - since_s < 1.0:
        time.sleep(0.05)
        if free_bytes(path) > free:
            free, since_s = free_bytes(path), time.monotonic()
    return free


def test_statfs_is_consistent(root: Path) -> None:
    """Blocks, free and available blocks are in order, and the longest name is told."""
    figures = os.statvfs(root)
    assert figures.f_blocks >= figures.f_bfree >= figures.f_bavail > 0
    assert figures.f_namemax == 255
    assert figures.f_frsize > 0


def test_holes_take_no_space(root: Path) -> None:
    """Growing a file by truncate is free of charge."""
    before = free_bytes(root)
    with opened(root / "file", os.O_CREAT | os.O_WRONLY) as fd:
        os.ftruncate(fd, before * 2)
        assert before - free_bytes(root) < SLACK_BYTES


def stamped(block: bytearray, number: int) -> bytearray:
    """The block with its number in front: every block of the file is another."""
    block[:8] = number.to_bytes(8, "little")
    return block


def fill(path: Path, block: bytearray) -> int:
    """Write blocks until the filesystem is full, and close. Returns the bytes that write(2) accepted."""
    accepted = 0
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        try:
            while True:
                data = memoryview(stamped(block, accepted // MIB))[accepted % MIB :]
                accepted += os.write(fd, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
    return accepted


def check_filled(path: Path, block: bytearray, accepted: int) -> None:
    """The file is what `fill` wrote."""
    assert path.stat().st_size == accepted
    with opened(path, os.O_RDONLY) as fd:
        buffer = bytearray(MIB)
        for number in range(-(-accepted // MIB)):
            count = os.preadv(fd, [buffer], number * MIB)
            assert count == min(MIB, accepted - number * MIB)
            assert buffer[:count] == stamped(block, number)[:count], f"block {number}"


def free_to_fill(path: Path) -> int:
    """What is free, once it is no more in flux; the test is skipped if that is too much to fill."""
    eventually(lambda: settled(path), "the free space rests")
    if (free := free_bytes(path)) > MOST_TO_FILL_BYTES:
        pytest.skip(f"{free >> 30} GiB are free here: too much to fill")
    return free


def settled(path: Path) -> bool:
    """True when removed files of the tests before have given their space back."""
    before = free_bytes(path)
    time.sleep(1)
    return free_bytes(path) == before


def test_a_full_filesystem_says_enospc_from_write_and_keeps_what_it_took(root: Path) -> None:
    """ENOSPC comes from write(2), not from close; the file is whole up to there; unlink gives the space back."""
    free = free_to_fill(root)
    block, path = bytearray(random.Random(10).randbytes(MIB)), root / "file"
    accepted = fill(path, block)
    assert accepted == pytest.approx(free, rel=SHARE)
    check_filled(path, block, accepted)
    with fails(errno.ENOSPC), opened(root / "another", os.O_CREAT | os.O_WRONLY) as fd:
        for _ in range(SLACK_BYTES // MIB):
            os.write(fd, block)
    (root / "another").unlink()
    path.unlink()
    eventually(lambda: free_bytes(root) > free * 0.9, "the space is back")
    assert write(root / "after", b"x" * SLACK_BYTES).stat().st_size == SLACK_BYTES


def test_four_writers_fill_what_df_calls_free_and_every_file_is_what_was_accepted(root: Path) -> None:
    """And no close fails."""
    free = free_to_fill(root)
    blocks = [bytearray(random.Random(number).randbytes(MIB)) for number in range(4)]
    paths = [root / f"file{number}" for number in range(4)]
    with ThreadPoolExecutor(4) as pool:
        accepted = list(pool.map(fill, paths, blocks))
    assert sum(accepted) == pytest.approx(free, rel=SHARE)
    for path, block, count in zip(paths, blocks, accepted, strict=True):
        check_filled(path, block, count)


def test_posix_fallocate_takes_space_and_fallocate_may_be_unsupported(root: Path) -> None:
    """glibc writes a byte into each block when fallocate(2) is not there, so the space is had when it returns."""
    before = free_at_rest(root)
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, SLACK_BYTES)
        eventually(lambda: before - free_bytes(root) >= SLACK_BYTES, "the space is taken")
        if fallocate(fd, SLACK_BYTES):
            assert ctypes.get_errno() == errno.EOPNOTSUPP


def fallocate(fd: int, length: int) -> int:
    """fallocate(2), which os has not."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fallocate.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    return int(libc.fallocate(fd, 0, 0, length))
