"""Where the time of a sequential write and read goes: in the mount's daemon, and in the chunk servers.

`perf` samples the processes, kernel and all, while the work is done. Each sample is put down to the first line of PARTS that
its call chain matches; time in which a process did not run is in none. Python's functions are one line: perf does not tell
them apart.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import click
from rich.console import Console
from rich.table import Table

from bench_measure import MIB, Workload, drop_caches, read_sequentially, scratch, warm_up, write_sequentially
from bench_memory import PROC, find_daemon, mountpoint_of

SAMPLES_A_SECOND = 499
CHUNK_SERVER = b"ray::ChunkServer"
"""What Ray calls the actor's process."""
PROGRAM = "program"

PARTS = {
    "first touch of memory (page faults)": r"\b(asm_)?exc_page_fault\b",
    "requests from the kernel (/dev/fuse, read)": r"\bfuse_dev_(do_)?(read|splice_read)\b",
    "replies to the kernel (/dev/fuse, write)": r"\bfuse_dev_(do_)?(write|splice_write)\b",
    "streams, sending": r"\b__(x64_)?sys_send(msg|to)\b",
    "streams, receiving": r"\b__(x64_)?sys_recv(msg|from)\b",
    "network, in the background": r"\b(net_rx_action|ksoftirqd|tcp_\w+)\b",
    "the program's calls (copies to and from the page cache)": r"\bfuse_(file|cache)_(read|write)_iter\b",
    "waiting and waking (epoll, futex, scheduler)": r"\b(\w*epoll\w*|\w*futex\w*|schedule|\w*poll)\b",
    "the kernel, otherwise": r"^\s*[0-9a-f]+ .*\(\[(kernel\.kallsyms|vdso|\w+)\]\)",
    "checksums (xxhash)": r"^.*_xxhash\S*\.so\)",
    "copying in memory (libc)": r"^.*(mem(cpy|move|set)\w*).*\(",
    "headers (msgpack)": r"^.*_cmsgpack\S*\.so\)",
    "libfuse and pyfuse3": r"^.*(libfuse3|pyfuse3)\S*\)",
    "Ray": r"^.*(_raylet|libjemalloc)\S*\)",
    "Python": r"",
}
"""Title -> what a call chain matches, innermost frame first; those with ^ look at the innermost only."""
_PATTERNS = {title: re.compile(pattern) for title, pattern in PARTS.items()}

Seconds = dict[str, float]


@dataclass(frozen=True)
class Work:
    """Something done under perf's eyes: its own figure, how long it took, how busy the machine and each process was."""

    figure: float
    took_s: float
    busy_s: float
    parts: dict[int, Seconds]


class ProfileFailed(Exception):
    """perf did not do its work; the message says why."""


# -- sampling --------------------------------------------------------------------------------------------------------


def processors_busy_s() -> float:
    """Seconds that the machine's processors have not been idle, all together, since it started: proc(5), /proc/stat."""
    user, nice, system, _idle, _waiting, irq, softirq, *_ = map(int, (PROC / "stat").read_text().splitlines()[0].split()[1:])
    return (user + nice + system + irq + softirq) / os.sysconf("SC_CLK_TCK")


def chunk_servers() -> list[int]:
    """The processes of all chunk servers on this machine."""
    return [int(entry.name) for entry in PROC.iterdir() if entry.name.isdigit() and _command(entry).startswith(CHUNK_SERVER)]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:  # it ended meanwhile
        return b""


def sample(pids: Iterable[int], work: Callable[[], float]) -> Work:
    """Do `work` while perf watches."""
    with tempfile.TemporaryDirectory(prefix="profile-") as directory:
        data = Path(directory) / "perf.data"
        watch = ["perf", "record", "-q", "-F", str(SAMPLES_A_SECOND), "-e", "cpu-clock", "-g", "-o", str(data)]
        perf = subprocess.Popen([*watch, "-p", ",".join(map(str, pids))], stderr=subprocess.PIPE, text=True)
        try:
            _wait_until_it_watches(perf, data)
            started, busy_s = time.perf_counter(), processors_busy_s()
            figure = work()
            took_s, busy_s = time.perf_counter() - started, processors_busy_s() - busy_s
        finally:
            perf.terminate()
            _, said = perf.communicate(timeout=60)
        if not data.exists() or not data.stat().st_size:
            raise ProfileFailed(f"perf recorded nothing: {said.strip()[-300:]}")
        return Work(figure, took_s, busy_s, count(chains(data)))


def _wait_until_it_watches(perf: subprocess.Popen[str], data: Path) -> None:
    while not data.exists():
        if perf.poll() is not None:
            raise ProfileFailed("perf ended at once: try `perf record -p PID` by hand")
        time.sleep(0.05)
    time.sleep(0.3)  # the file is there a moment before the counters are


def chains(data: Path) -> Iterator[tuple[int, list[str]]]:
    """(process, call chain from the innermost frame on) of each sample."""
    command = ["perf", "script", "-i", str(data), "-F", "pid,ip,sym,dso"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, errors="replace") as script:
        assert script.stdout is not None
        pid, chain = 0, []
        for line in script.stdout:
            if line[0] not in " \t\n" or line.strip().isdigit():
                pid = int(line)
            elif line.strip():
                chain.append(line.strip())
            elif chain:
                yield pid, chain
                chain = []


def count(samples: Iterable[tuple[int, list[str]]]) -> dict[int, Seconds]:
    """The seconds that each process spent in each part."""
    counts: dict[int, Counter[str]] = {}
    for pid, chain in samples:
        counts.setdefault(pid, Counter())[part(chain)] += 1
    return {pid: {title: n / SAMPLES_A_SECOND for title, n in counter.items()} for pid, counter in counts.items()}


def part(chain: list[str]) -> str:
    """The part that a call chain belongs to."""
    whole = "\n".join(chain)
    return next(
        title for title, pattern in _PATTERNS.items() if pattern.search(chain[0] if pattern.pattern.startswith("^") else whole)
    )


# -- the work --------------------------------------------------------------------------------------------------------


def profile(works: dict[str, Callable[[], float]], pids: dict[int, str]) -> dict[str, dict[str, object]]:
    """For each work its figure, its time, and of each role's processes the share of that time that each part took."""
    found: dict[str, dict[str, object]] = {}
    for name, work in works.items():
        drop_caches(ANYTHING)
        done = sample(pids, work)
        roles: dict[str, Counter[str]] = {role: Counter() for role in dict.fromkeys(pids.values())}
        for pid, parts in done.parts.items():
            role = pids.get(pid, PROGRAM)  # what the program has started is part of it
            roles[role].update({title: spent / done.took_s for title, spent in parts.items()})
        busy = round(done.busy_s / done.took_s, 2)
        found[name] = {"figure": round(done.figure, 1), "took_s": round(done.took_s, 2), "busy": busy, "shares": roles}
    return found


def show(found: dict[str, dict[str, object]], console: Console) -> None:
    """Print a table: parts down, works and roles across."""
    table = Table(title="share of the time of the work; 100 % is one processor")
    table.add_column("part")
    columns: list[dict[str, float]] = []
    for name, work in found.items():
        shares = work["shares"]
        assert isinstance(shares, dict)
        for role, parts in shares.items():
            table.add_column(f"{name}\n{work['figure']:,} {UNITS.get(name, '')}\n{role}", justify="right")
            columns.append(parts)
    for title in PARTS:
        if any(parts.get(title, 0) >= 0.005 for parts in columns):
            table.add_row(title, *(f"{parts.get(title, 0):.0%}" for parts in columns))
    table.add_section()
    table.add_row("in all", *(f"{sum(parts.values()):.0%}" for parts in columns))
    console.print(table)
    for name, work in found.items():
        console.print(
            f"{name}: {work['took_s']} s, in which the machine was busy with {work['busy']} of its {os.cpu_count()} processors"
        )


ANYTHING = Workload(0, 0)
UNITS = {"write": "MB/s", "read": "MB/s", "command": "s"}


def run(command: tuple[str, ...]) -> float:
    """Run the command, its output going to standard error. Returns how many seconds it took."""
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=sys.stderr)
    return time.perf_counter() - started


@click.command(epilog="Example: tools/profile /mnt/gridmem --gib 2")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, writable=True, path_type=Path))
@click.argument("command", nargs=-1, type=click.UNPROCESSED)
@click.option("--gib", type=click.FloatRange(min=0.01), default=1.0, show_default=True, help="Size of the file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object instead of a table.")
def main(directory: Path, command: tuple[str, ...], gib: float, as_json: bool) -> None:
    """Print where the time goes while a file below DIRECTORY is written and read, or while COMMAND runs there."""
    if os.geteuid() != 0 or shutil.which("perf") is None:
        raise click.ClickException("sampling other processes takes root and perf (Debian: linux-perf)")
    daemon = find_daemon(mountpoint_of(directory))
    if daemon is None:
        raise click.ClickException(f"no daemon was found that serves {mountpoint_of(directory)}")
    pids = {os.getpid(): PROGRAM, daemon: "mount", **dict.fromkeys(chunk_servers(), "chunk servers")}
    workload = Workload(max(int(gib * 1024), 1) * MIB, 0)
    try:
        with scratch(directory) as top:
            big = top / "big"
            works: dict[str, Callable[[], float]] = {"command": lambda: run(command)}
            if not command:
                warm_up(directory, workload)
                works = {
                    "write": lambda: write_sequentially(big, workload.size_bytes),
                    "read": lambda: read_sequentially(big),
                }
            found = profile(works, pids)
    except (OSError, ProfileFailed, subprocess.SubprocessError) as error:
        raise click.ClickException(f"The profile ended early: {error}") from error
    if as_json:
        print(json.dumps(found))
    else:
        show(found, Console())


if __name__ == "__main__":
    main()
