"""Write and read back some GiB through a mount, and watch that its daemon's memory stays under a limit."""

from __future__ import annotations

import hashlib
import os
import random
import sys
from pathlib import Path

import click
from rich.console import Console
from rich.progress import Progress

from bench_memory import PeakMemory, find_daemon, mountpoint_of

MIB = 1 << 20
BLOCKS = 64
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


@click.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--gib", type=click.FloatRange(min=0.01), default=4.0, show_default=True, help="Size of the file.")
@click.option("--limit-mb", type=int, default=300, show_default=True, help="Most memory that the daemon may take.")
def main(directory: Path, gib: float, limit_mb: int) -> None:
    """Write and read back a big file in DIRECTORY; fail if bytes differ, or the mount daemon takes too much memory.

    Example: tools/soak /mnt/gridmem --gib 4
    """
    pid = find_daemon(mountpoint_of(directory.resolve()))
    if pid is None:
        sys.exit(f"soak: no mount daemon serves {directory} on this machine")
    path, memory = directory / "soak", PeakMemory(pid)
    try:
        same = soak(path, gib)
    except OSError as error:
        sys.exit(f"soak: {error}")
    finally:
        path.unlink(missing_ok=True)
    peak_mb = (memory.peak_bytes() or 0) / 1e6
    print(f"{gib:g} GiB written and read back: {'the same bytes' if same else 'OTHER BYTES'}")
    print(f"the mount daemon's memory peaked at {peak_mb:.0f} MB; the limit is {limit_mb} MB")
    sys.exit(not same or not 0 < peak_mb < limit_mb)


if __name__ == "__main__":
    main()
