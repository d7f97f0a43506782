"""Space: what statfs says, and what happens when there is none left."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from tests.suite.syscalls import eventually, fails, opened, write

MIB = 1 << 20
SAMPLE_BYTES = 192 * MIB
SLACK_BYTES = 32 * MIB
MOST_TO_FILL_BYTES = 8 << 30


def free_bytes(path: Path) -> int:
    """What an unprivileged process may still write."""
    figures = os.statvfs(path)
    return figures.f_bavail * figures.f_frsize


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
    """Write blocks until the filesystem is full. Returns the bytes that write(2) accepted."""
    accepted = 0
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        try:
            while True:
                data = memoryview(stamped(block, accepted // MIB))[accepted % MIB :]
                accepted += os.write(fd, data)
        except OSError as error:
            assert error.errno == errno.ENOSPC, error
    return accepted


def test_a_full_filesystem_says_enospc_from_write_and_keeps_what_it_took(root: Path) -> None:
    """ENOSPC comes from write(2), not from close; the file is whole up to there; unlink gives the space back."""
    if (free := free_bytes(root)) > MOST_TO_FILL_BYTES:
        pytest.skip(f"{free >> 30} GiB are free here: too much to fill")
    block, path = bytearray(random.Random(10).randbytes(MIB)), root / "file"
    accepted = fill(path, block)
    assert accepted > free * 0.8
    assert path.stat().st_size == accepted
    with opened(path, os.O_RDONLY) as fd:
        buffer = bytearray(MIB)
        for number in range(-(-accepted // MIB)):
            count = os.preadv(fd, [buffer], number * MIB)
            assert count == min(MIB, accepted - number * MIB)
            assert buffer[:count] == stamped(block, number)[:count], f"block {number}"
    with fails(errno.ENOSPC), opened(root / "another", os.O_CREAT | os.O_WRONLY) as fd:
        for _ in range(SLACK_BYTES // MIB):
            os.write(fd, block)
    (root / "another").unlink()
    path.unlink()
    eventually(lambda: free_bytes(root) > free * 0.9, "the space is back")
    assert write(root / "after", b"x" * SLACK_BYTES).stat().st_size == SLACK_BYTES
