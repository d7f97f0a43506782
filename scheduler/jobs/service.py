"""What the scheduler's endpoint for jobs does with connections: it takes jobs, tells of them, and cancels them.

Whoever holds the filesystem's secret is trusted to say which user asks; a user sees and cancels his own jobs, root all.
"""

from __future__ import annotations

import errno
import json
import logging
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import msgpack
import trio

from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.offload.job import Input, Job, Output, Request, Submitter
from gridfs.stream.endpoint import Answer, Methods, Peer
from gridfs.stream.handshake import Identity
from scheduler.jobs.dispatch import Dispatcher
from scheduler.jobs.functions import Functions
from scheduler.jobs.holding import Holding
from scheduler.jobs.queue import Queue
from scheduler.jobs.settings import SettingsFile
from scheduler.jobs.store import JobStore

log = logging.getLogger(__name__)

WAIT_MAX_S = 20.0
LISTED_MAX = 1000
RESULT_TOLD_BYTES = 16 << 10
"""Of a result in a status; a longer one is told by `read` alone."""
REQUEST_LISTED, ERROR_LISTED = 200, 500
"""Characters in a list."""
TICK_S = 1.0
TIDY_INTERVAL_S = 30.0
KEPT_MAX_JOBS, KEPT_MAX_BYTES = 10_000, 1 << 30
"""Of jobs that have ended, beyond the time that they are kept: what is more goes, oldest first."""

Status = dict[str, Any]


@dataclass
class _Submission:
    """One that is under way: its scope ends it, `done` says that `job` or `error` is there."""

    scope: trio.CancelScope
    done: trio.Event
    job: int = 0
    error: Exception | None = None


class JobsService:
    """Owned by the endpoint's trio thread, as the queue and the dispatcher are."""

    def __init__(
        self,
        store: JobStore,
        settings: SettingsFile,
        secret: bytes,
        functions: Functions,
        call: Callable[..., Any],
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """`call` reaches actors, as `gridfs.cluster.call`. The jobs that the store has go on."""
        self._store, self._settings, self._functions, self._now_ns = store, settings, functions, now_ns
        self.queue = Queue(store.save, settings.settings.quotas)
        for job in store.living():
            self.queue.restore(job)
        self.dispatcher = Dispatcher(self.queue, functions, call, self._ended, now_ns)
        self._holding = Holding(secret, lambda: self.dispatcher.fleet.addresses)
        self._waiting: dict[int, list[trio.Event]] = defaultdict(list)
        self._nursery: trio.Nursery
        self.methods: Methods = {
            "submit": self.submit,
            "newest": self.newest,
            "status": self.status,
            "list": self.listed,
            "read": self.read,
            "cancel": self.cancel,
            "cancel_newest": self.cancel_newest,
            "wait": self.wait,
        }

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Work until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            await nursery.start(self._holding.run)
            await nursery.start(self.dispatcher.run)
            task_status.started()
            tidied_s = trio.current_time()
            while True:
                await trio.sleep(TICK_S)
                self._refresh_settings()
                if trio.current_time() - tidied_s > TIDY_INTERVAL_S:
                    tidied_s = trio.current_time()
                    await self._tidy()

    def _refresh_settings(self) -> None:
        if self._settings.refresh():
            self.queue.quotas = self._settings.settings.quotas
            self.dispatcher.wake()

    async def _tidy(self) -> None:
        try:
            self.prune()
            await self.dispatcher.keep_holds()
        except FilesystemError as error:
            log.error("old jobs stay: %s", error.strerror)

    def prune(self) -> None:
        """Forget jobs that ended long ago, and the oldest of too many. Raises EIO."""
        ended = self._store.ended()
        oldest_ns = self._now_ns() - int(self._settings.settings.keep_s * 1e9)
        size_bytes, gone = sum(job.size_bytes for job in ended), list[int]()
        for place, job in enumerate(ended):
            if job.ended_ns >= oldest_ns and len(ended) - place <= KEPT_MAX_JOBS and size_bytes <= KEPT_MAX_BYTES:
                break
            size_bytes -= job.size_bytes
            gone.append(job.id)
        if gone:
            self._store.remove(gone)

    # -- connections -------------------------------------------------------------------------------------------------

    def greet(self, identity: Identity) -> Identity:
        """Mounts, and clients without a session, are welcome."""
        if identity.get("role") not in ("mount", "client"):
            raise AuthenticationFailed(f"jobs are not for the role {identity.get('role')!r}")
        return {}

    def welcome(self, peer: Peer) -> None:
        """Nothing is kept of a connection."""

    def goodbye(self, peer: Peer) -> None:
        """Its submissions that are not answered are ended as their answers are."""

    # -- submitting --------------------------------------------------------------------------------------------------

    async def submit(self, peer: Peer, request: Any, submitter: Any, source: Any, output: Any, mounter_uid: int) -> Answer:
        """Take a job; the result is its id. When it is told the chunks are held and the job is kept.

        Raises EINVAL, EPERM, EAGAIN when there are too many, EIO when a chunk cannot be held or the job not be kept. Who does
        not wait for the answer has not submitted it. Submissions of one connection are carried out at once.
        """
        job = _received(request, submitter, source, output, self._now_ns())
        self._settings.settings.check(job.request, job.submitter, mounter_uid)
        try:
            self._functions.check(job.request)
        except ValueError as error:
            raise FilesystemError(errno.EINVAL, str(error)) from error
        self.queue.check_room(job.submitter.uid, len(job.input.chunks))
        job = job.with_changes(id=self._store.take_id())
        self.queue.admit(job.id, job.submitter.uid, len(job.input.chunks))
        submission = _Submission(trio.CancelScope(), trio.Event())
        self._nursery.start_soon(self._take, job, submission)

        async def answer() -> Answer:
            try:
                await submission.done.wait()
            finally:
                submission.scope.cancel()
            if submission.error:
                raise submission.error
            return Answer(submission.job)

        return Answer(later=answer, sent=submission.scope.cancel)

    async def _take(self, job: Job, submission: _Submission) -> None:
        """Have its chunks held, and keep it."""
        held = False
        try:
            with submission.scope:
                job = job.with_changes(input=_shared(await self._holding.hold(job.id, job.input)))
                held = True
                self.queue.submit(job)
                held = False
                submission.job = job.id
                log.info("job %d of user %d waits: %s", job.id, job.submitter.uid, _described(job))
                self.dispatcher.wake()
        except FilesystemError as error:
            submission.error = error
        except Exception as error:
            log.exception("job %d could not be taken", job.id)
            submission.error = FilesystemError(errno.EIO, f"{type(error).__name__}: {error}")
        finally:
            if not submission.job:
                self.queue.withdraw(job.id)
            if held:
                self._release(job)
            submission.done.set()

    def _release(self, job: Job) -> None:
        self._holding.release_soon(job.id, {server for servers in job.input.chunks.values() for server in servers})

    def _ended(self, job: Job) -> None:
        """A job has ended, and is kept as it is."""
        self._release(job)
        took_s = (job.ended_ns - (job.started_ns or job.ended_ns)) / 1e9
        log.info(
            "job %d of user %d is %s after %.3f s on %s: %s%s",
            *(job.id, job.submitter.uid, job.state, took_s, ", ".join(job.nodes) or "no node", _described(job)),
            f": {job.error!r}" if job.error else "",
        )
        for event in self._waiting.pop(job.id, []):
            event.set()

    # -- telling -----------------------------------------------------------------------------------------------------

    async def newest(self, peer: Peer, ino: int, uid: int) -> Answer:
        """The status of the newest job on that file which the user may see; None if there is none."""
        number = self._store.newest(ino, uid or None)
        return Answer(None if number is None else _status(self._find(number, uid)))

    async def status(self, peer: Peer, number: int, uid: int) -> Answer:
        """The job's status. Raises ENOENT if there is none that the user may see."""
        return Answer(_status(self._find(number, uid)))

    async def listed(self, peer: Peer, uid: int) -> Answer:
        """The statuses of the newest jobs that the user may see, newest first, LISTED_MAX at most, cut short."""
        jobs = (self.queue.find(job.id) or job for job in self._store.listed(uid or None, LISTED_MAX))
        return Answer([_shortened(_status(job)) for job in jobs])

    async def read(self, peer: Peer, number: int, uid: int, what: str) -> Answer:
        """What a job has left, as the payload: its status, result, stdout or stderr. Raises as `status`, and EINVAL."""
        job = self._find(number, uid)
        if what == "status":
            content = job.status_json() + b"\n"
        elif what == "result":
            content = job.stdout if job.result is None else json.dumps(job.result).encode() + b"\n"
        elif what in ("stdout", "stderr"):
            content = getattr(job, what)
        else:
            raise FilesystemError(errno.EINVAL, f"a job leaves no {what!r}")
        return Answer(payload=(content,) if content else ())

    async def wait(self, peer: Peer, number: int, uid: int, timeout_s: float) -> Answer:
        """The job's status once it has ended, or after that time, or WAIT_MAX_S. Raises as `status`."""
        job = self._find(number, uid)
        if job.has_ended:
            return Answer(_status(job))
        ended = trio.Event()
        self._waiting[job.id].append(ended)

        async def answer() -> Answer:
            try:
                with trio.move_on_after(min(max(timeout_s, 0.0), WAIT_MAX_S)):
                    await ended.wait()
            finally:
                self._wait_no_more(number, ended)
            return Answer(_status(self._find(number, uid)))

        return Answer(later=answer, sent=lambda: self._wait_no_more(number, ended))

    def _wait_no_more(self, number: int, ended: trio.Event) -> None:
        events = [event for event in self._waiting.pop(number, []) if event is not ended]
        if events:
            self._waiting[number] = events

    def _find(self, number: int, uid: int) -> Job:
        living = self.queue.find(number)
        job = living or self._store.load(number)
        if job is None or (uid and job.submitter.uid != uid):
            raise FilesystemError(errno.ENOENT, f"there is no job {number}")
        return job

    # -- cancelling --------------------------------------------------------------------------------------------------

    async def cancel(self, peer: Peer, number: int, uid: int) -> Answer:
        """End the job; False if it has ended. Raises as `status`, and EIO."""
        return Answer(self.dispatcher.cancel(self._find(number, uid).id))

    async def cancel_newest(self, peer: Peer, ino: int, uid: int) -> Answer:
        """End the newest job on that file which the user may see; False if there is none, or it has ended. Raises EIO."""
        number = self._store.newest(ino, uid or None)
        return Answer(number is not None and self.dispatcher.cancel(number))


def _received(request: Any, submitter: Any, source: Any, output: Any, now_ns: int) -> Job:
    """The job that somebody submits, without a number. Raises EINVAL for what is none."""
    try:
        asked, who, file = Request.unpack(request), Submitter.unpack(submitter), Input.unpack(source)
        target = None if output is None else Output(**output)
    except (TypeError, KeyError, ValueError, AttributeError) as error:
        raise FilesystemError(errno.EINVAL, f"this is no job: {error!r}") from error
    if asked.kind not in ("function", "python", "command") or file.size < 0:
        raise FilesystemError(errno.EINVAL, f"{asked.kind!r} is no kind of job")
    return Job(0, asked, who, file, target, now_ns)


def _shared(source: Input) -> Input:
    """The same input, in which equal lists of servers are one object: there are many chunks and few servers."""
    known: dict[tuple[str, ...], tuple[str, ...]] = {}
    return replace(source, chunks={index: known.setdefault(servers, servers) for index, servers in source.chunks.items()})


def _described(job: Job) -> str:
    """What the log says of a job; quoted, as users choose it."""
    output = f" to {job.output.path!r}" if job.output else ""
    return f"{job.request.kind} {job.request.name[:REQUEST_LISTED]!r} on {job.input.name!r} (inode {job.input.ino}){output}"


def _status(job: Job) -> Status:
    """The job's status, as streams carry it: a result that is long, or of another kind, is left to `read`."""
    status = job.status()
    try:
        if len(msgpack.packb(status["result"])) <= RESULT_TOLD_BYTES:
            return status
    except (ValueError, TypeError, OverflowError):
        pass  # numbers of more than 64 bits, and what is deeply nested
    return {**status, "result": None}


def _shortened(status: Status) -> Status:
    return {**status, "request": status["request"][:REQUEST_LISTED], "error": status["error"][:ERROR_LISTED], "result": None}
