"""Calls run where memory is: on real nodes, with a memory limit of their own."""

from __future__ import annotations

import fcntl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from gridfs import cluster, node
from gridfs.config import GIB, MIB
from gridfs.errors import GridfsError
from gridfs.types import NodeSample
from scheduler import executor
from scheduler.executor import Execution, submit
from tests.cluster.real import LIMIT_BYTES, WORKERS, Real, until

FULL = NodeSample(24 * GIB, GIB, 0.0)
RESULT_TIMEOUT_S = 60.0


@pytest.fixture
def full_master(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """The master seems to have no memory to spare; undone by `undo`."""
    monkeypatch.setattr(node, "sample", lambda: FULL)
    return monkeypatch


async def result(execution: Execution[Any]) -> Any:
    """What the call returned; raises what it raised."""
    return await trio.to_thread.run_sync(execution.result, RESULT_TIMEOUT_S)


def where() -> Callable[[], str]:
    """A call that tells the id of the node it runs on. It is made here so that it travels by value."""

    def told() -> str:
        import ray

        return str(ray.get_runtime_context().get_node_id())

    return told


def note_and(note: Path, then: Callable[[], Any]) -> Callable[[], Any]:
    """A call that adds its process id to a file, then does something."""

    def run() -> Any:
        import os

        with note.open("a") as file:
            file.write(f"{os.getpid()}\n")
        return then()

    return run


def attempts(note: Path) -> int:
    """How often such a call has begun."""
    return len(note.read_text().splitlines()) if note.exists() else 0


def id_of(host: str) -> str:
    """Ray's name of a node."""
    return next(node.node_id for node in cluster.nodes() if node.host == host)


async def test_a_call_that_fits_runs_on_the_master(real: Real) -> None:
    execution = submit(where())
    assert await result(execution) == id_of("master")
    assert execution.decision.host == "master"
    assert "it fits on the master" in str(execution.decision)


async def test_arguments_results_and_errors_are_those_of_a_call(real: Real) -> None:
    assert await result(submit(lambda *args, **kwargs: (args, kwargs), 1, [b"2"], key={3: None})) == (
        (1, [b"2"]),
        {"key": {3: None}},
    )
    with pytest.raises(ValueError, match="invalid literal"):
        await result(submit(int, "x"))


async def test_when_the_master_is_full_calls_go_to_the_worker_with_most_headroom(
    real: Real, full_master: object, tmp_path: Path
) -> None:
    """The memory that the first was promised counts before it has taken any."""

    def wait_for(path: str) -> None:
        import pathlib
        import time

        while not pathlib.Path(path).exists():
            time.sleep(0.05)

    end = trio.Path(tmp_path / "end")
    waiting = submit(wait_for, str(end), memory_bytes=GIB)
    try:
        (other,) = {*WORKERS} - {waiting.decision.host}
        execution = submit(where())
        assert await result(execution) == id_of(other)
        assert "master has 1.0 GiB available, less than 2.0 GiB" in execution.decision.reason
    finally:
        await end.touch()
        await result(waiting)


async def test_what_no_node_can_hold_is_refused_with_the_reasons(real: Real, full_master: object) -> None:
    with pytest.raises(
        GridfsError, match=r"no node can hold a task of 3\.1 GiB: master has 1\.0 GiB available.*worker1 has .*worker2"
    ):
        submit(where(), memory_bytes=LIMIT_BYTES)


@pytest.mark.expected_log("once more on master")
async def test_a_call_that_is_killed_for_memory_runs_once_more_on_a_larger_node(
    real: Real, full_master: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The kernel ends it, and nothing else of that node."""
    if real.node("worker1").cgroup is None:
        pytest.skip(real.node("worker1").note)
    before = {host: real.chunk_server(host).server for host in WORKERS}
    size_bytes = LIMIT_BYTES + 64 * MIB
    execution = submit(note_and(tmp_path / "note", lambda: len(b"x" * size_bytes)))
    first = execution.decision.host
    full_master.undo()
    assert await result(execution) == size_bytes
    assert first in WORKERS
    assert (execution.decision.host, execution.attempts, attempts(tmp_path / "note")) == ("master", 2, 2)
    assert {host: real.chunk_server(host).server for host in WORKERS} == before


@pytest.mark.expected_log("the task found no memory")
async def test_a_call_without_memory_on_two_nodes_fails_with_both(
    real: Real, full_master: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def starve() -> None:
        raise MemoryError

    execution = submit(note_and(tmp_path / "note", starve))
    full_master.undo()
    with pytest.raises(GridfsError, match=r"found no memory on worker., and once more: the task found no memory on master"):
        await result(execution)
    assert attempts(tmp_path / "note") == 2


async def test_a_call_without_memory_on_the_largest_node_fails_with_the_reason(real: Real, tmp_path: Path) -> None:
    def starve() -> None:
        raise MemoryError

    execution = submit(note_and(tmp_path / "note", starve))
    with pytest.raises(GridfsError, match="found no memory on master, and there is no larger node: no node can hold"):
        await result(execution)
    assert attempts(tmp_path / "note") == 1


async def test_a_call_whose_process_dies_otherwise_is_not_run_again(real: Real, tmp_path: Path) -> None:
    def die() -> None:
        import os
        import signal

        os.kill(os.getpid(), signal.SIGKILL)

    execution = submit(note_and(tmp_path / "note", die))
    with pytest.raises(GridfsError, match="has died, not for memory: it is not run again"):
        await result(execution)
    assert attempts(tmp_path / "note") == 1


async def test_cancelling_ends_the_process_of_a_call(real: Real, tmp_path: Path) -> None:
    """The lock that it held is free then, which the kernel does when the process has gone."""
    note = tmp_path / "note"

    def hold() -> None:
        import fcntl
        import signal

        with note.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            note.with_suffix(".locked").touch()
            signal.pause()

    execution = submit(note_and(note, hold))
    await until(note.with_suffix(".locked").exists)
    assert not is_free(note)
    assert execution.cancel()
    assert execution.cancelled()
    await until(lambda: is_free(note))
    assert await until(lambda: executor._executor._promises == {})
    assert attempts(note) == 1


def is_free(path: Path) -> bool:
    """True when nobody has a lock on the file."""
    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        return True


async def test_what_was_promised_is_forgotten_when_the_call_has_ended(real: Real) -> None:
    await result(submit(time.time, memory_bytes=GIB))
    assert await until(lambda: executor._executor._promises == {})
