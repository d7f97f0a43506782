"""Bringing a filesystem up over a Ray cluster, and taking it down again: the inode table, then the scheduler."""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from gridfs import cluster, config
from gridfs.cli import mounts
from gridfs.cluster import ClusterNode, ClusterRecord, NodePlan
from gridfs.errors import GridfsError
from gridfs.meta.server import InodeTable
from gridfs.types import Endpoints, PlacementMap

log = logging.getLogger(__name__)

MASTER_HOST = "master"
SCHEDULER_TIMEOUT_S = 60.0
PLACEMENT_TIMEOUT_S = 60.0
_POLL_S = 0.1
_LOOPBACK = "127.77.0.{}"
"""Addresses of local nodes. Ray replaces 127.0.0.1 by the machine's own address, but leaves the rest of 127/8 alone."""

Say = Callable[[str], None]
"""Takes one short line about what is being done now."""


def local_plans(workers: int, memory_bytes: int) -> list[NodePlan]:
    """A master and so many workers on loopback addresses. Raises GridfsError if this machine has too little memory."""
    check_memory(workers, memory_bytes)
    master = NodePlan(MASTER_HOST, cluster.MASTER, _LOOPBACK.format(1), 0)
    others = (
        NodePlan(f"worker{number}", cluster.WORKER, _LOOPBACK.format(number + 1), memory_bytes)
        for number in range(1, workers + 1)
    )
    return [master, *others]


def check_memory(workers: int, memory_bytes: int) -> None:
    """Raise GridfsError if this machine has not enough free memory for so many workers."""
    needed_bytes, free_bytes = workers * cluster.store_bytes(memory_bytes), available_bytes()
    if needed_bytes > free_bytes:
        raise GridfsError(
            f"{workers} workers of {config.format_size(memory_bytes)} need {config.format_size(needed_bytes)} of "
            f"memory and {config.format_size(free_bytes)} is free: choose less with --workers or --memory"
        )


def available_bytes() -> int:
    """Memory that this machine could still give away."""
    for line in Path("/proc/meminfo").read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * config.KIB
    return 0


def bring_up(plans: Sequence[NodePlan], say: Say) -> Endpoints:
    """Start local nodes and a filesystem over them. This process stays connected to Ray.

    Raises GridfsError with the reason; after any failure nothing is left but logs.
    """
    cluster.check_able()
    with _alone():
        _check_down()
        say(f"starting {len(plans)} Ray nodes")
        record = cluster.start_nodes(plans)
        with _undone_on_failure(record):
            return _assemble(record, say)


def join(address: str, memory_bytes: int | None, say: Say) -> Endpoints:
    """Bring a filesystem up over a Ray cluster that exists, as `bring_up` does; its nodes are left alone."""
    with _alone():
        _check_down()
        say(f"connecting to the Ray cluster at {address}")
        record = ClusterRecord(address=address, memory_bytes=memory_bytes, token_path=os.environ.get("RAY_AUTH_TOKEN_PATH"))
        cluster.connect(record)
        if cluster.find(cluster.INODE_TABLE) is not None:
            raise GridfsError(f"the Ray cluster at {address} has a filesystem already: use it as the user who brought it up")
        _check_workers(cluster.nodes(), memory_bytes)
        record.save()
        with _undone_on_failure(record):
            return _assemble(record, say)


def visit(address: str) -> None:
    """Let this home use the filesystem that somebody has brought up over a Ray cluster; nothing if it does already.

    Raises GridfsError when there is none, or this home has another one.
    """
    with _alone():
        if cluster.record_path().exists():
            present = ClusterRecord.load().address
            if present != address:
                raise GridfsError(f"this home uses the filesystem at {present}: run gridfs down first, or set GRIDFS_HOME")
            return
        record = ClusterRecord(address=address, guest=True, token_path=os.environ.get("RAY_AUTH_TOKEN_PATH"))
        cluster.connect(record)
        if cluster.find(cluster.INODE_TABLE) is None:
            raise GridfsError(f"the Ray cluster at {address} has no filesystem: run gridfs up --address {address} on its head")
        cluster.disconnect()
        record.save()


def _check_workers(nodes: Sequence[ClusterNode], memory_bytes: int | None) -> None:
    """Raise GridfsError unless there are workers, with object stores for so much memory (None: whatever they have)."""
    workers = [node for node in nodes if node.role == cluster.WORKER]
    if not workers:
        raise GridfsError("no node but the head is in that cluster, and the head holds no chunks: add workers with ray start")
    least = min(workers, key=lambda node: node.object_store_bytes)
    if memory_bytes is not None and cluster.store_bytes(memory_bytes) > least.object_store_bytes:
        usable = config.format_size(least.object_store_bytes * memory_bytes // cluster.store_bytes(memory_bytes))
        raise GridfsError(
            f"the object store of {least.host} has room for {usable} of chunks: choose that or less with --memory"
        )


def take_down(say: Say, *, force: bool) -> None:
    """End what `bring_up` or `join` started, mounts that are dead included, and forget it.

    Raises GridfsError if something is still mounted, unless `force` is given.
    """
    ClusterRecord.load()  # before a home is made for the lock
    with _alone():
        record = ClusterRecord.load()
        known = mounts.known()
        alive = [mount.mountpoint for mount in known if mount.state == "alive"]
        if alive and not force:
            raise GridfsError(
                f"still mounted at {', '.join(alive)}: run gridfs umount {alive[0]} first, or gridfs down --force, "
                "which loses what is not written yet"
            )
        for mount in known:
            say(f"taking the mount at {mount.mountpoint} away")
            mounts.abandon(mount)
        say("leaving the filesystem" if record.guest else "ending the filesystem")
        _undo(record, force=force)


def _assemble(record: ClusterRecord, say: Say) -> Endpoints:
    say("starting the inode table")
    nodes = cluster.nodes()
    endpoints = _create_inode_table(nodes[0], Path(config.home() / "meta"))
    say("starting the scheduler")
    _run_scheduler()
    expected = {node.host for node in nodes if node.role == cluster.WORKER}
    say(f"waiting for {len(expected)} chunk servers")
    _await_chunk_servers(expected)
    return endpoints


def _create_inode_table(head: ClusterNode, store: Path) -> Endpoints:
    """The inode table on the head, with a secret and a store of its own."""
    if store.exists():  # of an earlier filesystem, whose chunks ended with its nodes
        earlier = store.with_name("meta.old")
        shutil.rmtree(earlier, ignore_errors=True)
        store.rename(earlier)
    store.mkdir(mode=0o700)
    secret = secrets.token_bytes(config.SECRET_BYTES)
    config.write_private(secret_path(), secret)
    table = cluster.create(
        InodeTable, cluster.INODE_TABLE, head.node_id, str(store), head.ip, secret, max_restarts=-1, max_concurrency=8
    )
    host, port = cluster.call(table, "endpoint", timeout_s=30)
    log.info("the inode table listens at %s:%d", host, port)
    return cluster.resolve()


def secret_path() -> Path:
    """Where the filesystem's secret lies, readable by its owner only."""
    return config.home() / "secret"


def _run_scheduler() -> None:
    """Run the program that puts the scheduler's actor into the cluster; it ends as soon as that runs."""
    path = cluster.log_dir() / "scheduler.log"
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with path.open("wb") as output:
        try:
            done = subprocess.run(
                [sys.executable, "-P", "-m", "scheduler"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                timeout=SCHEDULER_TIMEOUT_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise GridfsError(f"the scheduler did not start within {SCHEDULER_TIMEOUT_S:.0f} s: see {path}") from None
    if done.returncode:
        last = path.read_text(errors="replace").strip().splitlines()[-1:] or ["it left no word"]
        raise GridfsError(f"the scheduler did not start: {last[0][:300]} (whole log: {path})")


def _await_chunk_servers(expected: set[str]) -> None:
    deadline = time.monotonic() + PLACEMENT_TIMEOUT_S
    table: Any = cluster.find(cluster.INODE_TABLE)
    while True:
        placement = PlacementMap.unpack(cluster.call(table, "statistics")["placement"])
        missing = expected - {node.host for node in placement.nodes if node.alive}
        if not missing:
            return
        if time.monotonic() > deadline:
            raise GridfsError(
                f"no chunk server came up on {', '.join(sorted(missing))} within {PLACEMENT_TIMEOUT_S:.0f} s: "
                f"see the logs in {cluster.log_dir()}"
            )
        time.sleep(_POLL_S)


def _undo(record: ClusterRecord, *, force: bool) -> None:
    if not record.local and not record.guest:
        try:
            _destroy_actors(record)
        except cluster.Unreachable as error:
            if not force:
                raise GridfsError(f"{error}; gridfs down --force forgets that filesystem without it") from error
    cluster.disconnect()
    cluster.stop_nodes(record)
    for path in (secret_path(), cluster.record_path(), *(config.home() / "mounts").glob("*")):
        path.unlink(missing_ok=True)
    for path in config.home().glob(f"{config.JOBS_STORE}*"):  # and what SQLite has beside it
        path.unlink(missing_ok=True)
    for folder in ("meta", "meta.old"):
        shutil.rmtree(config.home() / folder, ignore_errors=True)


def _destroy_actors(record: ClusterRecord) -> None:
    """End our actors and nothing else, the scheduler first: it would make chunk servers again."""
    cluster.connect(record)
    for name in sorted(cluster.names(), key=lambda name: name != cluster.SCHEDULER):
        log.info("ending %s", name)
        cluster.destroy(name)


@contextmanager
def _undone_on_failure(record: ClusterRecord) -> Iterator[None]:
    try:
        yield
    except BaseException:
        with suppress(cluster.Unreachable):
            _undo(record, force=True)
        raise


@contextmanager
def _alone() -> Iterator[None]:
    """Only one process at a time brings this home's filesystem up or down."""
    try:
        config.home().mkdir(mode=0o700, parents=True, exist_ok=True)
    except PermissionError:
        raise
    except OSError as error:
        raise GridfsError(f"{config.home()} cannot be made ({error.strerror}): set GRIDFS_HOME to another folder") from None
    with (config.home() / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise GridfsError("another gridfs up or down is under way: wait until it has ended") from None
        yield


def _check_down() -> None:
    if not cluster.record_path().exists():
        return
    record = ClusterRecord.load()
    if record.headless or (record.local and not record.nodes):
        raise GridfsError("the master of an earlier filesystem has died: run gridfs down to clean up, then gridfs up")
    raise GridfsError("already up: gridfs status shows it, gridfs down ends it")
