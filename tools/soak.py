"""Write and read back some GiB through a mount, one file and many at once, and watch the memory of its daemon."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from io import FileIO
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from bench_memory import PeakMemory, find_daemon, mountpoint_of

MIB = 1 << 20
BLOCKS, FILE_BLOCKS = 64, 8
"""Different blocks of 1 MiB, in an order that a seed decides: random bytes would cost more than the filesystem."""


def content(gib: float) -> list[int]:
    """Which block comes where."""
    return random.Random(1).choices(range(BLOCKS), k=int(gib * 1024))


def soak(path: Path, gib: float) -> bool:
    """True if the bytes come back as they were written."""
    dice = random.Random(2)
    blocks = [dice.randbytes(MIB) for _ in range(BLOCKS)]
    order, written, read = content(gib), hashlib.sha256(), hashlib.sha256()
    with Progress(console=Console(stderr=True), transient=True) as progress:
        with path.open("wb", buffering=0) as file:
            for number in progress.track(order, description="writing"):
                file.write(blocks[number])
                written.update(blocks[number])
            os.fsync(file.fileno())
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with path.open("rb", buffering=0) as file:
            for _ in progress.track(order, description="reading"):
                read.update(file.read(MIB))
            more = file.read(1)
    return not more and read.digest() == written.digest()


@contextmanager
def many(directory: Path, count: int) -> Iterator[list[FileIO]]:
    """So many open files, which are gone afterwards."""
    with ExitStack() as stack:
        files = []
        for number in range(count):
            path = directory / f"soak-{number}"
            files.append(stack.enter_context(FileIO(path, "w+")))
            stack.callback(path.unlink)
        yield files


def soak_many(files: list[FileIO]) -> bool:
    """True if what is written to and read from all of them at the same time is the same."""
    dice = random.Random(3)
    blocks = [dice.randbytes(MIB) for _ in range(BLOCKS)]

    def write(number: int) -> bool:
        return all(
            os.pwrite(files[number].fileno(), blocks[(number + at) % BLOCKS], at * MIB) == MIB for at in range(FILE_BLOCKS)
        )

    def read(number: int) -> bool:
        descriptor = files[number].fileno()
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        return all(os.pread(descriptor, MIB, at * MIB) == blocks[(number + at) % BLOCKS] for at in range(FILE_BLOCKS))

    def read_or_write(number: int) -> bool:
        return read(number) if number % 2 else write(number)

    steps: tuple[Callable[[int], bool], ...] = (write, read_or_write, read)
    with ThreadPoolExecutor(max(len(files), 1)) as threads:
        return all(all(list(threads.map(step, range(len(files))))) for step in steps)


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--gib", type=click.FloatRange(min=0.01), default=4.0, show_default=True, help="Size of the file.")
@click.option("--files", type=click.IntRange(min=0), default=200, show_default=True, help="Files of 8 MiB used at once.")
@click.option("--limit-mb", type=int, default=418, show_default=True, help="Most memory that the daemon may take.")
def main(directory: Path, gib: float, files: int, limit_mb: int) -> None:
    """Write and read back a big file in DIRECTORY, and then many files at once.

    Fails if bytes differ, or the mount daemon takes too much memory: its budget of 256 MiB and 150 MB by default.

    Example: tools/soak /mnt/gridmem --gib 4
    """
    pid = find_daemon(mountpoint_of(directory.resolve()))
    if pid is None:
        sys.exit(f"soak: no mount daemon serves {directory} on this machine")
    path, memory = directory / "soak", PeakMemory(pid)
    try:
        same = soak(path, gib)
        path.unlink()
        with many(directory, files) as opened:
            same_of_many = soak_many(opened)
    except OSError as error:
        sys.exit(f"soak: {error}")
    finally:
        path.unlink(missing_ok=True)
    peak_mb = (memory.peak_bytes() or 0) / 1e6
    print(f"{gib:g} GiB written and read back: {'the same bytes' if same else 'OTHER BYTES'}")
    print(f"{files} files written and read at once: {'the same bytes' if same_of_many else 'OTHER BYTES'}")
    print(f"the mount daemon's memory peaked at {peak_mb:.0f} MB; the limit is {limit_mb} MB")
    sys.exit(not (same and same_of_many) or not 0 < peak_mb < limit_mb)


if __name__ == "__main__":
    main()
