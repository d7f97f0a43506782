"""Has jobs carried out by the runners of the nodes: starts what can start, follows it, and says what has become of it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from typing import Any, TypeVar

import trio

from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload.job import Job, State
from gridfs.types import Address
from scheduler.jobs import outcome as outcomes
from scheduler.jobs.functions import Functions
from scheduler.jobs.outcome import Outcome, Result
from scheduler.jobs.policy import BytesLostError, NodeView, Part, Plan, Wait, decide, refuse_lost
from scheduler.jobs.queue import Queue

log = logging.getLogger(__name__)
T = TypeVar("T")

ATTEMPTS_MAX = 3
SCANNED_MAX = 64
"""Of the jobs that wait: one that is further back has its turn when those before it have had theirs."""
RUNNER_THREADS, CONTROL_THREADS = 64, 8
"""Calls of runners that wait for a node's work; and short ones. A call that finds no thread waits for one."""
PROGRESS_INTERVAL_S = 0.5
CONTROL_TIMEOUT_S = 3.0
RUN_MARGIN_S = 60.0
"""A runner ends a job when its time is over; so much later it is taken for lost."""
CANCEL_PATIENCE_S = 10.0
"""So long nodes may take to end what was cancelled, before it counts as ended all the same."""
CANCEL_REPEAT_S = 1.0
NODE_PATIENCE_S = 10.0
"""A node that is silent for so long is taken for lost, and what it was doing is done again."""
SHUN_S = 2.0
"""For so long a node gets nothing after its runner was lost: Ray may be starting another. And so long a job waits whose bytes
were lost while it ran: by then it is known which servers there are."""
SAVE_RETRY_S = 1.0
REDUCED_HERE_MAX_BYTES = 1 << 20
"""Of partial results that are put together in this process; what is more goes to a node."""


@dataclass(frozen=True, slots=True)
class Worker:
    """A node that can be asked to work."""

    view: NodeView
    address: Address
    """Of its chunk server."""
    runner: Any
    """The actors' handles."""
    chunk_server: Any


NOWHERE = Address("", 0)


@dataclass(frozen=True, slots=True)
class Fleet:
    """The workers as the scheduler's newest cycle has found them."""

    workers: tuple[Worker, ...] = ()
    inode_table: Address = NOWHERE
    is_settled: bool = False
    """True if every one of them has answered: only then it is certain that a chunk server which is not here is gone."""

    def find(self, host: str) -> Worker | None:
        """The worker on that host."""
        return next((worker for worker in self.workers if worker.view.host == host), None)

    @property
    def addresses(self) -> dict[str, Address]:
        """Where the chunk servers are that answer, by identity."""
        return {worker.view.server: worker.address for worker in self.workers if worker.view.answers}


@dataclass
class _Attempt:
    """What is under way for a job."""

    number: int
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)
    parts: dict[str, trio.CancelScope] = field(default_factory=dict)
    """Host -> ends the wait for it."""
    ended: trio.Event = field(default_factory=trio.Event)


class Dispatcher:
    """Owned by one trio thread. Calls of runners block, so each has a worker thread as long as it takes.

    `wake` has it look for work, `update` tells what nodes there are. What has ended goes to `on_end`, which must not raise.
    """

    def __init__(
        self,
        queue: Queue,
        functions: Functions,
        call: Callable[..., Any],
        on_end: Callable[[Job], None],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`call(handle, method, *arguments, timeout_s=…)` as `gridfs.cluster.call`: it raises GridfsError if nobody answers."""
        self._queue, self._functions, self._call, self._on_end, self._now_ns = queue, functions, call, on_end, now_ns
        self.fleet = Fleet()
        self.broken: set[str] = set()
        """Hosts whose runner was lost; whoever starts runners takes them out."""
        self._attempts: dict[int, _Attempt] = {}
        self._shunned: dict[str, float] = {}
        """Host -> until when."""
        self._paused: dict[int, float] = {}
        """Job -> until when."""
        self._servers: set[str] = set()
        """The chunk servers that there were last."""
        self._heard_s: dict[str, float] = {}
        """Host -> when it answered last."""
        self._work, self._running = trio.Event(), trio.Event()
        self._runner_threads = trio.CapacityLimiter(RUNNER_THREADS)
        self._control_threads = trio.CapacityLimiter(CONTROL_THREADS)
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            nursery.start_soon(self._follow_progress)
            task_status.started()
            while True:
                await self._work.wait()
                self._work = trio.Event()
                self._start_all()

    def wake(self) -> None:
        """There may be something to start."""
        self._work.set()

    def update(self, fleet: Fleet) -> None:
        """The nodes as they are now. The first that is settled decides on what an earlier scheduler has left running."""
        self.fleet = fleet
        now_s = trio.current_time()
        self._heard_s.update({worker.view.host: now_s for worker in fleet.workers if worker.view.answers})
        for attempt in self._attempts.values():
            for host, scope in attempt.parts.items():
                if now_s - self._heard_s.setdefault(host, now_s) > NODE_PATIENCE_S:
                    scope.cancel()
        if fleet.is_settled:
            for job in self._queue.running:
                if job not in self._attempts:
                    attempt = self._attempts[job] = _Attempt(0)
                    self._nursery.start_soon(self._recover, job, attempt)
            self._look_for_lost({worker.view.server for worker in fleet.workers})
        self.wake()

    def _look_for_lost(self, servers: set[str]) -> None:
        """Give up the jobs that wait for bytes which a server has taken with it, whenever one is gone."""
        gone, self._servers = self._servers - servers, servers
        try:
            for job in self._queue.waiting if gone else ():
                try:
                    refuse_lost(job.input, servers)
                except BytesLostError as error:
                    self._end(job.id, "failed", error=str(error))
        except FilesystemError as error:  # they are found to be lost when it is their turn
            log.error("no job can be ended: %s", error.strerror)

    # -- starting ----------------------------------------------------------------------------------------------------

    def _start_all(self) -> None:
        try:
            while self.fleet.is_settled and self._start_one():
                pass
        except FilesystemError as error:  # the next cycle wakes us again
            log.error("no job can be started: %s", error.strerror)

    def _start_one(self) -> bool:
        """Start, or give up, the first job for which that can be said. A host that one waits for is kept free for it."""
        taken = self._busy_hosts()
        hosts = {worker.view.host for worker in self.fleet.workers}
        views = [worker.view for worker in self.fleet.workers]
        for job in islice(self._queue.candidates(), SCANNED_MAX):
            if hosts <= taken:
                return False
            if job.id in self._paused:
                continue
            try:
                splits = self._functions.splits(job.request, job.input.size)
                plan = decide(job.input, job.request.memory_bytes, views, taken, splits=splits)
            except (GridfsError, ValueError) as error:
                self._end(job.id, "failed", error=str(error))
                return True
            if isinstance(plan, Wait):
                taken |= plan.hosts
                continue
            started = self._queue.start(job.id, plan.hosts, plan.decision, self._now_ns())
            attempt = self._attempts[job.id] = _Attempt(started.attempts)
            self._nursery.start_soon(self._carry_out, started, plan, attempt)
            self._running.set()
            return True
        return False

    def _busy_hosts(self) -> set[str]:
        now_s = trio.current_time()
        self._shunned = {host: until_s for host, until_s in self._shunned.items() if until_s > now_s}
        self._paused = {job: until_s for job, until_s in self._paused.items() if until_s > now_s}
        slots = self._queue.used_slots()
        return {host for host, used in slots.items() if used >= self._queue.quotas.running_per_node_max} | set(self._shunned)

    # -- one attempt -------------------------------------------------------------------------------------------------

    async def _carry_out(self, job: Job, plan: Plan, attempt: _Attempt) -> None:
        outcome = Outcome(failure="cancelled")
        with attempt.scope:
            try:
                outcome = await self._outcome(job, plan, attempt)
            except Exception as error:
                log.exception("job %d could not be carried out", job.id)
                outcome = Outcome("function", f"{type(error).__name__}: {error}")
        await self._settle(job.id, outcome)

    async def _outcome(self, job: Job, plan: Plan, attempt: _Attempt) -> Outcome:
        results: dict[str, Result] = {}
        failed: list[Outcome] = []

        async def do(part: Part) -> None:
            result = await self._ask(job, plan.mode, part, attempt)
            results[part.host] = result
            if result.failure and not failed:
                failed.append(outcomes.of([result], result))
                await self._cancel_at([host for host in plan.hosts if host != part.host], job.id, attempt.number)

        async with trio.open_nursery() as nursery:
            for part in plan.parts:
                nursery.start_soon(do, part)
        if failed:
            return replace(failed[0], read=outcomes.read(results.values()))
        if plan.mode == "whole":
            return outcomes.of(results.values(), results[plan.hosts[0]])
        return await self._reduced(job, plan, attempt, results)

    async def _reduced(self, job: Job, plan: Plan, attempt: _Attempt, results: Mapping[str, Result]) -> Outcome:
        """The partial results put together, in the order of the file: here if they are small, else on the first node.

        On that node in any case when `Functions.reduce` leaves it to a node.
        """
        pairs = [pair for part in plan.parts for pair in zip(part.runs, results[part.host].partials, strict=True)]
        partials = [partial for _, partial in sorted(pairs)]
        if job.output is None and sum(map(len, partials)) <= REDUCED_HERE_MAX_BYTES:
            try:
                value = await trio.to_thread.run_sync(self._functions.reduce, job.request, partials)
            except ValueError as error:
                return Outcome("function", str(error), read=outcomes.read(results.values()))
            if value is not None:
                return outcomes.of(results.values(), Result(result=value))
        last = await self._ask(job, "whole", plan.parts[0], attempt, partials)
        return outcomes.of([*results.values(), last], last)

    async def _ask(self, job: Job, mode: str, part: Part, attempt: _Attempt, partials: list[bytes] | None = None) -> Result:
        """What a runner makes of its part, or of partial results."""
        worker = self.fleet.find(part.host)
        if worker is None:
            return self._lost(part.host, "its node has left")
        method, rest = ("run", ()) if partials is None else ("reduce", (partials,))
        call = partial(self._call_runner, worker, method, job, mode, part, rest)
        with trio.CancelScope() as attempt.parts[part.host]:
            try:
                told = await trio.to_thread.run_sync(call, limiter=self._runner_threads, abandon_on_cancel=True)
                return outcomes.result(told)
            except GridfsError as error:
                return self._lost(part.host, str(error))
            except Exception as error:
                log.exception("job %d: %s failed on %s", job.id, method, part.host)
                return Result(failure="function", error=f"{type(error).__name__}: {error}")
        return self._lost(part.host, f"it was silent for {NODE_PATIENCE_S:.0f} s")

    def _call_runner(self, worker: Worker, method: str, job: Job, mode: str, part: Part, rest: tuple[Any, ...]) -> Any:
        task = self._task(job, mode, part)
        return self._call(worker.runner, method, task, *rest, timeout_s=job.request.timeout_s + RUN_MARGIN_S)

    def _task(self, job: Job, mode: str, part: Part) -> dict[str, Any]:
        packed = job.with_changes(input=replace(job.input, chunks={})).pack()  # which would copy the row of each chunk
        packed["input"]["chunks"] = job.input.chunks
        servers = {worker.view.server: [worker.view.host, *worker.address] for worker in self.fleet.workers}
        return {
            "job": packed,
            "attempt": job.attempts,
            "mode": mode,
            "runs": [list(run) for run in part.runs],
            "servers": servers,
            "inode_table": list(self.fleet.inode_table),
            "server": part.server,
        }

    def _lost(self, host: str, reason: str) -> Result:
        log.warning("the runner on %s is lost: %s", host, reason)
        self.broken.add(host)
        self._shunned[host] = trio.current_time() + SHUN_S
        return Result(failure=outcomes.LOST, error=f"{host} was lost while it worked ({reason})")

    # -- the end -----------------------------------------------------------------------------------------------------

    async def _settle(self, job: int, outcome: Outcome) -> None:
        """Say what has become of a job that ran, as soon as the store takes it."""
        while self._queue.find(job) is not None:
            try:
                self._settle_now(job, outcome)
                break
            except FilesystemError as error:
                log.error("the end of job %d is not kept yet: %s", job, error.strerror)
            except Exception as error:
                log.exception("the end of job %d is not to be kept", job)
                outcome = Outcome("function", f"{type(error).__name__}: {error}")
            await trio.sleep(SAVE_RETRY_S)
        self._attempts.pop(job).ended.set()
        self.wake()

    def _settle_now(self, job: int, outcome: Outcome) -> None:
        running = self._queue.find(job)
        assert running is not None
        changes = outcome.changes(running)
        if not outcome.failure:
            self._end(job, "done", **changes, error="", progress_bytes=running.input.size)
        elif self._queue.is_cancelled(job):
            self._end(job, "cancelled", **changes, error="")
        elif outcome.is_lost and running.attempts < ATTEMPTS_MAX and is_idempotent(running):
            log.info("job %d is run again: %s", job, outcome.error)
            self._queue.requeue(job, outcome.error, **outcome.read_changes(running))
            if outcome.failure == outcomes.BYTES_LOST:
                self._paused[job] = trio.current_time() + SHUN_S
        else:
            self._end(job, "failed", **changes, error=_final_sentence(running, outcome))

    def _end(self, job: int, state: State, **changes: Any) -> None:
        ended = self._queue.end(job, state, self._now_ns(), **changes)
        if ended.state != "done" and ended.output is not None and ended.attempts:
            self._nursery.start_soon(self._sweep, ended)
        self._on_end(ended)

    async def _sweep(self, job: Job) -> None:
        """Remove what there is of an output that will never be complete; a node that works does so itself."""
        for worker in self.fleet.workers:
            task = self._task(job, "whole", Part(worker.view.host, worker.view.server, ()))
            if worker.view.answers and await self._control(worker.runner, "sweep", task):
                return

    # -- cancelling --------------------------------------------------------------------------------------------------

    def cancel(self, job: int) -> bool:
        """End a job; False if it has ended. One that runs ends when its nodes say so, or CANCEL_PATIENCE_S later."""
        found = self._queue.find(job)
        if found is None:
            return False
        if self._queue.is_cancelled(job):
            return True
        ended = self._queue.cancel(job, self._now_ns())
        if ended is not None:
            self._on_end(ended)
            self.wake()
        elif job in self._attempts:
            self._nursery.start_soon(self._stop, found, self._attempts[job])
        return True

    async def _stop(self, job: Job, attempt: _Attempt) -> None:
        """Tell its nodes until they have ended it, or for CANCEL_PATIENCE_S: one may just be out of reach."""
        with trio.move_on_after(CANCEL_PATIENCE_S):
            while not attempt.ended.is_set():
                await self._cancel_at(job.nodes, job.id, attempt.number)
                with trio.move_on_after(CANCEL_REPEAT_S):
                    await attempt.ended.wait()
        attempt.scope.cancel()

    async def _cancel_at(self, hosts: list[str] | tuple[str, ...], job: int, attempt: int) -> None:
        async with trio.open_nursery() as nursery:
            for worker in filter(None, map(self.fleet.find, hosts)):
                nursery.start_soon(self._control, worker.runner, "cancel", job, attempt)

    async def _control(self, handle: Any, method: str, *arguments: Any) -> bool:
        """A short call whose failure is only logged; False then."""
        call = partial(self._call, handle, method, *arguments, timeout_s=CONTROL_TIMEOUT_S)
        try:
            await trio.to_thread.run_sync(call, limiter=self._control_threads, abandon_on_cancel=True)
        except Exception as error:  # noqa: BLE001 - whatever it is, the work goes on without it
            log.info("%s failed: %s", method, error)
            return False
        return True

    async def _recover(self, job: int, attempt: _Attempt) -> None:
        """What an earlier scheduler has left running: nobody hears of its end, so it is ended, and begun anew if it may be."""
        found = self._queue.find(job)
        assert found is not None
        with attempt.scope:
            await self._cancel_at(found.nodes, job, found.attempts)
        await self._settle(job, Outcome(outcomes.LOST, "the scheduler was restarted while it ran"))

    # -- background --------------------------------------------------------------------------------------------------

    async def _follow_progress(self) -> None:
        while True:
            await self._running.wait()
            await trio.sleep(PROGRESS_INTERVAL_S)
            if not self._attempts:
                self._running = trio.Event()
                continue
            hosts = {host for attempt in self._attempts.values() for host in attempt.parts}
            taken: dict[int, int] = {}
            async with trio.open_nursery() as nursery:
                for worker in filter(None, map(self.fleet.find, hosts)):
                    nursery.start_soon(self._add_progress, worker, taken)
            for job, taken_bytes in taken.items():
                self._queue.progress(job, taken_bytes)

    async def _add_progress(self, worker: Worker, taken: dict[int, int]) -> None:
        call = partial(self._call, worker.runner, "progress", timeout_s=CONTROL_TIMEOUT_S)
        try:
            told = await trio.to_thread.run_sync(call, limiter=self._control_threads, abandon_on_cancel=True)
        except Exception as error:  # noqa: BLE001 - the call that runs the job tells when the node is lost
            log.debug("%s does not say how far it is: %s", worker.view.host, error)
            return
        for job, taken_bytes in told.items():
            taken[job] = taken.get(job, 0) + taken_bytes

    async def keep_holds(self) -> None:
        """Have every chunk server let go what it holds for jobs that there are no more, whoever failed to say so."""
        ids = self._queue.ids
        async with trio.open_nursery() as nursery:
            for worker in self.fleet.workers:
                nursery.start_soon(self._control, worker.chunk_server, "keep_holds", ids)


def is_idempotent(job: Job) -> bool:
    """Whether a job may be run again when nobody knows how far it came."""
    return job.request.kind == "function" or job.request.idempotent


def _final_sentence(job: Job, outcome: Outcome) -> str:
    if not outcome.is_lost:
        return outcome.error
    if not is_idempotent(job):
        return f"{outcome.error}; it is not run again, as it is not marked idempotent"
    return f"{outcome.error}; that was attempt {job.attempts}, and there is no further one"
