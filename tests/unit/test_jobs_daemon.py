"""The scheduler's cycle gives every worker a runner, and says where jobs are taken; whatever fails there, chunks go on."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridfs import cluster as real_cluster
from gridfs.cluster import ClusterNode
from gridfs.config import GIB, JOBS_STORE
from gridfs.offload.runner import THREADS, Runner
from scheduler import daemon
from tests.unit.test_scheduler_main import FakeCluster, FakeServer, Stepped, worker

NONE_TAKEN = "no jobs are taken"


class WithRunners(FakeCluster):
    """A cluster that has runners as well; they are never called here."""

    runner_name = staticmethod(real_cluster.runner_name)

    def __init__(self, *nodes: ClusterNode) -> None:
        super().__init__(*nodes)
        self.runners: list[tuple[str, str, tuple[Any, ...], dict[str, Any]]] = []

    def create(self, made: type, name: str, node_id: str, *arguments: Any, **options: Any) -> FakeServer:
        if made is Runner:
            self.runners.append((name, node_id, arguments, options))
            return self.actors.setdefault(name, FakeServer(node_id, ("runner", "", "", b"", 0)))
        return super().create(made, name, node_id, *arguments, **options)

    def call(self, handle: str, method: str, *arguments: Any, timeout_s: float) -> Any:
        if method == "endpoint":
            return "10.0.0.1", 99
        return super().call(handle, method, *arguments, timeout_s=timeout_s)


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> WithRunners:
    head = ClusterNode("m", "master", "127.0.0.1", real_cluster.MASTER, GIB, True)
    fake = WithRunners(head, worker("worker1"), worker("worker2"))
    monkeypatch.setattr(daemon, "cluster", fake)
    return fake


@pytest.fixture
def schedulers(tmp_path: Path) -> Iterator[list[Stepped]]:
    """Those that a test has started are stopped."""
    started: list[Stepped] = []
    yield started
    for scheduler in started:
        scheduler.stop()


@pytest.fixture
def scheduler(schedulers: list[Stepped], tmp_path: Path) -> Stepped:
    schedulers.append(Stepped(GIB, str(tmp_path)))
    return schedulers[-1]


def test_every_worker_gets_one_runner_that_ray_restarts(fake: WithRunners, scheduler: Stepped) -> None:
    for _ in range(3):
        scheduler.cycle()
    options = {"max_restarts": -1, "max_concurrency": THREADS}
    assert fake.runners == [
        (f"offload-runner@{host}", f"{host}-id", (host, b"secret"), options) for host in ("worker1", "worker2")
    ]


def test_the_map_says_where_jobs_are_taken_and_a_restarted_scheduler_takes_them_there(
    fake: WithRunners, scheduler: Stepped, schedulers: list[Stepped], tmp_path: Path
) -> None:
    scheduler.cycle()
    address = fake.published[-1].jobs
    assert address is not None
    assert address.host == "127.0.0.1"
    assert scheduler.statistics()["jobs"] == {"queued": 0, "running": 0}
    scheduler.stop()
    schedulers.append(Stepped(GIB, str(tmp_path)))
    schedulers[-1].cycle()
    assert fake.published[-1].jobs == address


def test_jobs_are_told_of_the_nodes(fake: WithRunners, scheduler: Stepped) -> None:
    scheduler.cycle()
    jobs = scheduler._jobs
    assert jobs is not None
    fleet = jobs.service.dispatcher.fleet
    assert [worker.view.host for worker in fleet.workers] == ["worker1", "worker2"]
    assert (fleet.is_settled, tuple(fleet.inode_table)) == (True, ("10.0.0.1", 99))
    assert [worker.runner for worker in fleet.workers] == [fake.actors[f"offload-runner@worker{n}"] for n in (1, 2)]


def test_nothing_is_certain_before_every_server_has_answered(fake: WithRunners, scheduler: Stepped) -> None:
    create = fake.create

    def create_silent(*arguments: Any, **options: Any) -> FakeServer:
        server = create(*arguments, **options)
        server.says = real_cluster.Unreachable("starting")
        return server

    fake.create = create_silent  # type: ignore[method-assign]
    scheduler.cycle()
    assert scheduler._jobs is not None
    assert not scheduler._jobs.service.dispatcher.fleet.is_settled
    fake.actors["chunk-server@worker1"].says = fake.actors["chunk-server@worker2"].says = None
    scheduler.cycle()
    assert scheduler._jobs.service.dispatcher.fleet.is_settled


def test_a_runner_that_was_lost_is_started_unless_ray_has_done_so(fake: WithRunners, scheduler: Stepped) -> None:
    scheduler.cycle()
    assert scheduler._jobs is not None
    scheduler._jobs.service.dispatcher.broken |= {"worker2", "left"}
    fake.runners.clear()
    scheduler.cycle()
    scheduler.cycle()
    assert [name for name, *_ in fake.runners] == ["offload-runner@worker2"]


@pytest.mark.expected_log("is gone with")
def test_the_runner_of_a_node_that_came_back_as_another_is_a_new_one(fake: WithRunners, scheduler: Stepped) -> None:
    scheduler.cycle()
    del fake.actors["chunk-server@worker1"]
    fake.present[1] = worker("worker1", "another-id")
    scheduler.cycle()
    assert fake.destroyed == ["offload-runner@worker1"]
    assert fake.runners[-1][:2] == ("offload-runner@worker1", "another-id")


def test_without_a_home_there_are_no_jobs(fake: WithRunners) -> None:
    Stepped(GIB).cycle()
    assert (fake.published[-1].jobs, fake.runners) == (None, [])


@pytest.mark.expected_log(NONE_TAKEN)
@pytest.mark.expected_log("jobs failed")
def test_a_store_that_cannot_be_used_stops_no_chunk_and_is_tried_again(
    fake: WithRunners, scheduler: Stepped, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / JOBS_STORE).write_bytes(b"no store at all" * 100)
    for _ in range(3):
        assert len(scheduler.cycle()) == 2
        assert fake.published[-1].jobs is None
    assert "is not a store of jobs" in scheduler.statistics()["jobs_failure"]
    (tmp_path / JOBS_STORE).unlink()
    scheduler.cycle()
    assert fake.published[-1].jobs is None, "it is not tried again each second"
    monkeypatch.setattr(scheduler, "_jobs_retry_s", 0.0)
    scheduler.cycle()
    assert fake.published[-1].jobs is not None
    assert scheduler.statistics()["jobs_failure"] == ""


@pytest.mark.expected_log(NONE_TAKEN)
def test_a_server_for_jobs_that_has_ended_is_started_again(
    fake: WithRunners, scheduler: Stepped, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(daemon, "JOBS_RETRY_S", 0.0)
    scheduler.cycle()
    assert scheduler._jobs is not None
    scheduler._jobs.stop()
    scheduler.cycle()
    assert fake.published[-1].jobs is None
    scheduler.cycle()
    assert fake.published[-1].jobs is not None
