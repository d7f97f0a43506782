"""The one place where a class becomes an actor: connecting to Ray, its nodes, and our named actors on them.

Every call has a deadline that is kept on this side. Ray's own limits overrun, and some of its calls wait a minute for a
control store that is gone, then end the process.
"""

from __future__ import annotations

import concurrent.futures
import logging
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
import ray.exceptions
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gridfs.cluster.record import MASTER, RAY_ENVIRONMENT, WORKER, ClusterRecord
from gridfs.errors import GridfsError
from gridfs.types import Address, Endpoints

log = logging.getLogger(__name__)

NAMESPACE = "gridfs"
INODE_TABLE, SCHEDULER = "inode-table", "scheduler"
HOST_LABEL, ROLE_LABEL = "gridfs-host", "gridfs-role"
CALL_TIMEOUT_S = 10.0
CONNECT_TIMEOUT_S = 12.0
_PROBE_TIMEOUT_S = 2.0
_HEAD_RESOURCE = "node:__internal_head__"

T = TypeVar("T")
K = TypeVar("K")


class Unreachable(GridfsError):
    """Ray, a node or an actor did not answer in time, or is dead."""


class ActorDied(Unreachable):
    """The actor is dead, or its node is: it will not answer any more."""


@dataclass(frozen=True, slots=True)
class ClusterNode:
    """A node that Ray counts as alive."""

    node_id: str
    """Ray's name of this incarnation: a node that joins again has another one."""
    host: str
    """Ours: the label gridfs-host, else Ray's name of the node; unique in the cluster."""
    ip: str
    role: str
    """worker: it contributes its memory; master: it does not."""
    object_store_bytes: int
    is_head: bool


def chunk_server_name(host: str) -> str:
    """The name of the chunk server's actor on that host."""
    return f"chunk-server@{host}"


def runner_name(host: str) -> str:
    """The name of the actor on that host which runs its part of jobs."""
    return f"offload-runner@{host}"


def connect(record: ClusterRecord, timeout_s: float = CONNECT_TIMEOUT_S) -> None:
    """Make this process a driver of the cluster. Raises Unreachable with a sentence, within `timeout_s` or so."""
    host, _, port = record.address.rpartition(":")
    if not host or not port.isdigit():
        raise GridfsError(f"{record.address} is no address of a Ray cluster: write HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host, int(port)), timeout=min(_PROBE_TIMEOUT_S, timeout_s)).close()
    except OSError as error:
        raise Unreachable(f"Ray does not answer at {record.address} ({_reason(error)}): {_advice(record)}") from error
    _adopt(ray_environment(record))
    log.debug("connecting to Ray at %s", record.address)
    try:
        _within(timeout_s, lambda: _init(record))
    except TimeoutError:
        raise Unreachable(
            f"something listens at {record.address} but does not answer as a Ray cluster with this token within "
            f"{timeout_s:.0f} s: {_advice(record)}"
        ) from None
    except Exception as error:
        raise Unreachable(f"cannot join the Ray cluster at {record.address} ({_reason(error)})") from error
    log.debug("connected")


def disconnect() -> None:
    """Stop being a driver; detached actors stay. Not being one is no error."""
    ray.shutdown()


def ray_environment(record: ClusterRecord) -> dict[str, str]:
    """The variables with which nodes and drivers of this cluster run; for one we did not start, the caller's own."""
    if not record.local:
        return {"RAY_USAGE_STATS_ENABLED": "0"}
    assert record.token_path is not None
    return {**RAY_ENVIRONMENT, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": record.token_path}


def nodes(timeout_s: float = CALL_TIMEOUT_S) -> list[ClusterNode]:
    """The nodes alive now, the head first, then by host. Raises Unreachable if Ray does not say in time."""
    listed = _answer(timeout_s, "Ray's list of nodes", ray.nodes)
    return list(_named(sorted((node for node in listed if node["Alive"]), key=_order)))


def create(cls: type[Any], name: str, node_id: str, *args: Any, max_restarts: int, max_concurrency: int | None = None) -> Any:
    """Start `cls(*args)` as the detached actor `name` on exactly that node, or get the one that exists.

    Returns its handle at once: the first call tells whether the constructor succeeded.
    """
    options: dict[str, Any] = {} if max_concurrency is None else {"max_concurrency": max_concurrency}
    placed = NodeAffinitySchedulingStrategy(node_id, soft=False)
    actor: Any = ray.remote(cls)
    return actor.options(
        name=name,
        namespace=NAMESPACE,
        lifetime="detached",
        get_if_exists=True,
        num_cpus=0,
        max_restarts=max_restarts,
        scheduling_strategy=placed,
        **options,
    ).remote(*args)


def find(name: str, timeout_s: float = CALL_TIMEOUT_S) -> Any | None:
    """The handle of our actor `name`, or None if there is none. It may have died since: a call tells."""

    def look() -> Any | None:
        try:
            return ray.get_actor(name, namespace=NAMESPACE)
        except ValueError:
            return None

    return _answer(timeout_s, f"a search for {name}", look)


def call(handle: Any, method: str, *args: Any, timeout_s: float = CALL_TIMEOUT_S) -> Any:
    """Call a method of an actor and return what it returns.

    Raises what the method raised; Unreachable if it did not answer within `timeout_s`, ActorDied if it never will.
    """
    return _result(getattr(handle, method).remote(*args).future(), method, timeout_s)


def call_each(handles: Mapping[K, Any], method: str, timeout_s: float) -> dict[K, Any]:
    """Call a method of several actors at once; gives for each what it returned or, as a value, the Unreachable it met."""
    futures = {key: getattr(handle, method).remote().future() for key, handle in handles.items()}
    deadline_s = time.monotonic() + timeout_s
    results: dict[K, Any] = {}
    for key, future in futures.items():
        try:
            results[key] = _result(future, method, max(0.0, deadline_s - time.monotonic()))
        except Unreachable as error:
            results[key] = error
    return results


def _result(future: concurrent.futures.Future[Any], method: str, timeout_s: float) -> Any:
    try:
        return future.result(timeout_s)
    except concurrent.futures.TimeoutError:
        raise Unreachable(f"{method} was not answered within {timeout_s:g} s") from None
    except ray.exceptions.RayTaskError as error:
        raise error.cause from error
    except ray.exceptions.ActorUnavailableError as error:
        raise Unreachable(f"{method} was not answered: the actor is out of reach just now") from error
    except (ray.exceptions.ActorUnschedulableError, ray.exceptions.RayActorError) as error:
        raise ActorDied(f"{method} was not answered: the actor has died, or its node is gone") from error


def destroy(name: str, timeout_s: float = CALL_TIMEOUT_S) -> bool:
    """End our actor `name` for good; False if there was none."""
    handle = find(name, timeout_s)
    if handle is None:
        return False
    _answer(timeout_s, f"ending {name}", lambda: ray.kill(handle, no_restart=True))
    return True


def names(timeout_s: float = CALL_TIMEOUT_S) -> list[str]:
    """The names of all our actors in the cluster."""
    return sorted(_answer(timeout_s, "Ray's list of actors", ray.util.list_named_actors))


def resolve(timeout_s: float = CALL_TIMEOUT_S) -> Endpoints:
    """Where the filesystem's inode table listens, and the filesystem's secret. Raises Unreachable with a sentence."""
    handle = find(INODE_TABLE, timeout_s)
    if handle is None:
        raise Unreachable("this Ray cluster has no filesystem: run gridfs up")
    try:
        host, port = call(handle, "endpoint", timeout_s=timeout_s)
        return Endpoints(Address(host, port), call(handle, "secret", timeout_s=timeout_s))
    except Unreachable as error:
        raise Unreachable(f"the inode table does not answer ({error}): see gridfs status") from error


def _adopt(environment: dict[str, str]) -> None:
    """Make Ray see these variables: it has read the environment when it was imported, and keeps the token it saw."""
    os.environ.update(environment)
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()


def _init(record: ClusterRecord) -> None:
    ray.init(
        address=record.address,
        namespace=NAMESPACE,
        log_to_driver=False,
        logging_level=logging.ERROR,
        _node_ip_address=record.driver_ip,
    )


def _order(node: dict[str, Any]) -> tuple[bool, str, str]:
    return _HEAD_RESOURCE not in node["Resources"], node["NodeName"], node["NodeID"]


def _named(listed: list[dict[str, Any]]) -> Iterator[ClusterNode]:
    """Give every node a host name that no other one has, and its role."""
    labelled = any(ROLE_LABEL in node["Labels"] for node in listed)
    taken: set[str] = set()
    for node in listed:
        wanted = node["Labels"].get(HOST_LABEL) or _own_name(node)
        host, count = wanted, 1
        while host in taken:
            count += 1
            host = f"{wanted}-{count}"
        taken.add(host)
        is_head = _HEAD_RESOURCE in node["Resources"]
        contributes = node["Labels"].get(ROLE_LABEL) == WORKER if labelled else not is_head
        yield ClusterNode(
            node_id=node["NodeID"],
            host=host,
            ip=node["NodeManagerAddress"],
            role=WORKER if contributes else MASTER,
            object_store_bytes=int(node["Resources"].get("object_store_memory", 0)),
            is_head=is_head,
        )


def _own_name(node: dict[str, Any]) -> str:
    """Ray names a node by its address unless told otherwise; its hostname says more."""
    name, hostname = str(node["NodeName"]), str(node["NodeManagerHostname"])
    return hostname if name == node["NodeManagerAddress"] and hostname else name


def _answer(timeout_s: float, what: str, function: Callable[[], T]) -> T:
    try:
        return _within(timeout_s, function)
    except TimeoutError:
        raise Unreachable(f"{what} did not come within {timeout_s:g} s: the cluster's head may be gone") from None
    except (ray.exceptions.RayError, ConnectionError) as error:
        raise Unreachable(f"{what} failed ({_reason(error)})") from error


def _within(timeout_s: float, function: Callable[[], T]) -> T:
    """Run `function` in a thread; TimeoutError after `timeout_s`, whatever Ray is waiting for in it."""
    future: concurrent.futures.Future[T] = concurrent.futures.Future()

    def run() -> None:
        try:
            future.set_result(function())
        except BaseException as error:  # noqa: BLE001 - Ray raises SystemExit when an attempt to connect fails
            future.set_exception(error)

    threading.Thread(target=run, name="gridfs-ray", daemon=True).start()
    return future.result(timeout_s)


def _reason(error: BaseException) -> str:
    """The first line of an error: what Ray appends is for its developers."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".:") if lines else type(error).__name__


def _advice(record: ClusterRecord) -> str:
    if record.headless:
        return "its master has died, and the files with it; run gridfs down, then gridfs up"
    if record.local:
        return "its master hangs; try again, or run gridfs down --force and gridfs up, which loses the files"
    return "check the address and that this machine is a node of that cluster"
