"""The scheduler: sees to it that every contributing node has a chunk server, and says once a second where chunks go.

It runs as a detached Ray actor on the head and may be restarted at any time: what it knows it learns again in a cycle.
"""

from __future__ import annotations

import logging
import secrets
import threading
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gridfs import cluster, logs
from gridfs.chunk.server import ChunkServer
from gridfs.cluster import ClusterNode
from gridfs.errors import GridfsError
from gridfs.offload.runner import THREADS, Runner
from gridfs.types import Address, ChunkServerStatistics
from scheduler.jobs.dispatch import Fleet, Worker
from scheduler.jobs.functions import BuiltIn
from scheduler.jobs.policy import NodeView
from scheduler.jobs.server import JobsServer
from scheduler.placement import ServerView, plan
from scheduler.pressure import Level, level, score

log = logging.getLogger(__name__)

CYCLE_S = 1.0
ANSWER_TIMEOUT_S = 3.0
"""A chunk server that is silent for this long is lost until it answers again."""
START_TIMEOUT_S = 60.0
LOST_MAX = 64
"""Servers that died holding chunks are listed, the newest of them, so that clients and `gridfs status` can say so."""
STORE_SHARE = 0.8
"""Of a node's object store, when no capacity is configured: the rest is for chunks that are being sealed."""
STOP_TIMEOUT_S = 10.0
JOBS_RETRY_S = 10.0
"""After the server for jobs could not be started, or has ended."""


@dataclass
class Server:
    """A chunk server that the scheduler has started or found."""

    handle: Any
    host: str
    node_id: str
    started_s: float
    runner: Any = None
    """The actor that runs jobs there."""
    statistics: ChunkServerStatistics | None = None
    """What it last said; None until it has answered for the first time."""
    level: Level = Level.CALM
    answers: bool = False

    def view(self) -> ServerView | None:
        """What placement needs to know; None until the server has answered."""
        return ServerView(self.statistics, self.level, self.answers) if self.statistics else None

    def worker(self) -> Worker | None:
        """What jobs need to know; None until the server has answered."""
        said = self.statistics
        if said is None or self.runner is None:
            return None
        sizes = said.sample.available_bytes, said.sample.total_bytes
        return Worker(
            NodeView(self.host, said.server, self.level, *sizes, self.answers), said.address, self.runner, self.handle
        )


class Daemon:
    """The Ray actor's class.

    One thread runs the cycles and owns all state; `statistics` reads what the last cycle left, in one step.
    """

    def __init__(self, capacity_bytes: int | None, home: str | None = None) -> None:
        """Begin to work. `capacity_bytes` is what each node gives; None means STORE_SHARE of its object store.

        `home` is the folder for what is kept of jobs, and for who may submit them; without one it takes none.
        """
        logs.start()
        self._capacity_bytes = capacity_bytes
        self._home = home
        self._jobs: JobsServer | None = None
        self._jobs_failure = ""
        self._jobs_retry_s = 0.0
        """No server for jobs is started before this time."""
        self._servers: dict[str, Server] = {}
        """Host -> the server there."""
        self._lost: list[ServerView] = []
        self._epoch = 0
        self._secret: bytes | None = None
        self._cycles = 0
        self._failure = ""
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="scheduler", daemon=True)
        self._thread.start()

    def statistics(self) -> dict[str, Any]:
        """Cycles so far, the epoch of the newest map, and why the last cycle failed, and jobs (empty when they did not)."""
        jobs = self._jobs.statistics() if self._jobs else {}
        failures = {"failure": self._failure, "jobs_failure": self._jobs_failure}
        return {"cycles": self._cycles, "epoch": self._epoch, **failures, "jobs": jobs}

    def stop(self) -> None:
        """Stop deciding; the servers and the newest map stay."""
        self._stopping.set()
        self._thread.join(STOP_TIMEOUT_S)
        if self._jobs:
            self._jobs.stop()

    # -- the cycle ---------------------------------------------------------------------------------------------------

    def _run(self) -> None:
        while not self._stopping.is_set():
            began_s = time.monotonic()
            try:
                self._cycle()
                self._failure = ""
            except GridfsError as error:
                self._failure = str(error)
                log.warning("this cycle came to nothing: %s", error)
            except Exception as error:
                self._failure = repr(error)
                log.exception("this cycle failed")
            self._cycles += 1
            self._stopping.wait(max(0.0, CYCLE_S - (time.monotonic() - began_s)))

    def _cycle(self) -> None:
        table = cluster.find(cluster.INODE_TABLE, ANSWER_TIMEOUT_S)
        if table is None:
            raise GridfsError("there is no inode table")
        if self._secret is None:
            self._secret = cluster.call(table, "secret", timeout_s=ANSWER_TIMEOUT_S)
            self._epoch = cluster.call(table, "statistics", timeout_s=ANSWER_TIMEOUT_S)["placement"]["epoch"]
        present = cluster.nodes(ANSWER_TIMEOUT_S)
        nodes = [node for node in present if node.role == cluster.WORKER]
        self._bury(nodes)
        self._populate(nodes, self._secret)
        self._listen()
        jobs = self._serve_jobs(table, present[0].ip, self._secret)
        views = [view for server in self._servers.values() if (view := server.view())]
        self._epoch += 1
        placement = plan([*views, *self._lost], self._epoch, jobs)
        cluster.call(table, "publish", placement.pack(), timeout_s=ANSWER_TIMEOUT_S)

    def _bury(self, nodes: Sequence[ClusterNode]) -> None:
        """Give up the servers whose node has left, or has come back as another one: Ray has ended them.

        The runner it may still mean to restart there, and its name is wanted for the next one.
        """
        present = {node.node_id for node in nodes}
        for server in list(self._servers.values()):
            if server.node_id not in present:
                self._lose(server, "its node has left the cluster")
                if server.runner is not None:
                    with suppress(cluster.Unreachable):
                        cluster.destroy(cluster.runner_name(server.host), ANSWER_TIMEOUT_S)

    def _populate(self, nodes: Sequence[ClusterNode], secret: bytes) -> None:
        """Start a chunk server on every node without one, or find the one that an earlier scheduler has started."""
        for node in nodes:
            if node.host in self._servers:
                continue
            identity = f"{node.host}-{secrets.token_hex(4)}"
            capacity = self._capacity_bytes or int(node.object_store_bytes * STORE_SHARE)
            name, arguments = cluster.chunk_server_name(node.host), (identity, node.host, node.ip, secret, capacity)
            handle = cluster.create(ChunkServer, name, node.node_id, *arguments, max_restarts=0, max_concurrency=8)
            self._servers[node.host] = Server(handle, node.host, node.node_id, time.monotonic())
            if self._home:
                self._start_runner(self._servers[node.host], secret)

    def _start_runner(self, server: Server, secret: bytes) -> None:
        """Start the runner of a node, or find the one that is there; Ray restarts it when its process ends."""
        name, arguments = cluster.runner_name(server.host), (server.host, secret)
        server.runner = cluster.create(Runner, name, server.node_id, *arguments, max_restarts=-1, max_concurrency=THREADS)

    def _serve_jobs(self, table: Any, host: str, secret: bytes) -> Address | None:
        """Tell the jobs what nodes there are; where jobs are taken, None if they are not. Chunks go on whatever fails here."""
        if not self._home or (self._jobs is None and time.monotonic() < self._jobs_retry_s):
            return None
        try:
            if self._jobs is None:
                self._jobs_retry_s = time.monotonic() + JOBS_RETRY_S
                self._jobs = JobsServer(Path(self._home), host, secret, BuiltIn(), cluster.call)
            for broken in self._jobs.take_broken() & self._servers.keys():
                self._start_runner(self._servers[broken], secret)
            workers = [server.worker() for server in self._servers.values()]
            inode_table = Address(*cluster.call(table, "endpoint", timeout_s=ANSWER_TIMEOUT_S))
            self._jobs.update(Fleet(tuple(filter(None, workers)), inode_table, is_settled=None not in workers))
            self._jobs_failure = ""
        except Exception as error:
            if self._jobs_failure != (failure := f"{type(error).__name__}: {error}"):
                log.exception("no jobs are taken")
            self._jobs_failure = failure
            if isinstance(error, RuntimeError):  # its thread has ended: the next cycle starts another
                self._jobs = None
        return self._jobs.address if self._jobs else None

    def _listen(self) -> None:
        """Hear from every server how it is."""
        handles = {host: server.handle for host, server in self._servers.items()}
        for host, said in cluster.call_each(handles, "statistics", ANSWER_TIMEOUT_S).items():
            server = self._servers[host]
            if isinstance(said, cluster.ActorDied):
                self._lose(server, "its process has ended")
            elif isinstance(said, cluster.Unreachable):
                self._miss(server)
            else:
                self._hear(server, ChunkServerStatistics.unpack(said))

    def _hear(self, server: Server, said: ChunkServerStatistics) -> None:
        if not server.answers:
            log.info("chunk server %s answers", said.server)
        server.statistics, server.answers = said, True
        before, server.level = server.level, level(score(said.sample), server.level)
        if server.level is not before:
            log.info("%s is %s now", server.host, server.level)

    def _miss(self, server: Server) -> None:
        """It was silent. One that is only starting is given time, one that never starts is tried again."""
        if server.statistics is None:
            if time.monotonic() - server.started_s > START_TIMEOUT_S:
                cluster.destroy(cluster.chunk_server_name(server.host), ANSWER_TIMEOUT_S)
                self._lose(server, f"it did not start within {START_TIMEOUT_S:.0f} s")
        elif server.answers:
            log.warning("chunk server %s does not answer: it is lost until it does", server.statistics.server)
            server.answers = False

    def _lose(self, server: Server, reason: str) -> None:
        """Forget a server that will not come back; what it held is listed as lost."""
        del self._servers[server.host]
        said = server.statistics
        log.error("the chunk server on %s is gone with %d chunks: %s", server.host, said.chunks if said else 0, reason)
        if said is not None:
            self._lost = [*self._lost, ServerView(said, server.level, False)][-LOST_MAX:]
