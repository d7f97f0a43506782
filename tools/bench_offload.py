"""`tools/bench offload`: jobs where the bytes are, against the same work on bytes that a program fetches through the mount."""

from __future__ import annotations

import json
import os
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from bench_measure import DROP_CACHES, MIB, SEED, scratch
from bench_offload_jobs import check_alike, submit, submit_and_wait
from bench_offload_queue import QueueFigures, measure_queue

LINES = 1 << 16
EMPTY_ROUNDS = 20
EMPTY_MARK_MS = 150.0
BRIDGE_PORTS = Path("/sys/class/net/gmbr0/brif")
"""The testbed's bridge: what a host sends comes in at its port, whichever process sends it."""
IDLE_S = 2.0
PROGRAM_TIMEOUT_S = 600.0


@dataclass(frozen=True, slots=True)
class Case:
    """The same work as a job and as a shell line; both name the input {file} and the output {out}, if they have one."""

    job: str
    program: str
    output: str = ""
    network_mark: float | None = None
    """The share of the input that the job may move over the network."""


CASES = {
    "sha256": Case("sha256", "sha256sum"),
    "wc": Case("wc", "wc", network_mark=0.01),
    "grep": Case("grep -c needle", "grep -c needle", network_mark=0.01),
    "zstd": Case('{"function": "zstd", "args": [3], "output": "zst"}', "zstd -q -3 -c", "zst"),
    "sha256-command": Case('{"run": "sha256sum"}', "sha256sum"),
    "zstd-command": Case('{"run": "zstd -q -3 -c", "output": "zst"}', "zstd -q -3 -c", "zst"),
}
SECTIONS = (*CASES, "empty", "queue")


@dataclass(frozen=True, slots=True)
class CaseFigures:
    """What a case has cost, as a job and as a program. Bytes over the network are None where they cannot be counted."""

    job_s: float
    program_s: float
    job_network_bytes: int | None
    program_network_bytes: int | None
    told_network_bytes: int
    """Of the input, as the job's status has it."""
    told_local_bytes: int
    nodes: list[str]


# -- the input -------------------------------------------------------------------------------------------------------


def write_text(path: Path, size_bytes: int) -> None:
    """Fill `path` with lines that a compressor can do something with; one in 4096 has a needle in it."""
    chance = random.Random(SEED)
    words = [chance.randbytes(chance.randint(2, 6)).hex() for _ in range(2000)]
    lines = (" ".join(chance.choices(words, k=8)) + (" needle\n" if not at % 4096 else "\n") for at in range(LINES))
    block = "".join(lines).encode()
    with path.open("wb", buffering=0) as file:
        for at in range(0, size_bytes, len(block)):
            file.write(b"%016d " % at)
            file.write(block[: size_bytes - at])
        file.truncate(size_bytes)
        os.fsync(file.fileno())


# -- the network -----------------------------------------------------------------------------------------------------


def network_bytes() -> int | None:
    """What all hosts of the testbed have sent to each other so far, headers included; None without a testbed."""
    try:
        ports = [port.name for port in BRIDGE_PORTS.iterdir()]
    except FileNotFoundError:
        return None
    return sum(int(Path(f"/sys/class/net/{port}/statistics/rx_bytes").read_text()) for port in ports)


def idle_rate() -> int | None:
    """Bytes a second that the hosts send while nothing is asked of them: Ray's and the filesystem's heartbeats."""
    before = network_bytes()
    time.sleep(IDLE_S)
    after = network_bytes()
    return None if before is None or after is None else int((after - before) / IDLE_S)


def measured(action: Callable[[], Any]) -> tuple[Any, float, int | None]:
    """(what `action` returns, seconds, bytes over the network), with the kernel's caches dropped before, where we may."""
    if os.geteuid() == 0:
        os.sync()
        DROP_CACHES.write_text("3")
    before, started = network_bytes(), time.perf_counter()
    result = action()
    took_s, after = time.perf_counter() - started, network_bytes()
    return result, took_s, None if before is None or after is None else after - before


# -- the measurements ------------------------------------------------------------------------------------------------


def run_program(case: Case, file: Path) -> str:
    """What `cat FILE | program` prints. Its output goes beside the file."""
    output = file.with_name(f"{case.output}.program") if case.output else None
    line = f'cat "$1" | {case.program}' + (' > "$2"' if output else "")
    command = ["sh", "-c", line, "sh", str(file), str(output)]
    return subprocess.run(command, check=True, capture_output=True, text=True, timeout=PROGRAM_TIMEOUT_S).stdout


def measure_case(case: Case, file: Path) -> CaseFigures:
    """The case both ways; the results have to be alike. Raises ClickException when they are not, or the job fails."""
    status, job_s, job_bytes = measured(lambda: submit_and_wait(file, case.job))
    printed, program_s, program_bytes = measured(lambda: run_program(case, file))
    check_alike(file, status, printed, case.output)
    for leftover in (file.with_name(case.output), file.with_name(f"{case.output}.program")) if case.output else ():
        leftover.unlink()
    told = status["bytes_network"], status["bytes_local"]
    return CaseFigures(job_s, program_s, job_bytes, program_bytes, *told, status["nodes"])


def measure_empty(directory: Path) -> dict[str, float]:
    """Milliseconds from setxattr to done of a job with nothing to do, the median of EMPTY_ROUNDS, of each kind."""
    file = directory / "empty"
    file.touch()
    figures = {}
    for kind, request in {"function": "wc", "command": '{"run": "true"}'}.items():
        submit_and_wait(file, request)
        times_s = [measured_job(file, request) for _ in range(EMPTY_ROUNDS)]
        figures[kind] = statistics.median(times_s) * 1e3
    file.unlink()
    return figures


def measured_job(file: Path, request: str) -> float:
    """Seconds from setxattr to the first answer that says done."""
    started = time.perf_counter()
    submit_and_wait(file, request)
    return time.perf_counter() - started


# -- the report ------------------------------------------------------------------------------------------------------


def measure(directory: Path, size_bytes: int, jobs: int, sections: Sequence[str], say: Callable[[str], None]) -> dict[str, Any]:
    """Everything that was asked for, as plain values."""
    found: dict[str, Any] = {
        "size_bytes": size_bytes,
        "network": "status" if network_bytes() is None else "bridge",
        "idle_network_bytes_per_s": idle_rate(),
        "cases": {},
    }
    with scratch(directory) as top:
        file = top / "input"
        say("writing the input")
        write_text(file, size_bytes)
        submit(file, "wc").wait()  # the first job starts processes, and seals what is still open
        for name in (name for name in CASES if name in sections):
            say(name)
            found["cases"][name] = asdict(measure_case(CASES[name], file))
        if "empty" in sections:
            say("empty jobs")
            found["empty_ms"] = measure_empty(top)
        if "queue" in sections:
            say(f"{jobs:,} jobs at once")
            found["queue"] = asdict(measure_queue(file, jobs))
    return found


def show(found: dict[str, Any], console: Console) -> None:
    """Print the report as tables."""
    table = Table(title=f"{found['size_bytes'] / (1 << 30):g} GiB: job against cat FILE | program")
    for title in ("work", "job, s", "program, s", "job, network", "of the input", "mark", "program, network", "on"):
        table.add_column(title, justify="left" if title in ("work", "on") else "right")
    for name, figures in found["cases"].items():
        table.add_row(name, *case_cells(CASES[name], CaseFigures(**figures), found["size_bytes"]))
    if found["cases"]:
        console.print(table)
        where = "the status of the jobs" if found["network"] == "status" else "the testbed's bridge, headers included"
        console.print(f"Bytes over the network: from {where}; idle, {found['idle_network_bytes_per_s'] or 0:,} bytes/s.")
    for kind, took_ms in found.get("empty_ms", {}).items():
        console.print(f"An empty {kind} takes {took_ms:.0f} ms from setxattr to done; mark {EMPTY_MARK_MS:.0f} ms.")
    if "queue" in found:
        console.print(QueueFigures(**found["queue"]).told())


def case_cells(case: Case, figures: CaseFigures, size_bytes: int) -> list[str]:
    """The cells of a case's row."""
    job_bytes = figures.told_network_bytes if figures.job_network_bytes is None else figures.job_network_bytes
    program_bytes = figures.program_network_bytes
    return [
        f"{figures.job_s:.2f}",
        f"{figures.program_s:.2f}",
        f"{job_bytes / MIB:,.1f} MiB",
        f"{job_bytes / size_bytes:.2%}",
        "" if case.network_mark is None else f"{case.network_mark:.0%}",
        "" if program_bytes is None else f"{program_bytes / MIB:,.1f} MiB",
        ", ".join(figures.nodes),
    ]


@click.command(epilog="Example: tools/bench offload /mnt/gridmem --gib 1")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path))
@click.option("--gib", type=click.FloatRange(min=0.001), default=1.0, show_default=True, help="Size of the input.")
@click.option("--jobs", type=click.IntRange(min=1), default=1000, show_default=True, help="Jobs queued at once.")
@click.option("--only", "sections", multiple=True, type=click.Choice(SECTIONS), help="Measure just this; may be repeated.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of tables.")
def offload(directory: Path, gib: float, jobs: int, sections: tuple[str, ...], as_json: bool) -> None:
    """Print what jobs on a file in DIRECTORY cost, against programs that read the file. DIRECTORY is in a gridfs mount."""
    progress = Console(stderr=True)
    try:
        with progress.status("beginning") as status:
            found = measure(directory, max(int(gib * 1024), 1) * MIB, jobs, sections or SECTIONS, status.update)
    except (OSError, subprocess.SubprocessError) as error:
        raise click.ClickException(f"The measurement ended early: {error}") from error
    if as_json:
        json.dump(found, sys.stdout)
        print()
    else:
        show(found, Console())
