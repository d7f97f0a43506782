"""`tools/bench sharing`: files made by two mounts of one filesystem at the same time, in one directory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import click

WORK = """
import os, sys
directory, who, count = sys.argv[1], sys.argv[2], int(sys.argv[3])
sys.stdin.read(1)
for number in range(count):
    os.close(os.open(f"{directory}/{who}{number}", os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o644))
"""
DEADLINE_S = 300.0


def create_on_both(directories: tuple[Path, Path], files: int) -> float:
    """Let a process on each mount make so many files; returns files/s in total. Raises ClickException when one fails."""
    workers = [
        subprocess.Popen([sys.executable, "-c", WORK, str(directory), name, str(files)], stdin=subprocess.PIPE)
        for directory, name in zip(directories, ("one-", "two-"), strict=True)
    ]
    time.sleep(1.0)  # both are up, and wait
    started = time.perf_counter()
    for worker in workers:
        worker.communicate(b"g", timeout=DEADLINE_S)
    took_s = time.perf_counter() - started
    if any(worker.returncode for worker in workers):
        raise click.ClickException("a process that makes files failed: see above")
    return len(workers) * files / took_s


@click.command(epilog="Example: tools/bench sharing /mnt/gridmem /mnt/gridmem-of-gpu1")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path))
@click.argument("other", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path))
@click.option("--files", type=click.IntRange(min=1), default=3000, show_default=True, help="Files made on each mount.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sharing(directory: Path, other: Path, files: int, as_json: bool) -> None:
    """Print how many files a second two mounts make together. DIRECTORY and OTHER are one directory, on two mounts."""
    here = Path(tempfile.mkdtemp(prefix="bench-", dir=directory))
    try:
        there = other / here.name
        if not there.is_dir():
            raise click.ClickException(f"{other} is not {directory} on another mount: {here.name} is not in it")
        rate = create_on_both((here, there), files)
        for top in (here, there):
            if (found := len(os.listdir(top))) != 2 * files:
                raise click.ClickException(f"{top} lists {found} files of {2 * files}")
    finally:
        shutil.rmtree(here)
    if as_json:
        print(json.dumps({"creates_per_s": round(rate, 1), "files": 2 * files}))
    else:
        print(f"two mounts made {2 * files:,} files in one directory, {rate:,.0f} a second in total")
