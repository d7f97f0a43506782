"""The scheduler's cycle over a fake cluster, and the command that puts the scheduler into a real one."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from gridfs import cluster as real_cluster
from gridfs import config
from gridfs.cluster import ClusterNode, ClusterRecord
from gridfs.config import GIB
from gridfs.errors import GridfsError
from gridfs.types import Address, ChunkServerStatistics, NodeSample, PlacementMap
from scheduler import __main__ as command
from scheduler import daemon
from scheduler.daemon import Daemon

TABLE = "the inode table"
GONE = "is gone with"


def worker(host: str, node_id: str = "") -> ClusterNode:
    """A node that contributes."""
    return ClusterNode(node_id or f"{host}-id", host, "10.0.0.2", real_cluster.WORKER, 4 * GIB, False)


class FakeServer:
    """A chunk server's actor: what it was made with, and how it behaves."""

    def __init__(self, node_id: str, arguments: tuple[Any, ...]) -> None:
        self.node_id = node_id
        self.server, self.host, _, self.secret, self.capacity_bytes = arguments
        self.chunks = 0
        self.available = 0.8
        self.says: Exception | None = None

    def statistics(self) -> dict[str, Any]:
        """As ChunkServer.statistics."""
        sample = NodeSample(10 * GIB, int(10 * GIB * self.available), 0.0)
        sizes = (self.capacity_bytes, 0, 0, self.capacity_bytes, 0, self.chunks, self.chunks)
        return asdict(ChunkServerStatistics(self.server, self.host, Address("10.0.0.2", 1), *sizes, sample))


class FakeCluster:
    """What the scheduler uses of `gridfs.cluster`, without Ray; named actors live on from one scheduler to the next."""

    INODE_TABLE, SCHEDULER, WORKER = real_cluster.INODE_TABLE, real_cluster.SCHEDULER, real_cluster.WORKER
    ActorDied, Unreachable = real_cluster.ActorDied, real_cluster.Unreachable
    chunk_server_name = staticmethod(real_cluster.chunk_server_name)

    def __init__(self, *nodes: ClusterNode) -> None:
        self.present = list(nodes)
        self.table: str | None = TABLE
        self.epoch = 0
        self.published: list[PlacementMap] = []
        self.actors: dict[str, FakeServer] = {}
        self.made: list[FakeServer] = []
        self.destroyed: list[str] = []

    def nodes(self, timeout_s: float) -> list[ClusterNode]:
        return self.present

    def find(self, name: str, timeout_s: float) -> str | None:
        assert name == self.INODE_TABLE
        return self.table

    def call(self, handle: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        assert handle == TABLE
        if method == "publish":
            self.published.append(PlacementMap.unpack(arguments[0]))
            self.epoch = self.published[-1].epoch
        return {"secret": b"secret", "statistics": {"placement": {"epoch": self.epoch}}}.get(method)

    def call_each(self, handles: Mapping[str, FakeServer], method: str, timeout_s: float) -> dict[str, Any]:
        return {host: server.says or server.statistics() for host, server in handles.items()}

    def create(
        self, made: type, name: str, node_id: str, *arguments: Any, max_restarts: int, max_concurrency: int
    ) -> FakeServer:
        assert max_restarts == 0  # a restart could not bring refs back
        if name not in self.actors or isinstance(self.actors[name].says, self.ActorDied):
            self.actors[name] = FakeServer(node_id, arguments)
            self.made.append(self.actors[name])
        return self.actors[name]

    def destroy(self, name: str, timeout_s: float) -> None:
        del self.actors[name]
        self.destroyed.append(name)


class Stepped(Daemon):
    """A scheduler whose cycles the test runs."""

    def _run(self) -> None:
        pass

    def cycle(self) -> dict[str, tuple[str, float]]:
        """One cycle; returns server -> (level, weight) in its map."""
        self._cycle()
        published: list[PlacementMap] = daemon.cluster.published  # type: ignore[attr-defined]
        return {node.server: (node.level, node.weight) for node in published[-1].nodes}


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeCluster:
    """A cluster of two workers and a master."""
    fake = FakeCluster(
        ClusterNode("m", "master", "10.0.0.1", real_cluster.MASTER, GIB, True), worker("worker1"), worker("worker2")
    )
    monkeypatch.setattr(daemon, "cluster", fake)
    return fake


def until(condition: Callable[[], object]) -> None:
    """Wait for a thread."""
    deadline_s = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.002)


# -- chunk servers ---------------------------------------------------------------------------------------------------


def test_every_contributing_node_gets_one_server_and_the_master_none(fake: FakeCluster) -> None:
    scheduler = Stepped(GIB)
    for _ in range(3):
        told = scheduler.cycle()
    assert [(server.host, server.node_id, server.capacity_bytes, server.secret) for server in fake.made] == [
        (host, f"{host}-id", GIB, b"secret") for host in ("worker1", "worker2")
    ]
    assert set(told) == {server.server for server in fake.made}
    assert all(level == "calm" and weight > 0 for level, weight in told.values())


def test_without_a_capacity_it_is_a_share_of_the_object_store(fake: FakeCluster) -> None:
    Stepped(None).cycle()
    assert {server.capacity_bytes for server in fake.made} == {int(4 * GIB * daemon.STORE_SHARE)}


def test_a_node_that_joins_gets_a_server(fake: FakeCluster) -> None:
    scheduler = Stepped(GIB)
    scheduler.cycle()
    fake.present.append(worker("worker3"))
    assert len(scheduler.cycle()) == 3


def test_a_scheduler_that_is_started_again_finds_the_servers_and_goes_on_with_the_epochs(fake: FakeCluster) -> None:
    first = Stepped(GIB)
    before = [first.cycle() for _ in range(3)][-1]
    assert Stepped(GIB).cycle() == before
    assert len(fake.made) == 2
    assert [placement.epoch for placement in fake.published] == [1, 2, 3, 4]


@pytest.mark.expected_log(GONE)
def test_a_server_that_died_is_listed_as_lost_and_replaced_under_another_identity(fake: FakeCluster) -> None:
    scheduler = Stepped(GIB)
    scheduler.cycle()
    dead = fake.actors["chunk-server@worker1"]
    dead.chunks, dead.says = 7, None
    scheduler.cycle()
    dead.says = real_cluster.ActorDied("dead")
    assert scheduler.cycle()[dead.server] == ("lost", 0)
    told = scheduler.cycle()
    assert told[dead.server] == ("lost", 0)
    new = fake.actors["chunk-server@worker1"]
    assert new.server != dead.server
    assert told[new.server][0] == "calm"
    assert [node.chunks for node in fake.published[-1].nodes if not node.alive] == [7]


@pytest.mark.expected_log("does not answer: it is lost until it does")
def test_a_silent_server_is_lost_until_it_answers_again_and_is_not_replaced(fake: FakeCluster) -> None:
    scheduler = Stepped(GIB)
    before = scheduler.cycle()
    silent = fake.actors["chunk-server@worker1"]
    silent.says = real_cluster.Unreachable("silent")
    for _ in range(3):
        assert scheduler.cycle()[silent.server] == ("lost", 0)
    silent.says = None
    assert scheduler.cycle() == before
    assert len(fake.made) == 2


@pytest.mark.expected_log(GONE)
def test_a_server_that_never_starts_is_ended_and_tried_again(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not before it has had its time; and what was never there is not listed as lost."""
    fake.present = [worker("worker1")]
    scheduler = Stepped(GIB)
    create = fake.create

    def create_silent(*arguments: Any, **options: Any) -> FakeServer:
        server = create(*arguments, **options)
        server.says = real_cluster.Unreachable("starting")
        return server

    monkeypatch.setattr(fake, "create", create_silent)
    assert scheduler.cycle() == {}
    assert fake.destroyed == []
    monkeypatch.setattr(daemon, "START_TIMEOUT_S", 0.0)
    assert scheduler.cycle() == {}
    assert fake.destroyed == ["chunk-server@worker1"]
    monkeypatch.setattr(fake, "create", create)
    assert [level for level, _ in scheduler.cycle().values()] == ["calm"]
    assert len(fake.made) == 2


@pytest.mark.expected_log(GONE)
@pytest.mark.parametrize("back_as", [None, "another-id"])
def test_a_node_that_left_or_came_back_as_another_has_lost_its_chunks(fake: FakeCluster, back_as: str | None) -> None:
    scheduler = Stepped(GIB)
    scheduler.cycle()
    old = fake.actors.pop("chunk-server@worker1")
    fake.present = [node for node in fake.present if node.host != "worker1"]
    if back_as:
        fake.present.append(worker("worker1", back_as))
    told = scheduler.cycle()
    assert told.pop(old.server) == ("lost", 0)
    assert len(told) == (2 if back_as else 1)
    if back_as:
        assert fake.made[-1].node_id == back_as


@pytest.mark.expected_log(GONE)
def test_the_lost_that_are_listed_are_the_newest_and_not_without_limit(
    fake: FakeCluster, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "LOST_MAX", 3)
    fake.present = [worker("worker1")]
    scheduler = Stepped(GIB)
    for _ in range(6):
        scheduler.cycle()
        fake.actors["chunk-server@worker1"].says = real_cluster.ActorDied("dead")
        told = scheduler.cycle()
    assert list(told) == [server.server for server in fake.made[-3:]]


def test_levels_have_hysteresis_over_the_cycles(fake: FakeCluster) -> None:
    scheduler = Stepped(GIB)
    server = (scheduler.cycle(), fake.actors["chunk-server@worker1"])[1]
    seen = []
    for available in (0.5, 0.08, 0.12, 0.16, 0.5):
        server.available = available
        seen.append(scheduler.cycle()[server.server])
    assert [level for level, _ in seen] == ["calm", "hot", "hot", "warm", "calm"]
    assert [weight > 0 for _, weight in seen] == [True, False, False, True, True]


# -- the loop --------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log("this cycle came to nothing: there is no inode table")
@pytest.mark.expected_log("this cycle failed")
def test_a_cycle_that_fails_is_told_of_and_the_next_one_comes(fake: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "CYCLE_S", 0.001)
    fake.table = None
    scheduler = Daemon(GIB)
    try:
        until(lambda: "no inode table" in scheduler.statistics()["failure"])
        with monkeypatch.context() as broken:
            broken.setattr(fake, "nodes", lambda timeout_s: 1 / 0)
            fake.table = TABLE
            until(lambda: "ZeroDivisionError" in scheduler.statistics()["failure"])
        until(lambda: scheduler.statistics()["epoch"] > 2)
        assert scheduler.statistics()["failure"] == ""
    finally:
        scheduler.stop()
    published = len(fake.published)
    assert scheduler.statistics()["cycles"] > 4
    assert [placement.epoch for placement in fake.published] == list(range(1, published + 1))


# -- the command -----------------------------------------------------------------------------------------------------


class FakeConnection:
    """The calls that the command makes, in their order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, failing: str = "") -> None:
        self.calls: list[str] = []
        self.created: tuple[Any, ...] = ()
        self._failing = failing
        for name in ("connect", "nodes", "create", "call", "disconnect"):
            monkeypatch.setattr(real_cluster, name, self._answer(name))

    def _answer(self, name: str) -> Callable[..., Any]:
        def answer(*arguments: Any, **options: Any) -> Any:
            self.calls.append(name)
            if name == self._failing:
                raise real_cluster.Unreachable(f"{name} was not answered")
            if name == "create":
                self.created = (*arguments, options)
            return [worker("head"), worker("worker1")] if name == "nodes" else "scheduler"

        return answer


@pytest.fixture
def record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ClusterRecord:
    """The record of a cluster that is up."""
    monkeypatch.setenv("GRIDFS_HOME", str(tmp_path))
    record = ClusterRecord("10.0.0.1:6379", 3 * GIB, False, str(tmp_path / "token"), None, "10.0.0.1")
    record.save()
    return record


def run(monkeypatch: pytest.MonkeyPatch) -> None:
    """The command without arguments."""
    monkeypatch.setattr(sys, "argv", ["scheduler.gridfs"])
    command.main()


def test_the_command_makes_the_scheduler_on_the_head_and_ends(record: ClusterRecord, monkeypatch: pytest.MonkeyPatch) -> None:
    connection = FakeConnection(monkeypatch)
    run(monkeypatch)
    assert connection.created == (Daemon, "scheduler", "head-id", 3 * GIB, str(config.home()), {"max_restarts": -1})
    assert connection.calls == ["connect", "nodes", "create", "call", "disconnect"]


@pytest.mark.parametrize("failing", ["connect", "nodes", "create", "call"])
def test_a_command_that_fails_says_one_sentence_and_lets_go(
    record: ClusterRecord, failing: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = FakeConnection(monkeypatch, failing)
    with pytest.raises(SystemExit) as ended:
        run(monkeypatch)
    assert ended.value.code == f"gridfs: {failing} was not answered"
    assert connection.calls[-1] == "disconnect"


def test_without_a_filesystem_the_command_says_what_to_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRIDFS_HOME", str(tmp_path))
    connection = FakeConnection(monkeypatch)
    with pytest.raises(SystemExit, match=r"gridfs: no filesystem is up here .*: run gridfs up") as ended:
        run(monkeypatch)
    assert isinstance(ended.value.__context__, GridfsError)
    assert "create" not in connection.calls
