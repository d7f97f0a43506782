"""The runner: has one node do its parts of jobs, on the bytes that it has.

It runs in a detached Ray actor pinned to its node, one for each chunk server's node, and keeps nothing: it may be restarted at
any time, which ends what it was doing. What a job runs, it runs in forked children, so nothing of it can harm this process.
"""

from __future__ import annotations

import os
import threading
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from gridfs import logs
from gridfs.errors import GridfsError
from gridfs.offload import process, writer
from gridfs.offload.attempt import Attempt, Held
from gridfs.offload.gateway import Gateway
from gridfs.offload.job import Job
from gridfs.offload.source import held_here
from gridfs.types import Address, PlacementMap, PlacementNode

ATTEMPTS_MAX = 24
"""At once. The actor has more threads than that, so that `cancel` and `progress` always find one."""
THREADS = 32
"""What the actor is to be created with as max_concurrency."""
REMEMBERED_MAX = 1024


class Runner:
    """The Ray actor's class. Every method is safe to call at any time; all but `run` and `reduce` answer at once.

    Who owns what: `Gateway` has the connections, in a trio thread that all jobs share. Each call of `run` or `reduce` has an
    `Attempt`, in the thread of Ray that made the call; it ends with the call, and so do its children, the bytes it has fetched
    ahead, the views of objects that it pins, and an output that is not complete. Of an attempt this process keeps at most a
    window of 10 MiB of input for each child, three chunks of output, 1 MiB of what is kept, and the partial results.
    """

    def __init__(self, host: str, secret: bytes, held: Held | None = None) -> None:
        """Wait for work on `host`. `held` gives what its chunk server holds, if that is not an actor of Ray's."""
        logs.start()
        process.sweep()
        self._host = host
        self._held = held or partial(held_here, host)
        self._gateway = Gateway(secret)
        self._lock = threading.Lock()
        self._attempts: list[Attempt] = []
        """Under way."""
        self._cancelled: OrderedDict[int, int] = OrderedDict()
        """Job -> the last of its attempts that was cancelled; of the newest REMEMBERED_MAX."""

    def run(self, task: dict[str, Any]) -> dict[str, Any]:
        """Do a part of a job, or all of it. Raises GridfsError when ATTEMPTS_MAX are under way, and nothing else.

        `task`: `job` (packed), `attempt` (its number, from 1 on), `mode`, `runs`, `servers` (identity -> [host, IP, port] of
        the chunk servers), `inode_table` ([IP, port]), `server` (identity of this node's chunk server).

        In mode "map" the result has `partials`: of each of the `runs` (ranges of chunk indices) the packed pieces that the
        function's map has made of it. In mode "whole" it has the `result`, or `stdout` as far as it is kept, or the output has
        been written. In either, `error` is a sentence when there is a `failure`: "memory", "timeout", "cancelled", "function"
        (whatever the job itself is to blame for) or "bytes lost"; `stderr`, `exit_code`, `local_bytes` and `network_bytes`
        (read here, and fetched), and `output_bytes` are told in any case.
        """
        with self._attempting(task) as attempt:
            return attempt.run()

    def reduce(self, task: dict[str, Any], partials: Sequence[bytes]) -> dict[str, Any]:
        """As `run` in mode "whole", from the `partials` of all runs, in the order of the file."""
        with self._attempting(task) as attempt:
            return attempt.reduce(partials)

    def progress(self) -> dict[int, int]:
        """Job -> how many bytes of its input have been taken in, of what is under way."""
        with self._lock:
            attempts = list(self._attempts)
        taken: dict[int, int] = {}
        for attempt in attempts:
            taken[attempt.job.id] = taken.get(attempt.job.id, 0) + attempt.taken_bytes()
        return taken

    def cancel(self, job: int, attempt: int = 0) -> None:
        """End the job's attempts up to that one, here and now; one of them that arrives later is ended as it begins.

        Without a number: those that are under way, and what else arrives of them.
        """
        with self._lock:
            running = [one for one in self._attempts if one.job.id == job and (not attempt or one.number <= attempt)]
            last = max([attempt, self._cancelled.pop(job, 0), *(one.number for one in running)])
            self._cancelled[job] = last
            while len(self._cancelled) > REMEMBERED_MAX:
                self._cancelled.popitem(last=False)
        for one in running:
            one.cancel()

    def sweep(self, task: dict[str, Any]) -> None:
        """Remove what the job's attempts up to that of `task` have left of its output, here or on a node that has died.

        Raises FilesystemError when it cannot be.
        """
        self._connect(task)
        self._gateway.call(writer.sweep, self._gateway, Job.unpack(task["job"]), int(task["attempt"]))

    def ping(self) -> dict[str, int]:
        """The process, and how many attempts are under way. Raises RuntimeError if it cannot work any more."""
        self._gateway.call_now(int)
        return {"pid": os.getpid(), "jobs": len(self._attempts)}

    def stop(self) -> None:
        """End all that is under way, and all connections."""
        with self._lock:
            attempts = list(self._attempts)
        for attempt in attempts:
            attempt.cancel()
        self._gateway.stop()

    @contextmanager
    def _attempting(self, task: dict[str, Any]) -> Iterator[Attempt]:
        attempt = Attempt(self._gateway, self._host, task, self._held)
        self._connect(task)
        with self._lock:
            if len(self._attempts) >= ATTEMPTS_MAX:
                raise GridfsError(f"{self._host} has {ATTEMPTS_MAX} parts of jobs under way already")
            self._attempts.append(attempt)
            is_cancelled = attempt.number <= self._cancelled.get(attempt.job.id, 0)
        try:
            if is_cancelled:
                attempt.cancel()
            yield attempt
        finally:
            with self._lock:
                self._attempts.remove(attempt)

    def _connect(self, task: dict[str, Any]) -> None:
        """Say where the servers are. What the inode table says of them counts as soon as it has been heard."""
        nodes = (
            PlacementNode(server, host, Address(ip, port), 1.0, 0, 0, 0, 0, "calm")
            for server, (host, ip, port) in task["servers"].items()
        )
        self._gateway.connect(Address(*task["inode_table"]), PlacementMap(0, tuple(nodes)))
