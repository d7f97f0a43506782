"""The scheduler's jobs without Ray: the real endpoint, queue and store, over chunk servers and runners that are played."""

from __future__ import annotations

import errno
import json
import threading
import time
from collections import defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from gridfs.errors import FilesystemError
from gridfs.offload.job import Input, Output, Request, Submitter
from gridfs.stream.connection import Connection
from gridfs.stream.endpoint import Answer, Endpoint, Methods, Peer
from gridfs.stream.handshake import Identity
from gridfs.stream.standing import standing
from gridfs.types import Address
from scheduler.jobs.dispatch import Fleet, Worker
from scheduler.jobs.functions import BuiltIn
from scheduler.jobs.policy import NodeView
from scheduler.jobs.service import JobsService
from scheduler.jobs.settings import SettingsFile
from scheduler.jobs.store import JobStore
from tests.unit.jobs import ALICE, node, request, source, told

SECRET = b"s" * 32


class FakeChunkServer:
    """Holds what it is asked to, but chunks that it `lacks`; a hold waits while `gate` is not set."""

    def __init__(self) -> None:
        self.held: dict[int, list[int]] = {}
        self.lacks: set[int] = set()
        self.gate = trio.Event()
        self.gate.set()
        self.kept: list[int] | None = None
        self.methods: Methods = {"hold": self.hold, "release": self.release}

    def greet(self, identity: Identity) -> Identity:
        assert identity["role"] == "client"
        return {}

    def welcome(self, peer: Peer) -> None:
        pass

    def goodbye(self, peer: Peer) -> None:
        pass

    async def hold(self, peer: Peer, job: int, ino: int, indices: Sequence[int]) -> Answer:
        await self.gate.wait()
        if self.lacks & set(indices):
            raise FilesystemError(errno.ENOENT, "it has no such chunk")
        self.held[job] = list(indices)
        return Answer([[index, 1] for index in indices])

    async def release(self, peer: Peer, job: int) -> Answer:
        self.held.pop(job, None)
        return Answer()

    def keep_holds(self, jobs: list[int]) -> None:
        self.kept = jobs


class FakeRunner:
    """A node's runner: what it is asked to do comes to the test, which says how it ends. Called by threads."""

    def __init__(self) -> None:
        self.tasks: list[dict[str, Any]] = []
        self.reduced: list[list[bytes]] = []
        self.swept: list[int] = []
        self.answer: Callable[[dict[str, Any]], Any] = lambda task: told(local_bytes=1)
        """What `run` and `reduce` give, or raise."""
        self.taken: dict[int, int] = {}
        self.cancelled: dict[int, threading.Event] = defaultdict(threading.Event)
        self.obeys = True

    def run(self, task: dict[str, Any]) -> Any:
        self.tasks.append(task)
        answer = self.answer(task)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def reduce(self, task: dict[str, Any], partials: list[bytes]) -> Any:
        self.reduced.append(partials)
        return self.run(task)

    def until_cancelled(self, task: dict[str, Any]) -> Any:
        """An answer: of a job that goes on until it is told to end."""
        assert self.cancelled[task["job"]["id"]].wait(20)
        return told(failure="cancelled", error="the job was cancelled")

    def cancel(self, job: int, attempt: int) -> None:
        if self.obeys:
            self.cancelled[job].set()

    def progress(self) -> dict[int, int]:
        return self.taken

    def sweep(self, task: dict[str, Any]) -> None:
        self.swept.append(task["job"]["id"])


class FakeFunctions:
    """sum and lines are functions that split, as Python functions do by `BuiltIn`; anything else does not."""

    python = BuiltIn()

    def check(self, request: Request) -> None:
        if request.name == "unknown":
            raise ValueError("there is no function unknown")

    def splits(self, request: Request, size: int) -> bool:
        return self.python.splits(request, size) if request.kind == "python" else request.name in ("sum", "lines")

    def reduce(self, request: Request, partials: Sequence[bytes]) -> Any:
        if request.kind == "python":
            return self.python.reduce(request, partials)
        if request.name == "lines":
            return None
        return [json.loads(partial) for partial in partials]


def call(handle: Any, method: str, *arguments: Any, timeout_s: float) -> Any:
    """As `gridfs.cluster.call`, of a handle that is the actor itself."""
    return getattr(handle, method)(*arguments)


class Jobs:
    """The service under test, and who it talks to. `hosts` are a and b, unless a test takes one away."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.directory, self._nursery = directory, nursery
        self.now_ns = time.time_ns
        self.runners = {host: FakeRunner() for host in "ab"}
        self.chunk_servers = {host: FakeChunkServer() for host in "ab"}
        self.views: dict[str, NodeView] = {host: node(host) for host in "ab"}
        self._addresses: dict[str, Address] = {}
        for host, server in self.chunk_servers.items():
            endpoint = Endpoint(Address("127.0.0.1", 0), SECRET, server)
            self._addresses[host] = endpoint.address
            nursery.start_soon(endpoint.serve)
        self.service: JobsService
        self.address: Address
        self._scope = trio.CancelScope()

    @property
    def a(self) -> FakeRunner:
        return self.runners["a"]

    @property
    def b(self) -> FakeRunner:
        return self.runners["b"]

    async def start(self) -> None:
        """Start the service, as a scheduler that is started does; the nodes are known from `update` on."""
        store = JobStore(self.directory / "jobs.sqlite", "one")
        settings = SettingsFile(self.directory / "offload.toml")
        self.service = JobsService(store, settings, SECRET, FakeFunctions(), call, lambda: self.now_ns())
        endpoint = Endpoint(Address("127.0.0.1", 0), SECRET, self.service)
        self.address, self._scope = endpoint.address, trio.CancelScope()
        await self._nursery.start(self._serve, endpoint, self._scope)

    async def _serve(self, endpoint: Endpoint, scope: trio.CancelScope, *, task_status: trio.TaskStatus[None]) -> None:
        with scope:
            async with trio.open_nursery() as nursery:
                await nursery.start(self.service.run)
                nursery.start_soon(endpoint.serve)
                task_status.started()

    def kill(self) -> None:
        """End the service as kill -9 does: its store is not closed, and no runner is told."""
        self._scope.cancel()

    def allow(self, settings: str) -> None:
        """Have the service go by these settings, as soon as it looks."""
        (self.directory / "offload.toml").write_text(f"[offload]\n{settings}\n")
        self.service._refresh_settings()

    def update(self, *, settled: bool = True) -> None:
        """A cycle of the scheduler."""
        workers = (
            Worker(view, self._addresses[host], self.runners[host], self.chunk_servers[host])
            for host, view in self.views.items()
        )
        self.service.dispatcher.update(Fleet(tuple(workers), Address("10.0.0.1", 5), settled))

    @asynccontextmanager
    async def connected(self, role: str = "mount") -> AsyncIterator[Client]:
        """A mount's connection."""
        async with standing(self.address, SECRET, {"role": role}) as connection:
            yield Client(connection)

    @asynccontextmanager
    async def cycles(self) -> AsyncIterator[None]:
        """Cycles ten times as often as in earnest, for those who wait for several."""

        async def turn() -> None:
            while True:
                self.update()
                await trio.sleep(0.1)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(turn)
            yield
            nursery.cancel_scope.cancel()


class Client:
    """What a mount asks."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    async def submit(
        self, asked: Request | None = None, file: Input | None = None, uid: int = ALICE, output: Output | None = None
    ) -> int:
        """Submit a job, of a file with a chunk on a and one on b."""
        file = source(["a-1"], ["b-1"]) if file is None else file
        who = Submitter(uid, uid, (uid,))
        packed = [asdict(each) for each in (asked or request(), who, file)]
        number: int = await self.connection.call("submit", *packed, output and asdict(output), ALICE)
        return number

    async def status(self, number: int, uid: int = 0) -> dict[str, Any]:
        status: dict[str, Any] = await self.ask("status", number, uid)
        return status

    async def ended(self, number: int) -> dict[str, Any]:
        """Its status once it has ended."""
        with trio.fail_after(20):
            while True:
                status: dict[str, Any] = await self.ask("wait", number, 0, 20.0)
                if status["ended"]:
                    return status

    async def read(self, number: int, what: str, uid: int = 0) -> bytes:
        buffer = memoryview(bytearray(4 << 20))
        reply = self.connection.submit("read", number, uid, what, into=buffer)
        await reply.wait()
        return bytes(buffer[: reply.payload_bytes])

    async def ask(self, method: str, *arguments: Any) -> Any:
        """The answer, as a mount shows it."""
        return json.loads(json.dumps(await self.connection.call(method, *arguments)))


async def until(condition: Callable[[], Any]) -> None:
    """Wait for what another task or thread does."""
    with trio.fail_after(20):
        while not condition():
            await trio.sleep(0.002)


@asynccontextmanager
async def running(directory: Path) -> AsyncIterator[Jobs]:
    """The service, with both nodes there."""
    async with trio.open_nursery() as nursery:
        jobs = Jobs(directory, nursery)
        await jobs.start()
        jobs.update()
        yield jobs
        assert jobs.service.queue.check() == []
        nursery.cancel_scope.cancel()


whole = partial(source, ["a-1"])
"""A file that is on node a alone."""


@pytest.fixture
async def jobs(tmp_path: Path) -> AsyncIterator[Jobs]:
    """`running` in the test's directory."""
    async with running(tmp_path) as jobs:
        yield jobs
