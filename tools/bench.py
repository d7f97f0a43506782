"""Measure the filesystem that holds a directory, alone or in turns with a filesystem that does nothing."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from bench_measure import MIB, UNITS, Figures, Workload, measure, warm_up
from bench_memory import PeakMemory, filesystem_type, find_daemon, mountpoint_of
from bench_nothing import NothingFailed, nothing
from bench_offload import offload
from bench_scale import scale
from bench_sharing import sharing
from bench_wire import STANDS_ON, WireFailed, wire
from bench_wire import UNITS as WIRE_UNITS

ROUNDS_AGAINST = 3


def run(
    places: dict[str, Path], workload: Workload, rounds: int, measure_wire: Callable[[], Figures] | None
) -> dict[str, list[Figures]]:
    """Measure the places in turns, the order reversed every other round. Returns each place's figures, one per round.

    What is below a mount, if it is to be measured, has its turn in each round, and its figures under `wire`.
    """
    results: dict[str, list[Figures]] = {case: [] for case in places}
    columns = (TextColumn("{task.description:42}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("warming up", total=rounds * len(places) * len(UNITS))
        for place in places.values():
            warm_up(place, workload)
        for number in range(rounds):
            for case in list(places)[:: 1 if number % 2 == 0 else -1]:

                def done(name: str, case: str = case, number: int = number) -> None:
                    progress.update(task, advance=1, description=f"round {number + 1}, {case}: {name}")

                results[case].append(measure(places[case], workload, done))
            if measure_wire is not None:
                results.setdefault("wire", []).append(measure_wire())
    return results


def summarise(results: dict[str, list[Figures]]) -> dict[str, Figures]:
    """The median of the rounds for every place and figure."""
    return {
        case: {name: statistics.median(figures[name] for figures in rounds) for name in rounds[0]}
        for case, rounds in results.items()
    }


def report(
    directory: Path, workload: Workload, rounds: int, medians: dict[str, Figures], memory: PeakMemory | None
) -> dict[str, Any]:
    """Everything the bench found out, as plain values."""
    found: dict[str, Any] = {
        "type": filesystem_type(mountpoint_of(directory)),
        "size_bytes": workload.size_bytes,
        "files": workload.files,
        "rounds": rounds,
        "cold": workload.cold,
        "figures": {name: round(figure, 1) for name, figure in medians["filesystem"].items()},
    }
    if "nothing" in medians:
        found["nothing"] = {name: round(figure, 1) for name, figure in medians["nothing"].items()}
        found["ratios"] = {
            name: round(medians["filesystem"][name] / medians["nothing"][name], 3) for name in medians["filesystem"]
        }
    if "wire" in medians:
        found["wire"] = {name: round(figure, 1) for name, figure in medians["wire"].items()}
        all_figures = {**medians["filesystem"], **medians["wire"]}
        found["of_tcp"] = {name: round(all_figures[name] / all_figures[tcp], 3) for name, tcp in STANDS_ON.items()}
    if memory is not None:
        found["daemon"] = {
            "pid": memory.pid,
            "peak_rss_bytes": memory.peak_bytes(),
            "since_start": memory.since_start,
        }
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Print the report as a table."""
    size, against = f"{found['size_bytes'] / (1 << 30):g} GiB", "nothing" in found
    table = Table(title=f"{found['type']}: {size}, {found['files']} files, median of {found['rounds']}")
    table.add_column("figure")
    table.add_column("here", justify="right")
    if against:
        table.add_column("nothing", justify="right")
        table.add_column("share", justify="right")
    table.add_column("unit")
    for name, unit in UNITS.items():
        cells = [unit.title, f"{found['figures'][name]:,.0f}"]
        if against:
            cells += [f"{found['nothing'][name]:,.0f}", f"{found['ratios'][name]:.0%}"]
        table.add_row(*cells, unit.unit)
    console.print(table)
    if "wire" in found:
        show_wire(found, console)
    if not found["cold"]:
        console.print("Only root can drop the kernel's caches: the figures called cold were warm.")
    if "daemon" in found and found["daemon"]["peak_rss_bytes"] is not None:
        console.print(f"The mount daemon's memory peaked at {found['daemon']['peak_rss_bytes'] / 1e6:,.0f} MB.")


def show_wire(found: dict[str, Any], console: Console) -> None:
    """Print what is below the mount, and what is made of it, as a table."""
    table = Table(title="raw TCP between the two hosts, and what is made of it")
    for title in ("figure", "MB/s", "share of raw TCP"):
        table.add_column(title, justify="left" if title == "figure" else "right")
    for name, unit in {**UNITS, **WIRE_UNITS}.items():
        if name in found["wire"] or name in found["of_tcp"]:
            figure = found["wire"].get(name, found["figures"].get(name))
            table.add_row(unit.title, f"{figure:,.0f}", f"{found['of_tcp'][name]:.0%}" if name in found["of_tcp"] else "")
    console.print(table)


def check_space(directory: Path, workload: Workload) -> None:
    """Raise ClickException if the filesystem has no room for the measurement."""
    figures = os.statvfs(directory)
    free_bytes = figures.f_bavail * figures.f_frsize
    if free_bytes < workload.size_bytes:
        raise click.ClickException(
            f"{directory} has {free_bytes / (1 << 30):.1f} GiB free; ask for less with --gib, or free some of it."
        )


class Bench(click.Group):
    """A group in which what names no command is what to do with a directory: `tools/bench DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in (*self.commands, *self.get_help_option_names(ctx)):
            args = ["directory", *args]
        return super().parse_args(ctx, args)


@click.group(cls=Bench, epilog="Example: tools/bench /mnt/gridmem --against-nothing --between gpu-master gpu1")
def main() -> None:
    """Measure. `tools/bench DIR` is short for `tools/bench directory DIR`."""


@main.command("directory")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path))
@click.option("--gib", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Size of the big file.")
@click.option("--files", type=click.IntRange(min=1), default=2000, show_default=True, help="Number of small files.")
@click.option("--against-nothing", is_flag=True, help="Measure a pyfuse3 filesystem that does nothing in the same run.")
@click.option("--between", nargs=2, metavar="HOST HOST", help="Measure raw TCP and streams between two hosts of the testbed.")
@click.option("--rounds", type=click.IntRange(min=1), help="Take the median of so many; 3 against nothing, else 1.")
@click.option("--daemon-pid", type=int, help="The mount daemon whose memory to watch; found by itself if it can be.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def measure_directory(
    directory: Path,
    gib: float,
    files: int,
    against_nothing: bool,
    between: tuple[str, str] | None,
    rounds: int | None,
    daemon_pid: int | None,
    as_json: bool,
) -> None:
    """Print what the filesystem that holds DIRECTORY can do: bytes, small reads, small files and names per second."""
    workload = Workload(max(int(gib * 1024), 1) * MIB, files)
    check_space(directory, workload)
    rounds = rounds or (ROUNDS_AGAINST if against_nothing else 1)
    pid = daemon_pid or find_daemon(mountpoint_of(directory))
    try:
        memory = PeakMemory(pid) if pid is not None else None
        with ExitStack() as stack:
            places = {"filesystem": directory}
            if against_nothing:
                places["nothing"] = stack.enter_context(nothing())
            measure_wire = stack.enter_context(wire(*between, workload.size_bytes)) if between else None
            medians = summarise(run(places, workload, rounds, measure_wire))
        found = report(directory, workload, rounds, medians, memory)
    except (OSError, subprocess.SubprocessError, NothingFailed, WireFailed) as error:
        raise click.ClickException(f"The measurement ended early: {error}") from error
    if as_json:
        json.dump(found, sys.stdout)
        print()
    else:
        show(found, Console())


main.add_command(scale)
main.add_command(sharing)
main.add_command(offload)


if __name__ == "__main__":
    main()
