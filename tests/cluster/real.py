"""A filesystem over real Ray nodes of this machine: a master and two workers, each worker with a memory limit of its own."""

from __future__ import annotations

import os
import stat
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import trio

from gridfs import cluster
from gridfs.chunk.client import ChunkClient
from gridfs.cluster import ClusterRecord, LocalNode, NodePlan
from gridfs.config import GIB, MIB
from gridfs.meta.client import MetaClient
from gridfs.meta.inode import ROOT_INO
from gridfs.types import Address, ChunkServerStatistics, Endpoints, PlacementMap, PlacementNode
from gridfs.vfs.filesystem import Caller, Filesystem

WORKERS = ("worker1", "worker2")
CAPACITY_BYTES = 512 * MIB
LIMIT_BYTES = 3 * GIB
FILE = stat.S_IFREG | 0o644
WAIT_S = 40.0
USER = Caller(0, 0)


def plans() -> list[NodePlan]:
    """The nodes to start, on loopback addresses other than those of `gridfs up`."""
    master = NodePlan("master", cluster.MASTER, "127.78.0.1", 0)
    addresses = {host: f"127.78.0.{number}" for number, host in enumerate(WORKERS, 2)}
    workers = (NodePlan(host, cluster.WORKER, ip, CAPACITY_BYTES, None, LIMIT_BYTES) for host, ip in addresses.items())
    return [master, *workers]


async def until(condition: Callable[[], Any], timeout_s: float = WAIT_S) -> Any:
    """The first true value of `condition`, asked ten times a second in a thread."""
    with trio.fail_after(timeout_s):
        while not (value := await trio.to_thread.run_sync(condition)):
            await trio.sleep(0.1)
        return value


def attempt(ask: Callable[[], Any]) -> Any:
    """What it returns, None while the server does not answer."""
    try:
        return ask()
    except cluster.Unreachable:
        return None


@dataclass(frozen=True)
class Real:
    """The running filesystem; this process is a driver of its Ray cluster."""

    endpoints: Endpoints

    @property
    def record(self) -> ClusterRecord:
        """What is kept about the nodes."""
        return ClusterRecord.load()

    def statistics(self) -> dict[str, Any]:
        """What the inode table says."""
        statistics: dict[str, Any] = cluster.call(cluster.find(cluster.INODE_TABLE), "statistics")
        return statistics

    def table_faults(self) -> list[str]:
        """Broken invariants of the inode table."""
        faults: list[str] = cluster.call(cluster.find(cluster.INODE_TABLE), "check")
        return faults

    def placement(self) -> PlacementMap:
        """The newest map."""
        return PlacementMap.unpack(self.statistics()["placement"])

    def alive(self, host: str) -> PlacementNode | None:
        """The host's chunk server in the newest map, if it answers."""
        return next((node for node in self.placement().nodes if node.host == host and node.alive), None)

    def ready(self, host: str) -> bool:
        """True when the host's chunk server answers, and is the one that the newest map tells of."""
        node, handle = self.alive(host), cluster.find(cluster.chunk_server_name(host))
        return bool(node and handle and node.server == cluster.call(handle, "statistics")["server"])

    def chunk_server(self, host: str) -> ChunkServerStatistics:
        """What a chunk server says of itself."""
        return ChunkServerStatistics.unpack(cluster.call(cluster.find(cluster.chunk_server_name(host)), "statistics"))

    def node(self, host: str) -> LocalNode:
        """The node of that name."""
        return self.record.node(host)

    def actor_process(self, host: str, name: str) -> psutil.Process:
        """The process of an actor of class `name` on that host."""
        processes = self.actor_processes(host, name)
        assert processes, f"no {name} on {host}"
        return processes[0]

    def actor_processes(self, host: str, name: str) -> list[psutil.Process]:
        """The processes of actors of class `name` on that host."""
        return [process for process in self.processes(host) if command_line(process)[:1] == [f"ray::{name}"]]

    def process(self, host: str, pid: int) -> psutil.Process:
        """The process that has this number on its own node."""
        (process,) = (process for process in self.processes(host) if _numbers(process)[1:] == [pid])
        return process

    def processes(self, host: str) -> list[psutil.Process]:
        """All processes of that host."""
        first = psutil.Process(self.node(host).pid)
        return [first, *first.children(recursive=True)]

    def shared_memory_bytes(self, host: str) -> int:
        """What is in the host's own /dev/shm, where Ray keeps objects."""
        told = os.statvfs(Path("/proc", str(self.node(host).pid), "root", "dev", "shm"))
        return (told.f_blocks - told.f_bfree) * told.f_frsize

    @asynccontextmanager
    async def mounted(self, inode_table: Address | None = None, mountpoint: str = "/test") -> AsyncIterator[Filesystem]:
        """A filesystem attached as a mount is. Leaving the context is a crash: nothing is settled.

        `inode_table` says by which way that server is reached, if not directly.
        """
        endpoints = Endpoints(inode_table or self.endpoints.inode_table, self.endpoints.secret)
        async with trio.open_nursery() as nursery:
            meta = MetaClient(endpoints, mountpoint)
            await nursery.start(meta.run)
            chunks = ChunkClient(self.endpoints.secret, lambda: meta.client_identity, lambda: meta.placement, meta.settle)
            await nursery.start(chunks.run)
            filesystem = Filesystem(meta, chunks)
            await nursery.start(filesystem.run)
            yield filesystem
            nursery.cancel_scope.cancel()
        await until(lambda: mountpoint not in [session["mountpoint"] for session in self.statistics()["sessions"]])


def _numbers(process: psutil.Process) -> list[int]:
    """A process's numbers, from this namespace's inwards; none once it has ended."""
    try:
        lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    except OSError:
        return []
    return [int(number) for line in lines if line.startswith("NSpid:") for number in line.split()[1:]]


def command_line(process: psutil.Process) -> list[str]:
    """Its command line; empty once it has ended."""
    try:
        return process.cmdline()
    except psutil.NoSuchProcess:
        return []


async def write_fsynced(filesystem: Filesystem, name: bytes, content: bytes) -> int:
    """Make a file, write it in pieces, fsync and close it; returns its inode number. It is durable, as is all before it."""
    ino = (await filesystem.make(USER, ROOT_INO, name, FILE)).ino
    fh = await filesystem.open(ino, os.O_RDWR)
    try:
        for at in range(0, len(content), MIB):
            await filesystem.data.write(fh, at, content[at : at + MIB])
        await filesystem.data.fsync(fh)
    finally:
        await filesystem.release(fh)
    return ino


async def write_on_every_worker(filesystem: Filesystem, name: bytes, content: bytes) -> None:
    """A file of which each worker has a part: where chunks go follows from the inode's number, so several may be made."""
    for _ in range(20):
        ino = await write_fsynced(filesystem, name, content)
        if set(filesystem.layout(ino)["nodes"]) == set(WORKERS):
            return
        await filesystem.unlink(ROOT_INO, name)
    raise AssertionError(f"the chunks of {name!r} are never on all workers")


async def read_all(filesystem: Filesystem, name: bytes) -> bytes:
    """A file's content."""
    attributes = await filesystem.lookup(ROOT_INO, name)
    filesystem.forget(attributes.ino, 1)
    fh = await filesystem.open(attributes.ino, os.O_RDONLY)
    try:
        return b"".join([bytes(await filesystem.read(fh, at, MIB)) for at in range(0, attributes.size, MIB)])
    finally:
        await filesystem.release(fh)


async def remove_all(filesystem: Filesystem) -> None:
    """Empty the root directory, and wait until no chunk is left."""
    fh = await filesystem.opendir(ROOT_INO)
    names = [name for _, name, _ in filesystem.names(fh, 0) if name not in (b".", b"..")]
    filesystem.releasedir(fh)
    for name in names:
        ino = (await filesystem.lookup(ROOT_INO, name)).ino
        await filesystem.unlink(ROOT_INO, name)
        filesystem.forget(ino, 1 << 30)
    await filesystem.fsync_names()


def mounted_weight(filesystem: Filesystem, host: str) -> float:
    """The host's weight in the map that the mount works by."""
    nodes = filesystem._meta.placement.nodes
    return next((node.weight for node in nodes if node.host == host and node.alive), 0.0)
