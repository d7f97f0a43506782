"""Run a Python call on a node that has the memory for it: `submit(function, ..., memory_bytes=...)`."""

from __future__ import annotations

import concurrent.futures
import functools
import logging
import pickle
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import ray
import ray.cloudpickle
import ray.exceptions
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gridfs import cluster, node
from gridfs.cluster import ClusterNode, ClusterRecord
from gridfs.errors import GridfsError
from gridfs.types import ChunkServerStatistics, NodeSample
from scheduler.headroom import TASK_BYTES, Decision, NodeView, Promise, decide, promised

log = logging.getLogger(__name__)

T = TypeVar("T")

ANSWER_TIMEOUT_S = 3.0
START_TIMEOUT_S = 60.0
"""A node that has not started a process for a task by then is out of reach."""
_FIRST_TO_DIE = "1000"


class Execution(concurrent.futures.Future[T]):
    """The future of a call. `cancel` ends the call's process, too, also while it runs.

    Its exception is what the function raised, or a GridfsError: the process or its node has died.
    """

    def __init__(self, decision: Decision) -> None:
        super().__init__()
        self.decision = decision
        """Where it runs, and why; of the newest attempt."""
        self.attempts = 0
        self._ref: Any = None

    def cancel(self) -> bool:
        """As of any future; but a call that runs can be cancelled."""
        if not super().cancel():
            return False
        if self._ref is not None:
            ray.cancel(self._ref, force=True)
        return True

    def began(self, ref: Any) -> None:
        """The executor tells that an attempt was sent; one that nobody waits for any more is ended at once."""
        self.attempts, self._ref = self.attempts + 1, ref
        if self.cancelled():
            ray.cancel(ref, force=True)


class _KilledForMemory(Exception):
    """The attempt ended since it had not the memory that it asked for."""


class Executor:
    """Sends calls to nodes, and keeps what each of them may still take. May be used by any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._promises: dict[str, list[Promise]] = {}
        """Node id -> of the tasks there, the eldest first."""

    def submit(self, function: Callable[..., T], *args: Any, memory_bytes: int = 0, **kwargs: Any) -> Execution[T]:
        """See the function `submit`."""
        if not ray.is_initialized():
            cluster.connect(ClusterRecord.load())
        call: bytes = ray.cloudpickle.dumps((function, args, kwargs))  # type: ignore[no-untyped-call]
        size_bytes = memory_bytes + TASK_BYTES
        decision, promise = self._decide(size_bytes)
        execution: Execution[T] = Execution(decision)
        arguments = (execution, call, size_bytes, promise)
        threading.Thread(target=self._carry_out, args=arguments, name="gridfs-task", daemon=True).start()
        return execution

    def _decide(self, size_bytes: int, without: str = "") -> tuple[Decision, Promise]:
        """Choose a node, another one than the host `without`, and promise its memory."""
        looked = [look for look in _look() if look[0].host != without]
        with self._lock:
            views = [self._view(node, is_master, sample) for node, is_master, sample in looked]
            decision = decide(views, size_bytes)
            available = next(view.sample.available_bytes for view in views if view.node_id == decision.node_id)
            promise = Promise(size_bytes, available)
            self._promises.setdefault(decision.node_id, []).append(promise)
        log.info("a task of %d bytes runs %s", size_bytes, decision)
        return decision, promise

    def _view(self, node: ClusterNode, is_master: bool, sample: NodeSample) -> NodeView:
        outstanding = promised(self._promises.get(node.node_id, ()), sample.available_bytes)
        return NodeView(node.host, node.node_id, is_master, sample, outstanding)

    def _forget(self, node_id: str, promise: Promise) -> None:
        with self._lock:
            promises = self._promises[node_id]
            del promises[next(at for at, one in enumerate(promises) if one is promise)]
            if not promises:
                del self._promises[node_id]

    # -- in a thread of the execution --------------------------------------------------------------------------------

    def _carry_out(self, execution: Execution[T], call: bytes, size_bytes: int, promise: Promise) -> None:
        """See the call through to its end, and tell those who wait."""
        value: Any = None
        failure: BaseException | None = None
        try:
            try:
                value = self._attempt(execution, call, promise)
            except _KilledForMemory as error:
                value = self._attempt_on_larger(execution, call, size_bytes, error)
        except BaseException as error:  # noqa: BLE001 - whatever it is, somebody waits for it
            failure = error
        if not execution.set_running_or_notify_cancel():
            return
        if failure is not None:
            execution.set_exception(failure)
        else:
            execution.set_result(value)

    def _attempt_on_larger(self, execution: Execution[T], call: bytes, size_bytes: int, killed: _KilledForMemory) -> Any:
        """Once more, where there is more than the first node could give, since that was too little."""
        first = execution.decision
        try:
            execution.decision, promise = self._decide(max(size_bytes, first.headroom_bytes), without=first.host)
        except GridfsError as error:
            raise GridfsError(f"{killed}, and there is no larger node: {error}") from killed
        log.warning("%s: once more %s", killed, execution.decision)
        try:
            return self._attempt(execution, call, promise)
        except _KilledForMemory as error:
            raise GridfsError(f"{killed}, and once more: {error}") from error

    def _attempt(self, execution: Execution[T], call: bytes, promise: Promise) -> Any:
        """Run the call on the node that was chosen; returns what it returns, raises what it raises."""
        decision = execution.decision
        try:
            kills = _on(decision, _kills)
            ref = _placed(_call, decision.node_id).remote(call)
            execution.began(ref)
            return _outcome(ref, decision, kills)
        finally:
            self._forget(decision.node_id, promise)


_executor = Executor()


def submit(function: Callable[..., T], *args: Any, memory_bytes: int = 0, **kwargs: Any) -> Execution[T]:
    """Run `function(*args, **kwargs)` in a process of a node that has `memory_bytes` to spare; returns its future at once.

    It stays on the master while the master has memory to spare, and goes to the worker with the most headroom else
    (`scheduler.headroom.decide`); `decision` of the future says where and why. Raises GridfsError when no node can hold it,
    with the reason of each, or when there is no cluster. Function and arguments are pickled before this returns.

    A call that dies for memory is run once more on a larger node, so its side effects may happen twice; nothing else is
    repeated. `memory_bytes` is not enforced, but the kernel ends the call's process before any other of its node. The
    result passes through Ray's object stores, of which the one of a master that gridfs started has 128 MiB.
    """
    return _executor.submit(function, *args, memory_bytes=memory_bytes, **kwargs)


# -- looking ---------------------------------------------------------------------------------------------------------


def _look() -> Iterator[tuple[ClusterNode, bool, NodeSample]]:
    """(node, whether it is the master, its memory) of the head and of every worker whose chunk server answers."""
    master, *others = cluster.nodes(ANSWER_TIMEOUT_S)
    workers = [node for node in others if node.role == cluster.WORKER]
    handles = {worker: cluster.find(cluster.chunk_server_name(worker.host), ANSWER_TIMEOUT_S) for worker in workers}
    present = {worker: handle for worker, handle in handles.items() if handle is not None}
    told = cluster.call_each(present, "statistics", ANSWER_TIMEOUT_S)
    yield master, True, _sample_of(master)
    for worker, said in told.items():
        if not isinstance(said, cluster.Unreachable):
            yield worker, False, ChunkServerStatistics.unpack(said).sample


def _sample_of(master: ClusterNode) -> NodeSample:
    """The master's memory: it has no chunk server that could tell."""
    if ray.get_runtime_context().get_node_id() == master.node_id:
        return node.sample()
    return _on(master, node.sample)


# -- running ---------------------------------------------------------------------------------------------------------


@functools.cache
def _remote(function: Callable[..., Any]) -> Any:
    """Made once: Ray sends a function to its control store for every remote function that is made of it."""
    return ray.remote(function)


def _placed(function: Callable[..., Any], node_id: str) -> Any:
    strategy = NodeAffinitySchedulingStrategy(node_id, soft=False)
    return _remote(function).options(num_cpus=0, max_retries=0, scheduling_strategy=strategy)


def _on(place: ClusterNode | Decision, function: Callable[[], T]) -> T:
    """What `function` returns on that node. Raises GridfsError if the node does not say."""
    try:
        told: T = ray.get(_placed(function, place.node_id).remote(), timeout=START_TIMEOUT_S)
    except ray.exceptions.RayError as error:
        raise GridfsError(f"{place.host} does not run tasks any more ({type(error).__name__}): see gridfs status") from error
    return told


def _outcome(ref: Any, decision: Decision, kills: int) -> Any:
    """The value of a task; `kills` is what its node had counted before it."""
    try:
        return ray.get(ref)
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, MemoryError):
            raise _KilledForMemory(f"the task found no memory on {decision.host}") from error.cause
        raise error.cause from error
    except ray.exceptions.OutOfMemoryError as error:
        raise _KilledForMemory(f"Ray ended the task on {decision.host} for memory") from error
    except ray.exceptions.WorkerCrashedError as error:
        if _on(decision, _kills) > kills:
            raise _KilledForMemory(f"the kernel ended the task on {decision.host} for memory") from error
        raise GridfsError(
            f"the process of the task on {decision.host} has died, not for memory: it is not run again"
        ) from error
    except ray.exceptions.RayError as error:
        raise GridfsError(f"the task on {decision.host} was lost ({type(error).__name__}): see gridfs status") from error


def _kills() -> int:
    """How many processes the kernel has ended for memory on this machine, in control groups or at large (vmstat, oom_kill)."""
    for line in Path("/proc/vmstat").read_text().splitlines():
        name, _, count = line.partition(" ")
        if name == "oom_kill":
            return int(count)
    return 0


def _call(call: bytes) -> Any:
    with _first_to_die():
        function, args, kwargs = pickle.loads(call)  # noqa: S301 - from a driver, who may run what he likes here anyhow
        return function(*args, **kwargs)


@contextmanager
def _first_to_die(score: Path = Path("/proc/self/oom_score_adj")) -> Iterator[None]:
    """If the node has no memory left, the kernel is to end this process, and not the chunk server with its chunks."""
    before = score.read_text()
    score.write_text(_FIRST_TO_DIE)
    try:
        yield
    finally:
        score.write_text(before)
