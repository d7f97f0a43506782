"""A thousand jobs at once: whether any is lost, and what the mount's readers notice."""

from __future__ import annotations

import errno
import json
import os
import random
import statistics
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

import click

from bench_measure import DROP_CACHES, RANDOM_READ_S, SEED, SMALL_BYTES
from bench_offload_jobs import ENDED, JOB_TIMEOUT_S, left, submit

_PAUSE_S = 0.05


@dataclass(frozen=True, slots=True)
class QueueFigures:
    """What became of the jobs, and of 4 KiB reads at random places of the input meanwhile."""

    jobs: int
    done: int
    refused: int
    """Times that the queue was full; the job was asked for again."""
    submit_s: float
    """From the first to the last that was accepted."""
    drain_s: float
    """From the last that was accepted until all had ended."""
    read_before_ms: float
    read_during_ms: float
    reads_during: int

    def told(self) -> str:
        """For people."""
        ratio = self.read_during_ms / self.read_before_ms
        return (
            f"{self.jobs:,} jobs: {self.done:,} done; submitted in {self.submit_s:.1f} s, the last ended {self.drain_s:.1f} s "
            f"later; the queue was full {self.refused:,} times.\n4 KiB reads: median {self.read_before_ms:.2f} ms before, "
            f"{self.read_during_ms:.2f} ms during ({ratio:.1f} times, {self.reads_during:,} reads); mark 2 times."
        )


@dataclass
class Crowd:
    """Submits many small jobs on `file`, one after the other, in a thread of its own; `refused` counts full queues."""

    file: Path
    jobs: int
    ids: set[int] = field(default_factory=set)
    refused: int = 0
    began_s: float = 0.0
    accepted_s: float = 0.0
    ended_s: float = 0.0
    error: BaseException | None = None

    def run(self) -> None:
        """Submit all, then wait until all have ended."""
        try:
            self.began_s = time.monotonic()
            while len(self.ids) < self.jobs:
                self._submit()
            self.accepted_s = time.monotonic()
            self._drain()
            self.ended_s = time.monotonic()
        except BaseException as error:  # noqa: BLE001 - told by who waits for this thread
            self.error = error

    def _submit(self) -> None:
        try:
            self.ids.add(submit(self.file, "wc").id)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            self.refused += 1
            time.sleep(_PAUSE_S)

    def _drain(self) -> None:
        deadline = time.monotonic() + JOB_TIMEOUT_S
        for job in sorted(self.ids, reverse=True):
            while json.loads(left(self.file, job, "status"))["state"] not in ENDED:
                if time.monotonic() > deadline:
                    raise click.ClickException(f"job {job} has not ended within {JOB_TIMEOUT_S:.0f} s")
                time.sleep(_PAUSE_S)

    def done(self) -> int:
        """How many have become done."""
        return sum(json.loads(left(self.file, job, "status"))["state"] == "done" for job in self.ids)


def measure_queue(file: Path, jobs: int) -> QueueFigures:
    """Queue `jobs` jobs on a small file, and read from `file` meanwhile."""
    small = file.with_name("small")
    small.write_bytes(b"one line\n" * 400)
    before = read_latencies(file, RANDOM_READ_S)
    crowd = Crowd(small, jobs)
    thread = threading.Thread(target=crowd.run)
    thread.start()
    during = []
    while thread.is_alive():
        during += read_latencies(file, RANDOM_READ_S, thread)
    if crowd.error is not None:
        raise crowd.error
    return QueueFigures(
        jobs=jobs,
        done=crowd.done(),
        refused=crowd.refused,
        submit_s=crowd.accepted_s - crowd.began_s,
        drain_s=crowd.ended_s - crowd.accepted_s,
        read_before_ms=statistics.median(before) * 1e3,
        read_during_ms=statistics.median(during) * 1e3,
        reads_during=len(during),
    )


def read_latencies(file: Path, duration_s: float, until: threading.Thread | None = None) -> list[float]:
    """Seconds of each 4 KiB read at a random place, for `duration_s` or until the thread ends; caches dropped before."""
    if os.geteuid() == 0:
        DROP_CACHES.write_text("3")
    places, blocks, block = random.Random(SEED), file.stat().st_size // SMALL_BYTES, bytearray(SMALL_BYTES)
    times_s: list[float] = []
    fd = os.open(file, os.O_RDONLY)
    try:
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_RANDOM)
        began = now = time.perf_counter()
        while now - began < duration_s and (until is None or until.is_alive()):
            os.preadv(fd, [block], places.randrange(blocks) * SMALL_BYTES)
            before, now = now, time.perf_counter()
            times_s.append(now - before)
    finally:
        os.close(fd)
    return times_s
