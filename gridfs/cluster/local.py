"""Local Ray nodes: each in a PID and mount namespace of its own, optionally in a network namespace and a memory group.

A node's first process is the PID 1 of its namespace, so ending it ends all of the node, whatever Ray has started in it.
`/dev/shm` is a file system of the node's own, so its object store is freed with it. Nothing of a node outlives it
except its log; that is why ending needs no farewell: SIGKILL is the way (`ray start` takes ten seconds for SIGTERM).
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from gridfs import config
from gridfs.cluster import actors, cgroup, processes, record
from gridfs.cluster.processes import Process
from gridfs.cluster.record import MASTER, WORKER, ClusterRecord, LocalNode, NodePlan
from gridfs.errors import GridfsError

START_TIMEOUT_S = 40.0
_STOP_TIMEOUT_S = 10.0
_POLL_S = 0.05
_PORT_FIRST, _PORT_LAST = 6379, 6479
_TEMP_ROOT = "/tmp"
"""Not $TMPDIR: the paths of Ray's sockets have to stay below 107 characters."""
_TOKEN_BYTES = 32
_MASTER_STORE_BYTES = 128 * config.MIB
_STORE_MIN_BYTES = 100 * config.MIB
_SHM_SPARE_BYTES = 64 * config.MIB
_NEEDED = ("unshare", "nsenter", "mount", "sh")

_JOIN_GROUP = 'echo $$ > "$0" && exec "$@"'
# A node would otherwise keep a mount of the filesystem busy that existed when it was started.
_OWN_MOUNTS = 'umount -l -a -t fuse.gridfs; mount -t tmpfs -o "size=$0,mode=1777" gridfs /dev/shm && exec "$@"'


def store_bytes(memory_bytes: int) -> int:
    """Size of the object store of a node that may hold `memory_bytes`: chunks fill at most 80 % of it."""
    return max(memory_bytes * 5 // 4, _STORE_MIN_BYTES) if memory_bytes else _MASTER_STORE_BYTES


def start_nodes(plans: Sequence[NodePlan]) -> ClusterRecord:
    """Start a cluster of local nodes, the master first in `plans`, and connect to it; returns the record, also saved.

    If the master has a network namespace, this process has to be in it already, or it could not connect.
    Raises GridfsError with the reason if a node does not come up in time. After any failure nothing is left behind.
    """
    check_able()
    master = plans[0]
    cluster = ClusterRecord(
        address=f"{master.ip}:{_free_port()}",
        memory_bytes=max(plan.memory_bytes for plan in plans),
        contribute_master=master.memory_bytes > 0,
        token_path=str(record.token_path()),
        temp_dir=tempfile.mkdtemp(prefix="gridfs-", dir=_TEMP_ROOT),
        driver_ip=master.ip,
    )
    try:
        cluster.save()
        config.write_private(record.token_path(), secrets.token_hex(_TOKEN_BYTES).encode())
        return _start(cluster, plans)
    except BaseException:
        stop_nodes(cluster)
        raise


def stop_nodes(cluster: ClusterRecord) -> None:
    """End all local nodes of a cluster and remove what they leave; does what is left to do, however often it is called.

    Raises GridfsError if a process survives SIGKILL for ten seconds.
    """
    if cluster.temp_dir is None:
        return
    with suppress(GridfsError):  # a start that was cut short has saved more nodes than its caller knows
        saved = ClusterRecord.load()
        cluster = saved if saved.temp_dir == cluster.temp_dir else cluster
    members = [member for node in cluster.nodes for member in _members(node)]
    processes.kill(members)
    strays = processes.mentioning(f"--temp-dir={cluster.temp_dir}/")
    processes.kill(strays)
    left = processes.wait_gone([*members, *strays], _STOP_TIMEOUT_S)
    if left:
        pids = ", ".join(str(process.pid) for process in left)
        raise GridfsError(f"these processes do not end: {pids}; look into {record.log_dir()}, then run gridfs down again")
    cgroup.remove(cluster.cluster)
    shutil.rmtree(cluster.temp_dir or "", ignore_errors=True)
    record.token_path().unlink(missing_ok=True)
    record.record_path().unlink(missing_ok=True)


def kill_node(node: LocalNode) -> None:
    """End all processes of one node at once, as a power cut would; the record keeps the node."""
    members = _members(node)
    processes.kill(reversed(members))
    processes.wait_gone(members, _STOP_TIMEOUT_S)


def node_command(node: LocalNode, command: Sequence[str]) -> list[str]:
    """`command` as a process of that host: in its network namespace and its memory group."""
    return [*_joining(node.cgroup), *_entering(node.network_namespace), *command]


def _start(cluster: ClusterRecord, plans: Sequence[NodePlan]) -> ClusterRecord:
    deadline = time.monotonic() + START_TIMEOUT_S
    cpus = max(1, (os.cpu_count() or 1) // len(plans))  # they share one machine, and Ray starts a process for each
    master = _spawn(cluster, plans[0], cpus)
    cluster = cluster.with_nodes(master)
    cluster.save()
    _await_store(cluster, master, deadline)
    for plan in plans[1:]:
        cluster = cluster.with_nodes(_spawn(cluster, plan, cpus))
        cluster.save()
    _connect(cluster, deadline)
    _await_nodes(cluster, deadline)
    return cluster


def _spawn(cluster: ClusterRecord, plan: NodePlan, cpus: int) -> LocalNode:
    """Start the processes of one node, detached from this one; its log is home()/log/node-HOST.log."""
    assert cluster.temp_dir is not None
    group, note = None, ""
    if plan.memory_limit_bytes is not None:
        group, note = cgroup.create(cluster.cluster, plan.host, plan.memory_limit_bytes)
    shm_bytes = store_bytes(plan.memory_bytes) + _SHM_SPARE_BYTES
    command = [
        *_joining(str(group) if group else None),
        *_entering(plan.network_namespace),
        *("unshare", "--pid", "--fork", "--mount-proc", "--propagation=slave", "--kill-child=KILL"),
        *("sh", "-c", _OWN_MOUNTS, str(shm_bytes)),
        *ray_start_command(cluster, plan, cpus),
    ]
    environment = {
        **os.environ,
        **actors.ray_environment(cluster),
        "RAY_gcs_storage": "rocksdb",
        "RAY_gcs_storage_path": f"{cluster.temp_dir}/gcs",
    }
    log = _node_log(plan.host)
    log.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    executable = shutil.which(command[0]) or command[0]
    files = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_OPEN, 1, str(log), os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600),
        (os.POSIX_SPAWN_DUP2, 1, 2),
    ]
    pid = os.posix_spawn(executable, command, environment, file_actions=files, setsid=True)
    process = processes.identify(pid) or Process(pid, 0)
    return LocalNode(
        host=plan.host,
        role=plan.role,
        ip=plan.ip,
        memory_bytes=plan.memory_bytes,
        network_namespace=plan.network_namespace,
        pid=pid,
        started_ticks=process.started_ticks,
        cgroup=str(group) if group else None,
        note=note,
    )


def ray_start_command(cluster: ClusterRecord, plan: NodePlan, cpus: int) -> list[str]:
    """The `ray start` of one node. No monitor of an autoscaler and no log monitor: 80 MiB each, and nobody listens."""
    port = cluster.address.rpartition(":")[2]
    heads = ("--head", f"--port={port}", "--include-dashboard=false", "--no-monitor")
    contributes = WORKER if plan.memory_bytes else MASTER
    return [
        str(Path(sys.executable).with_name("ray")),
        "start",
        *(heads if plan.role == MASTER else (f"--address={cluster.address}",)),
        f"--node-ip-address={plan.ip}",
        f"--node-name={plan.host}",
        f"--labels={actors.HOST_LABEL}={plan.host},{actors.ROLE_LABEL}={contributes}",
        f"--num-cpus={cpus}",
        f"--object-store-memory={store_bytes(plan.memory_bytes)}",
        f"--temp-dir={cluster.temp_dir}/{plan.host}",
        "--min-worker-port=0",
        "--max-worker-port=0",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        "--block",
    ]


def _await_store(cluster: ClusterRecord, master: LocalNode, deadline: float) -> None:
    """Wait until the control store accepts connections: from then on the other nodes can be started."""
    host, _, port = cluster.address.rpartition(":")
    while True:
        with suppress(OSError):
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        _check_alive([master], deadline, f"the control store does not listen at {cluster.address}")
        time.sleep(_POLL_S)


def _connect(cluster: ClusterRecord, deadline: float) -> None:
    try:
        actors.connect(cluster, timeout_s=max(1.0, deadline - time.monotonic()))
    except GridfsError:
        _check_alive(cluster.nodes, deadline, "")
        raise


def _await_nodes(cluster: ClusterRecord, deadline: float) -> None:
    """Wait until Ray lists all of the nodes."""
    while missing := {node.host for node in cluster.nodes} - {node.host for node in actors.nodes()}:
        _check_alive(cluster.nodes, deadline, f"{', '.join(sorted(missing))} did not join the cluster")
        time.sleep(_POLL_S)


def _check_alive(nodes: Sequence[LocalNode], deadline: float, complaint: str) -> None:
    """Raise GridfsError when a node has ended, or, with `complaint`, when it is too late."""
    for node in nodes:
        if not node.alive:
            raise GridfsError(f"{node.host} did not start: {_last_words(node.host)} (whole log: {_node_log(node.host)})")
    if complaint and time.monotonic() > deadline:
        raise GridfsError(f"{complaint} within {START_TIMEOUT_S:.0f} s; see the logs in {record.log_dir()}")


def _last_words(host: str) -> str:
    """The last line of a node's log that says something."""
    try:
        lines = [line.strip() for line in _node_log(host).read_text(errors="replace").splitlines() if line.strip()]
    except OSError:
        lines = []
    return lines[-1][:300] if lines else "it left no word"


def _members(node: LocalNode) -> list[Process]:
    """The outer process of a node, then the first one of its PID namespace."""
    if not node.alive:
        return []
    inner = [process for child in processes.children(node.pid) if (process := processes.identify(child))]
    return [node.process, *inner]


def _joining(cgroup_folder: str | None) -> list[str]:
    return ["sh", "-c", _JOIN_GROUP, f"{cgroup_folder}/cgroup.procs"] if cgroup_folder else []


def _entering(network_namespace: str | None) -> list[str]:
    return ["nsenter", f"--net=/run/netns/{network_namespace}", "--"] if network_namespace else []


def _node_log(host: str) -> Path:
    return record.log_dir() / f"node-{host}.log"


def check_able() -> None:
    """Raise GridfsError unless this process may start local nodes, and finds the programs that this takes."""
    if os.geteuid() != 0:
        raise GridfsError("local nodes run in namespaces of their own, which needs root: run gridfs up as root")
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise GridfsError(f"{', '.join(missing)} not found: install the Debian packages util-linux and mount")


def _free_port() -> int:
    """The first port nobody listens on; a fixed range below the ephemeral ports, so that nobody takes it meanwhile."""
    for port in range(_PORT_FIRST, _PORT_LAST):
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("", port))
            except OSError:
                continue
            return port
    raise GridfsError(f"no free port between {_PORT_FIRST} and {_PORT_LAST}: end another Ray cluster on this machine")
