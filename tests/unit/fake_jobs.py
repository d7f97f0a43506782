"""A scheduler that plays the jobs' part: what it is asked it notes, and it answers as it is told to."""

from __future__ import annotations

import errno
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import trio

from gridfs.errors import FilesystemError
from gridfs.offload.client import JobsClient
from gridfs.stream.endpoint import Answer, Endpoint, Peer
from gridfs.types import Address

SECRET = secrets.token_bytes(32)


def status_of(job: int, ino: int = 2, uid: int = 1000, **changes: Any) -> dict[str, Any]:
    """A status as the scheduler tells it."""
    status = {"id": job, "state": "queued", "file": "file", "request": "sha256", "uid": uid, "size": 5, "progress": 0}
    times = {"nodes": [], "submitted": 1e9, "started": None, "ended": None, "exit_code": None, "error": "", "result": None}
    return {**status, **times, "ino": ino, "decision": "", **changes}


class JobsService:
    """Jobs that nobody does; `failure` is raised by `submit`, `left` is what jobs have left."""

    def __init__(self) -> None:
        self.jobs: dict[int, dict[str, Any]] = {}
        self.submitted: list[tuple[Any, ...]] = []
        self.failure: FilesystemError | None = None
        self.left: dict[str, bytes] = {}
        self.stalled = trio.Event()
        """Nothing is answered until it is set."""
        self.stalled.set()
        self.asked = self.goodbyes = 0
        self.methods = {
            name: self._counted(name) for name in ("submit", "newest", "status", "list", "read", "cancel", "cancel_newest")
        }

    def _counted(self, name: str) -> Any:
        async def answer(peer: Peer, *arguments: Any) -> Answer:
            self.asked += 1

            async def later() -> Answer:
                await self.stalled.wait()
                found = getattr(self, f"_{name}")(*arguments)
                return found if isinstance(found, Answer) else Answer(found)

            return Answer(later=later)

        return answer

    def greet(self, identity: dict[str, Any]) -> dict[str, Any]:
        """Everybody is welcome."""
        return {}

    def welcome(self, peer: Peer) -> None:
        """Nothing to do."""

    def goodbye(self, peer: Peer) -> None:
        """Count it."""
        self.goodbyes += 1

    def _submit(self, request: dict[str, Any], submitter: dict[str, Any], source: dict[str, Any], *others: Any) -> int:
        if self.failure is not None:
            raise self.failure
        self.submitted.append((request, submitter, source, *others))
        job = len(self.jobs) + 1
        self.jobs[job] = status_of(job, source["ino"], submitter["uid"])
        return job

    def _visible(self, uid: int) -> list[dict[str, Any]]:
        return [status for status in reversed(self.jobs.values()) if uid in (0, status["uid"])]

    def _newest(self, ino: int, uid: int) -> dict[str, Any] | None:
        return next((status for status in self._visible(uid) if status["ino"] == ino), None)

    def _status(self, job: int, uid: int) -> dict[str, Any]:
        for status in self._visible(uid):
            if status["id"] == job:
                return status
        raise FilesystemError(errno.ENOENT, f"there is no job {job}")

    def _list(self, uid: int) -> list[dict[str, Any]]:
        return self._visible(uid)

    def _read(self, job: int, uid: int, what: str) -> Answer:
        status = self._status(job, uid)
        return Answer(payload=(json.dumps(status).encode() if what == "status" else self.left.get(what, b""),))

    def _cancel(self, job: int, uid: int) -> bool:
        status = self._status(job, uid)
        goes_on: bool = status["state"] == "queued"
        status["state"] = "cancelled"
        return goes_on

    def _cancel_newest(self, ino: int, uid: int) -> bool:
        status = self._newest(ino, uid)
        return status is not None and self._cancel(status["id"], uid)


class Scheduler:
    """Where the jobs' service is: it may be ended, and started again elsewhere."""

    def __init__(self, nursery: trio.Nursery) -> None:
        self.service = JobsService()
        self.address: Address | None = None
        self._nursery, self._scope = nursery, trio.CancelScope()

    def start(self) -> None:
        """Listen, at another address than before."""
        endpoint = Endpoint(Address("127.0.0.1", 0), SECRET, self.service)
        self.address, self._scope = endpoint.address, trio.CancelScope()
        self._nursery.start_soon(self._serve, endpoint, self._scope)

    def end(self) -> None:
        """As kill -9 does; the address stays in the map."""
        self._scope.cancel()

    @staticmethod
    async def _serve(endpoint: Endpoint, scope: trio.CancelScope) -> None:
        with scope:
            await endpoint.serve()


@asynccontextmanager
async def scheduler_and_client(at_once: int = 16) -> AsyncIterator[tuple[Scheduler, JobsClient]]:
    """A scheduler that has started, and a client of it, for the length of the context."""
    async with trio.open_nursery() as nursery:
        scheduler = Scheduler(nursery)
        scheduler.start()
        client = JobsClient(SECRET, lambda: {"role": "mount", "client": "x", "epoch": 1}, lambda: scheduler.address, 7, at_once)
        await nursery.start(client.run)
        yield scheduler, client
        nursery.cancel_scope.cancel()
