"""What is kept about the cluster between commands: home()/cluster.json, written before anything is started.

It is enough to end all that was started, even when the start was cut short.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from gridfs import config
from gridfs.cluster.processes import Process
from gridfs.errors import GridfsError

MASTER, WORKER = "master", "worker"

RAY_ENVIRONMENT: Mapping[str, str] = {
    # The memory monitor kills storage actors first; the adjustments make the kernel do the same.
    "RAY_memory_monitor_refresh_ms": "0",
    "RAY_worker_niceness": "0",
    "RAY_worker_oom_score_adjustment": "0",
    # The filesystem keeps its own accounts: a full node answers ENOSPC instead of filling a disk.
    "RAY_automatic_object_spilling_enabled": "0",
    "RAY_allow_out_of_band_object_ref_serialization": "0",
    "RAY_USAGE_STATS_ENABLED": "0",
    # A dead node is noticed within seconds instead of 15, a hung one instead of 65.
    "RAY_health_check_initial_delay_ms": "1000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "3",
    # Workers outlive a restart of the head.
    "RAY_gcs_rpc_server_reconnect_timeout_s": "600",
}
"""Settings of every node and driver of a cluster that gridfs starts (Ray 2.60)."""


@dataclass(frozen=True, slots=True)
class NodePlan:
    """A local node to be started."""

    host: str
    role: str
    ip: str
    memory_bytes: int
    """How much of the filesystem it may hold; 0 for the master, which holds none."""
    network_namespace: str | None = None
    memory_limit_bytes: int | None = None
    """Limit of the memory control group around the node's processes; None for no group."""


@dataclass(frozen=True, slots=True)
class LocalNode:
    """A local node that was started; its process is the parent of the first process of the node's PID namespace."""

    host: str
    role: str
    ip: str
    memory_bytes: int
    network_namespace: str | None
    pid: int
    started_ticks: int
    cgroup: str | None
    note: str
    """What the node had to go without, as a sentence; empty when nothing."""

    @property
    def process(self) -> Process:
        """The process to end when the node is to end."""
        return Process(self.pid, self.started_ticks)

    @property
    def alive(self) -> bool:
        """True while the node's processes run."""
        return self.process.alive


@dataclass(frozen=True, slots=True)
class ClusterRecord:
    """A Ray cluster that this home uses: one that gridfs started (`temp_dir` is set), or one that existed before."""

    address: str
    """HOST:PORT of Ray's global control store."""
    memory_bytes: int | None = None
    """Capacity of each contributing node; None for 80 % of its object store."""
    contribute_master: bool = False
    token_path: str | None = None
    temp_dir: str | None = None
    driver_ip: str | None = None
    """Address of the node that drivers of this machine attach to; None lets Ray find it."""
    nodes: tuple[LocalNode, ...] = ()
    guest: bool = False
    """True if somebody else brought the filesystem up: this home mounts it, and never ends it."""

    @property
    def local(self) -> bool:
        """True if gridfs started the nodes, and so has to end them."""
        return self.temp_dir is not None

    @property
    def headless(self) -> bool:
        """True if the master is one of our local nodes and has ended: nothing of the filesystem can be saved then."""
        return any(node.role == MASTER and not node.alive for node in self.nodes)

    @property
    def cluster(self) -> str:
        """A name of this cluster alone, for control groups."""
        return Path(self.temp_dir).name if self.temp_dir else ""

    def with_nodes(self, *nodes: LocalNode) -> ClusterRecord:
        """The same record with more nodes."""
        return replace(self, nodes=(*self.nodes, *nodes))

    def node(self, host: str) -> LocalNode:
        """The node of that name. Raises GridfsError if there is none."""
        for node in self.nodes:
            if node.host == host:
                return node
        known = ", ".join(node.host for node in self.nodes) or "none"
        raise GridfsError(f"there is no host {host} in this cluster: it has {known}")

    def save(self) -> None:
        """Write the record to home(), whole or not at all, readable by its owner only."""
        config.write_private(record_path(), json.dumps(asdict(self), indent=2).encode() + b"\n")

    @staticmethod
    def load() -> ClusterRecord:
        """The record in home(). Raises GridfsError if there is none, or if it cannot be read."""
        try:
            packed: dict[str, Any] = json.loads(record_path().read_text())
            nodes = tuple(LocalNode(**node) for node in packed.pop("nodes"))
            return ClusterRecord(**packed, nodes=nodes)
        except FileNotFoundError:
            raise GridfsError(f"no filesystem is up here (there is no {record_path()}): run gridfs up") from None
        except NotADirectoryError:
            raise GridfsError(f"{config.home()} is not a folder: set GRIDFS_HOME to one") from None
        except PermissionError:
            raise GridfsError(f"{record_path()} belongs to another user: run this as that user, or as root") from None
        except (ValueError, TypeError, KeyError) as error:
            raise GridfsError(f"{record_path()} is damaged ({error}): run gridfs down --force, then up") from None


def record_path() -> Path:
    """Where the record lies."""
    return config.home() / "cluster.json"


def token_path() -> Path:
    """Where the token lies that Ray asks of every connection."""
    return config.home() / "token"


def log_dir() -> Path:
    """Where all processes of this home put their logs."""
    return config.home() / "log"


def exists() -> bool:
    """True if there is a record in home(), of a cluster that runs or that was not ended properly."""
    try:
        return record_path().exists()
    except PermissionError:
        return True
