"""`tools/bench scale`: what the metadata of many files costs, in memory and in time.

The table is made by ops, as a mount makes it, and kept in a store. Everything is measured in fresh processes
(`bench_scale_roles.py`): the server over that store, and the replica of a mount that attaches to it over a stream.
"""

from __future__ import annotations

import json
import os
import random
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import Progress
from rich.table import Table as Grid

from gridfs.meta.inode import ROOT_INO
from gridfs.meta.store import Store
from gridfs.meta.table import Op, Table

ROLES = Path(__file__).with_name("bench_scale_roles.py")
DIRECTORY_FILES = 100_000
OPS_A_SAVE = 30_000
SEED = 20
SERVERS = tuple((f"gpu{number}-{number * 0x1F2E3D4C:08x}",) for number in range(1, 9))
NAMES = ("IMG_{:07}.jpg", "shard-{:08}.tar", "frame.{:07}.exr", "{:012x}.json", "sample-{:07}.parquet")
"""Of 15 to 22 bytes, as cameras, renderers and trainers make them."""
START_NS = 1_760_000_000 * 10**9


@dataclass(frozen=True, slots=True)
class Row:
    """One figure: its title, its unit, the mark it must stay under at a million files, if it has one."""

    title: str
    unit: str
    mark: float | None = None


ROWS = {
    "server_bytes": Row("server, memory", "bytes/inode", 600),
    "replica_bytes": Row("replica, memory", "bytes/inode", 600),
    "attach_s": Row("attach", "s", 5),
    "restart_s": Row("restart of the server", "s", 10),
    "list_s": Row(f"list the largest directory, at most {DIRECTORY_FILES:,} files", "s", 2),
    "pause_s": Row("a full garbage collection in the mount", "s"),
}


# -- the table -------------------------------------------------------------------------------------------------------


def ops(files: int) -> Iterator[Op]:
    """Directories full of files, each written once, into one chunk, as a mount tells of it; every file another time."""
    dice, now_ns, ino, directory = random.Random(SEED), START_NS, ROOT_INO, ROOT_INO
    yield "format", now_ns, 0, 0
    for number in range(files):
        if number % DIRECTORY_FILES == 0:
            ino = directory = ino + 1
            yield "make", now_ns, ino, ROOT_INO, b"batch-%04d" % (number // DIRECTORY_FILES), stat.S_IFDIR | 0o755, 1000, 1000
        ino += 1
        now_ns += dice.randrange(10**8)
        yield "make", now_ns, ino, directory, NAMES[ino % len(NAMES)].format(ino).encode(), stat.S_IFREG | 0o644, 1000, 1000
        yield "place", ino, 0, SERVERS[ino % len(SERVERS)]
        yield "extend", now_ns + dice.randrange(10**7), ino, dice.randrange(1, 1 << 20)


def make_store(path: Path, files: int, progress: Progress) -> None:
    """A store with a table of `files` files, saved in transactions as the server does."""
    store, table, left = Store(path), Table(), ops(files)
    task = progress.add_task(f"making {files:,} files", total=files)
    while batch := list(islice(left, OPS_A_SAVE)):
        for op in batch:
            table.apply(op)
        store.save(table, table.changes, {})
        table.changes.clear()
        progress.update(task, completed=len(table.inodes))
    store.close()
    progress.remove_task(task)


# -- the measurement -------------------------------------------------------------------------------------------------


@contextmanager
def role(*arguments: object) -> Iterator[dict[str, Any]]:
    """What a fresh process in this role has measured; it lives for the length of the context."""
    command = [sys.executable, str(ROLES), *map(str, arguments)]
    environment = {**os.environ, "GRIDFS_LOG": "warning"}
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            line = process.stdout.readline()
            if not line:
                raise click.ClickException(f"the {arguments[0]} ended early, with status {process.wait()}")
            yield json.loads(line)
        finally:
            process.stdin.close()


def measure(files: int, progress: Progress) -> dict[str, float]:
    """All figures of a table of `files` files, by their names in ROWS."""
    with tempfile.TemporaryDirectory(prefix="bench-scale-") as directory:
        make_store(Path(directory) / "inodes.sqlite", files, progress)
        with role("server", directory) as server, role("replica", server["port"]) as replica:
            figures = {name: replica[name] for name in ("attach_s", "list_s", "pause_s")}
            assert replica["listed"] == min(files, DIRECTORY_FILES)
            return figures | {
                "restart_s": server["restart_s"],
                "server_bytes": server["bytes"] / server["inodes"],
                "replica_bytes": replica["bytes"] / server["inodes"],
            }


def show(found: dict[int, dict[str, float]], console: Console) -> None:
    """Print a column for each number of files."""
    grid = Grid(title="metadata at scale")
    grid.add_column("figure")
    for files in found:
        grid.add_column(f"{files:,} files", justify="right")
    grid.add_column("unit")
    grid.add_column("mark", justify="right")
    for name, row in ROWS.items():
        digits = 0 if row.unit == "bytes/inode" else 2
        cells = [f"{figures[name]:,.{digits}f}" for figures in found.values()]
        grid.add_row(row.title, *cells, row.unit, f"{row.mark:g}" if row.mark else "")
    console.print(grid)


def parse_counts(context: click.Context, parameter: click.Parameter, text: str) -> list[int]:
    """The numbers in a list with commas."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = []
    if not counts or min(counts) < 1:
        raise click.BadParameter("numbers of files, with commas in between")
    return counts


@click.command(epilog="Example: tools/bench scale --files 10000,100000")
@click.option("--files", "counts", callback=parse_counts, default="10000,100000,1000000", show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def scale(counts: list[int], as_json: bool) -> None:
    """Print what the metadata of so many files costs: memory, attaching, restarting, listing. Needs no mount."""
    with Progress(console=Console(stderr=True), transient=True) as progress:
        found = {files: measure(files, progress) for files in counts}
    if as_json:
        print(json.dumps({str(files): figures for files, figures in found.items()}))
    else:
        show(found, Console())


if __name__ == "__main__":
    scale()
