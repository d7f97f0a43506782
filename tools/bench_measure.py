"""The measurements of `tools/bench`: plain system calls on a directory, no filesystem known by name.

Every figure is "more is better". The page cache is dropped before each phase called cold; only root can do that, so
`Workload.cold` says whether it was done.
"""

from __future__ import annotations

import os
import random
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20
BLOCK_BYTES = MIB
SMALL_BYTES = 4096
RANDOM_READ_S = 3.0
SEED = 20
SMALL_FILE = random.Random(SEED).randbytes(16 << 10)
DROP_CACHES = Path("/proc/sys/vm/drop_caches")


@dataclass(frozen=True, slots=True)
class Unit:
    """What a figure counts, for the table."""

    title: str
    unit: str


UNITS = {
    "seq_write": Unit("sequential write, 1 MiB, fsynced", "MB/s"),
    "seq_read": Unit("sequential read, 1 MiB, cold", "MB/s"),
    "rand_read_4k": Unit("random read, 4 KiB, cold", "reads/s"),
    "create": Unit("create", "files/s"),
    "stat": Unit("stat, cold", "files/s"),
    "rename": Unit("rename", "files/s"),
    "unlink": Unit("unlink", "files/s"),
    "mkdir": Unit("mkdir", "directories/s"),
    "small_write": Unit("write of a new file, 16 KiB", "files/s"),
}

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Workload:
    """How much is measured."""

    size_bytes: int
    files: int

    @property
    def cold(self) -> bool:
        """Whether this process may drop the kernel's caches."""
        return os.geteuid() == 0


def drop_caches(workload: Workload) -> None:
    """Make the kernel forget clean pages, names and attributes, where it lets us."""
    if workload.cold:
        os.sync()
        DROP_CACHES.write_text("3")


def write_sequentially(path: Path, size_bytes: int) -> float:
    """Write `path` in 1 MiB blocks, every block different, and fsync it. Returns MB/s."""
    block = bytearray(random.Random(SEED).randbytes(BLOCK_BYTES))
    started = time.perf_counter()
    fd = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644)
    try:
        for offset in range(0, size_bytes, BLOCK_BYTES):
            block[:8] = offset.to_bytes(8, "little")
            if os.pwrite(fd, block, offset) != BLOCK_BYTES:
                raise OSError(f"short write at {offset} of {path}")
        os.fsync(fd)
    finally:
        os.close(fd)
    return size_bytes / 1e6 / (time.perf_counter() - started)


def read_sequentially(path: Path) -> float:
    """Read `path` in 1 MiB blocks into one buffer. Returns MB/s."""
    block, total_bytes = bytearray(BLOCK_BYTES), 0
    started = time.perf_counter()
    fd = os.open(path, os.O_RDONLY)
    try:
        while count := os.readv(fd, [block]):
            total_bytes += count
    finally:
        os.close(fd)
    return total_bytes / 1e6 / (time.perf_counter() - started)


def read_at_random(path: Path, size_bytes: int) -> float:
    """Read 4 KiB at random places of `path` for a few seconds, one at a time. Returns reads/s."""
    block, places, reads = bytearray(SMALL_BYTES), random.Random(SEED), 0
    fd = os.open(path, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        started = time.perf_counter()
        while (now := time.perf_counter()) - started < RANDOM_READ_S:
            os.preadv(fd, [block], places.randrange(size_bytes // SMALL_BYTES) * SMALL_BYTES)
            reads += 1
    finally:
        os.close(fd)
    return reads / (now - started)


def create(path: Path) -> None:
    """Make one empty file."""
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))


def create_full(path: Path) -> None:
    """Make one small file: open, write, close."""
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644)
    try:
        if os.write(fd, SMALL_FILE) != len(SMALL_FILE):
            raise OSError(f"short write to {path}")
    finally:
        os.close(fd)


def rename(path: Path) -> None:
    """Give one file another name in its directory."""
    os.rename(path, renamed(path))


def renamed(path: Path) -> Path:
    """The name after `rename`."""
    return path.with_suffix(".renamed")


def each(action: Callable[[Path], object], paths: list[Path]) -> float:
    """Do `action` to every path. Returns actions/s."""
    started = time.perf_counter()
    for path in paths:
        action(path)
    return len(paths) / (time.perf_counter() - started)


@contextmanager
def scratch(directory: Path) -> Iterator[Path]:
    """A directory of our own inside `directory`, gone afterwards."""
    path = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    try:
        yield path
    finally:
        shutil.rmtree(path)


def measure(directory: Path, workload: Workload, done: Callable[[str], None]) -> Figures:
    """All figures of the filesystem that holds `directory`, once; `done` is called with each figure's name."""
    figures: Figures = {}

    def record(name: str, figure: float) -> None:
        figures[name] = figure
        done(name)

    with scratch(directory) as top:
        big = top / "big"
        record("seq_write", write_sequentially(big, workload.size_bytes))
        drop_caches(workload)
        record("seq_read", read_sequentially(big))
        drop_caches(workload)
        record("rand_read_4k", read_at_random(big, workload.size_bytes))
        big.unlink()
        paths = [top / f"{number}" for number in range(workload.files)]
        record("create", each(create, paths))
        drop_caches(workload)
        record("stat", each(os.stat, paths))
        record("rename", each(rename, paths))
        record("unlink", each(os.unlink, [renamed(path) for path in paths]))
        record("mkdir", each(os.mkdir, paths))
        for path in paths:
            path.rmdir()
        record("small_write", each(create_full, paths))
    return figures


def warm_up(directory: Path, workload: Workload) -> None:
    """Write and read a little, unmeasured: the first touch of fresh memory costs more than all that follows."""
    with scratch(directory) as top:
        write_sequentially(top / "warm", max(workload.size_bytes // 4 // MIB, 1) * MIB)
        read_sequentially(top / "warm")
