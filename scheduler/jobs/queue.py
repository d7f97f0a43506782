"""Which jobs there are, and whose turn it is. Pure: it reads no clock, does no I/O, and asks nobody."""

from __future__ import annotations

import errno
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from gridfs.errors import FilesystemError
from gridfs.offload.job import Job, State

CHUNKS_MAX = 1_000_000
"""Of the inputs of all jobs that have not ended, together: 8 TB, whose places take some 100 MB of memory."""


@dataclass(frozen=True, slots=True)
class Quotas:
    """How many jobs there may be at once."""

    queue_max: int = 4000
    queued_per_user_max: int = 1000
    running_max: int = 8
    running_per_user_max: int = 4
    running_per_node_max: int = 2


@dataclass(frozen=True, slots=True)
class Admission:
    """A place in the queue for a job whose chunks are still to be held."""

    id: int
    uid: int
    chunks: int


class Queue:
    """The jobs that have not ended.

    Every change goes through `keep` first: if that raises, nothing has changed. So what is known here is what is stored.

    It is fair between users: the next to start is one of the user who has waited longest for his last start; of one user the
    oldest comes first. Of a job that runs and is to be cancelled, `is_cancelled` tells: it ends when its nodes have said so.
    """

    def __init__(self, keep: Callable[[Job], None], quotas: Quotas | None = None) -> None:
        self._keep = keep
        self.quotas = quotas or Quotas()
        self._jobs: dict[int, Job] = {}
        """Living ones, by id."""
        self._queued: dict[int, dict[int, None]] = defaultdict(dict)
        """User -> his queued jobs, oldest first."""
        self._running: set[int] = set()
        self._cancelled: set[int] = set()
        self._admitted: dict[int, Admission] = {}
        self._turns: dict[int, int] = {}
        """User -> number of the start in which he had his last turn; of one who has just come, that of the last of all, so that
        he is served after those who wait, and who comes anew for each job gets no more than others."""
        self._starts = 0
        self._chunks = 0

    def find(self, job: int) -> Job | None:
        """A job that has not ended."""
        return self._jobs.get(job)

    @property
    def ids(self) -> list[int]:
        """All that have not ended, those that are just being submitted included."""
        return [*self._jobs, *self._admitted]

    @property
    def queued(self) -> int:
        """How many wait."""
        return sum(map(len, self._queued.values()))

    @property
    def waiting(self) -> list[Job]:
        """Those that wait, oldest first of each user."""
        return [self._jobs[job] for jobs in self._queued.values() for job in jobs]

    @property
    def running(self) -> list[int]:
        """Those that run, oldest first."""
        return sorted(self._running)

    def is_cancelled(self, job: int) -> bool:
        """Whether a job that runs is to end."""
        return job in self._cancelled

    def used_slots(self) -> Counter[str]:
        """Host -> how many jobs run there."""
        return Counter(host for job in self._running for host in self._jobs[job].nodes)

    # -- submitting --------------------------------------------------------------------------------------------------

    def check_room(self, uid: int, chunks: int) -> None:
        """Raise EAGAIN, with a sentence, when that user cannot submit another job just now."""
        waiting = self.queued + len(self._admitted)
        own = len(self._queued.get(uid, ())) + sum(admission.uid == uid for admission in self._admitted.values())
        if waiting >= self.quotas.queue_max:
            raise FilesystemError(errno.EAGAIN, f"the queue is full: {waiting} jobs wait")
        if own >= self.quotas.queued_per_user_max:
            raise FilesystemError(errno.EAGAIN, f"user {uid} has {own} jobs waiting, and no more are allowed")
        if self._chunks and self._chunks + chunks > CHUNKS_MAX:
            raise FilesystemError(errno.EAGAIN, "the queue is full: the jobs that wait work on too many chunks")

    def admit(self, job: int, uid: int, chunks: int) -> None:
        """Reserve a place for a job of that id. `submit` or `withdraw` must follow. Raises EAGAIN."""
        self.check_room(uid, chunks)
        self._admitted[job] = Admission(job, uid, chunks)
        self._chunks += chunks

    def withdraw(self, job: int) -> None:
        """Give a reserved place back."""
        self._chunks -= self._admitted.pop(job).chunks

    def submit(self, job: Job) -> None:
        """A job that was admitted waits from now on."""
        assert job.id in self._admitted, f"job {job.id} was not admitted"
        self._keep(job)
        self.withdraw(job.id)
        self._add(job)

    def restore(self, job: Job) -> None:
        """A living job, as an earlier scheduler has left it: it is not kept again, and no quota applies."""
        self._add(job)

    def _add(self, job: Job) -> None:
        self._jobs[job.id] = job
        self._chunks += len(job.input.chunks)
        self._turns.setdefault(job.submitter.uid, self._starts)
        if job.state == "running":
            self._running.add(job.id)
        else:
            self._queued[job.submitter.uid][job.id] = None

    # -- running -----------------------------------------------------------------------------------------------------

    def candidates(self) -> Iterator[Job]:
        """The jobs that may start, in the order in which they should; to be asked anew after each start.

        It takes one job of each user after the other. Users who have as many running as they may are passed over.
        """
        if len(self._running) >= self.quotas.running_max:
            return
        running = Counter(self._jobs[job].submitter.uid for job in self._running)
        users = [uid for uid, jobs in self._queued.items() if jobs and running[uid] < self.quotas.running_per_user_max]
        users.sort(key=lambda uid: (self._turns.get(uid, 0), next(iter(self._queued[uid]))))
        waiting = [iter(list(self._queued[uid])) for uid in users]
        while waiting:
            for jobs in list(waiting):
                job = next(jobs, None)
                if job is None:
                    waiting.remove(jobs)
                else:
                    yield self._jobs[job]

    def start(self, job: int, nodes: Sequence[str], decision: str, now_ns: int) -> Job:
        """A queued job runs, on these hosts; it is the next attempt."""
        queued = self._jobs[job]
        assert queued.state == "queued", f"job {job} is {queued.state}"
        started = replace(
            queued,
            state="running",
            nodes=tuple(nodes),
            decision=decision,
            started_ns=queued.started_ns or now_ns,
            attempts=queued.attempts + 1,
            progress_bytes=0,
            error="",
        )
        self._keep(started)
        self._jobs[job] = started
        del self._queued[started.submitter.uid][job]
        self._running.add(job)
        self._starts += 1
        self._turns[started.submitter.uid] = self._starts
        return started

    def progress(self, job: int, taken_bytes: int) -> None:
        """How far a job is, as its nodes say: within its size, and never less than before. It is not kept."""
        running = self._jobs.get(job)
        if running is not None and job in self._running:
            taken = max(running.progress_bytes, min(taken_bytes, running.input.size))
            self._jobs[job] = replace(running, progress_bytes=taken)

    def requeue(self, job: int, reason: str, **changes: Any) -> Job:
        """A job that runs waits again, before those that came later: its attempt came to nothing for that reason."""
        running = self._jobs[job]
        assert job in self._running, f"job {job} is {running.state}"
        queued = replace(running, **{**changes, "state": "queued", "nodes": (), "progress_bytes": 0, "error": reason})
        self._keep(queued)
        self._jobs[job] = queued
        self._running.discard(job)
        own = self._queued[queued.submitter.uid]
        self._queued[queued.submitter.uid] = dict.fromkeys(sorted([*own, job]))
        return queued

    # -- ending ------------------------------------------------------------------------------------------------------

    def cancel(self, job: int, now_ns: int) -> Job | None:
        """A queued job ends, and is given back; one that runs is marked, and None is given."""
        if job in self._running:
            self._cancelled.add(job)
            return None
        return self.end(job, "cancelled", now_ns, error="")

    def end(self, job: int, state: State, now_ns: int, **changes: Any) -> Job:
        """A job has ended so, with these fields changed."""
        ended = replace(self._jobs[job], **{**changes, "state": state, "ended_ns": now_ns})
        assert ended.has_ended, f"{state} is no end"
        self._keep(ended)
        self._forget(job)
        return ended

    def _forget(self, job: int) -> None:
        gone = self._jobs.pop(job)
        self._chunks -= len(gone.input.chunks)
        self._running.discard(job)
        self._cancelled.discard(job)
        own = self._queued[gone.submitter.uid]
        own.pop(job, None)
        if not own:
            del self._queued[gone.submitter.uid]
        if not any(other.submitter.uid == gone.submitter.uid for other in self._jobs.values()):
            self._turns.pop(gone.submitter.uid, None)

    def check(self) -> list[str]:
        """What does not hold of what always must; empty when all is well."""
        waiting = {job for jobs in self._queued.values() for job in jobs}
        chunks = sum(len(job.input.chunks) for job in self._jobs.values()) + sum(a.chunks for a in self._admitted.values())
        rules = {
            "every living job waits or runs, and no other": waiting | self._running == set(self._jobs),
            "none does both": not waiting & self._running,
            "states say so": all((self._jobs[job].state == "running") == (job in self._running) for job in self._jobs),
            "only what runs is marked as cancelled": self._cancelled <= self._running,
            "chunks are counted": self._chunks == chunks,
            "users without jobs are forgotten": set(self._turns) <= {job.submitter.uid for job in self._jobs.values()},
            "those who wait do so in order": all(list(jobs) == sorted(jobs) for jobs in self._queued.values()),
        }
        return [rule for rule, holds in rules.items() if not holds]
