"""A whole filesystem in one trio thread: the real inode table's server, real chunk servers and the real clients, over loopback.

Only Ray's object store is played by a fake, and `tests/cluster` runs the same chunk server over the real one.
"""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import trio

from gridfs.chunk.chunks import Chunks
from gridfs.chunk.client import ChunkClient
from gridfs.chunk.server import ChunkService
from gridfs.config import GIB, MIB
from gridfs.fsck import compare
from gridfs.fsck.report import Report
from gridfs.fsck.run import check
from gridfs.meta.client import MetaClient
from gridfs.meta.service import MetaService
from gridfs.meta.store import Store
from gridfs.meta.thin import ThinClient
from gridfs.stream.endpoint import Endpoint
from gridfs.stream.lookout import looking_out
from gridfs.types import Address, ChunkId, Endpoints, NodeSample, PlacementMap, PlacementNode
from gridfs.vfs.budget import LIMITS, Limits
from gridfs.vfs.filesystem import Caller, Filesystem
from tests.vfs.faults import Proxy

USER = Caller(1000, 1000)


class FakeObject:
    """The ref of an object in this process's memory; a test may change `memory`, as failing hardware would."""

    def __init__(self, content: memoryview) -> None:
        self.memory = bytearray(content)


class FakeObjects:
    """Objects in this process's memory; `full` plays a store without room, and `before_put` one that takes its time.

    `kept` are those whose refs are still held.
    """

    def __init__(self) -> None:
        self.full = False
        self.puts = 0
        self.kept = weakref.WeakSet[FakeObject]()
        self.before_put: Callable[[], object] = lambda: None
        """Called in the thread that puts."""

    def put(self, content: memoryview) -> tuple[FakeObject, memoryview]:
        """See `gridfs.chunk.objects.Objects`."""
        self.before_put()
        if self.full:
            raise MemoryError("as asked")
        self.puts += 1
        ref = FakeObject(content)
        self.kept.add(ref)
        return ref, memoryview(ref.memory).toreadonly()


def corrupt(chunks: Chunks, chunk_id: ChunkId, at: int = 0) -> None:
    """Change the byte `at` of a sealed chunk behind the server's back."""
    chunk = chunks.find(chunk_id)
    assert chunk is not None
    assert chunk.pack is not None
    chunk.ref.memory[chunk.start + at] ^= 0xFF


@dataclass
class Node:
    """One chunk server of the cluster."""

    name: str
    service: ChunkService
    objects: FakeObjects
    endpoint: Endpoint
    proxy: Proxy | None = None
    scope: trio.CancelScope = field(default_factory=trio.CancelScope)

    @property
    def address(self) -> Address:
        """Where the placement map says that it is."""
        return self.proxy.address if self.proxy else self.endpoint.address

    async def serve(self) -> None:
        """Serve until the node is killed."""
        with self.scope:
            async with trio.open_nursery() as nursery:
                if self.proxy:
                    nursery.start_soon(self.proxy.serve)
                nursery.start_soon(self.service.run)
                nursery.start_soon(self.endpoint.serve)


class Cluster:
    """An inode table and some chunk servers, with one mount attached at a time."""

    def __init__(self, directory: Path, nursery: trio.Nursery, nodes: int, capacity_bytes: int, interposed: bool) -> None:
        self.secret = secrets.token_bytes(32)
        self._nursery, self._interposed = nursery, interposed
        self.meta = MetaService(Store(directory / "inodes.sqlite"), self.secret)
        nursery.start_soon(self.meta.run)
        self._meta_endpoint = Endpoint(Address("127.0.0.1", 0), self.secret, self.meta)
        nursery.start_soon(self._meta_endpoint.serve)
        self.nodes = [self._start_node(f"node{number}", capacity_bytes) for number in range(1, nodes + 1)]
        self._epoch = 0
        self.publish()

    def _start_node(self, name: str, capacity_bytes: int) -> Node:
        objects = FakeObjects()
        service = ChunkService(capacity_bytes, objects, self.secret, lambda: NodeSample(64 * GIB, 32 * GIB, 0.0))
        endpoint = Endpoint(Address("127.0.0.1", 0), self.secret, service)
        node = Node(name, service, objects, endpoint, Proxy(endpoint.address) if self._interposed else None)
        self._nursery.start_soon(node.serve)
        return node

    @property
    def inode_table(self) -> Address:
        """Where the inode table's server listens."""
        return self._meta_endpoint.address

    def add_node(self, name: str, capacity_bytes: int) -> None:
        """Another chunk server, which the mounts learn of at once."""
        self.nodes.append(self._start_node(name, capacity_bytes))
        self.publish()

    def kill(self, name: str) -> None:
        """End a chunk server as kill -9 does; the mounts learn of it by themselves, and at `publish`."""
        self.node(name).scope.cancel()

    def node(self, name: str) -> Node:
        """The chunk server of that name."""
        return next(node for node in self.nodes if node.name == name)

    def publish(self, lost: tuple[str, ...] = (), weights: dict[str, float] | None = None) -> None:
        """Publish a placement map, as the scheduler does."""
        self._epoch += 1
        rows = []
        for node in self.nodes:
            level, weight = ("lost", 0.0) if node.name in lost else ("calm", (weights or {}).get(node.name, 1.0))
            capacity, used, free = node.service.capacity_bytes, node.service.chunks.used_bytes, node.service.free_bytes
            address, chunks = node.address, len(node.service.chunks)
            rows.append(PlacementNode(node.name, node.name, address, weight, capacity, used, free, chunks, level))
        self.meta.publish(PlacementMap(self._epoch, tuple(rows)).pack())

    @asynccontextmanager
    async def mounted(self, mountpoint: str = "/mnt", limits: Limits = LIMITS, replicas: int = 1) -> AsyncIterator[Filesystem]:
        """A filesystem attached to the cluster. Leaving the context is a crash: nothing is settled."""
        async with trio.open_nursery() as nursery:
            meta = MetaClient(Endpoints(self._meta_endpoint.address, self.secret), mountpoint)
            await nursery.start(meta.run)
            chunks = ChunkClient(self.secret, lambda: meta.client_identity, lambda: meta.placement, meta.settle)
            await nursery.start(chunks.run)
            filesystem = Filesystem(meta, chunks, time.time_ns, limits, replicas)
            await nursery.start(filesystem.run)
            yield filesystem
            nursery.cancel_scope.cancel()

    @asynccontextmanager
    async def client(self) -> AsyncIterator[ThinClient]:
        """A client without a replica."""
        async with ThinClient.connected(Endpoints(self._meta_endpoint.address, self.secret)) as client:
            yield client

    async def fsck(self, *, mend: bool = False, pause_s: float = 0.3) -> Report:
        """What `gridfs fsck` finds, and mends if told to."""
        async with self.client() as client:
            return await check(client, self.secret, lambda _: None, mend=mend, pause_s=pause_s)

    def look(self) -> compare.Look:
        """What fsck would see of the servers if no mount had anything under way."""
        placement = PlacementMap.unpack(self.meta.placement)
        alive = {node.server for node in placement.nodes if node.alive}
        inventories = {
            node.name: {ChunkId(ino, index): length for ino, index, length in node.service.chunks.inventory()}
            for node in self.nodes
            if node.name in alive
        }
        return compare.Look(inventories, self.meta.engine.table, placement, len(self.meta.sessions))

    def check(self) -> None:
        """Assert every server's invariants, and that they fit: a crash leaves chunks without a use, and takes none away."""
        never = (compare.INVARIANT, compare.MISSING, compare.UNDER_REPLICATED)
        assert [fault for fault in compare.faults(self.look()) if fault.kind in never] == []
        for node in self.nodes:
            assert node.service.chunks.check() == []

    @property
    def used_bytes(self) -> int:
        """What all chunks take."""
        return sum(node.service.chunks.used_bytes for node in self.nodes)


@asynccontextmanager
async def running(
    directory: Path, nodes: int = 2, capacity_bytes: int = 256 * MIB, *, interposed: bool = False
) -> AsyncIterator[Cluster]:
    """A cluster for the length of the context; its invariants are asserted at the end.

    With `interposed` a proxy stands before each chunk server, for `tests.vfs.faults`. The loop has a lookout, as a mount's.
    """
    with looking_out():
        async with trio.open_nursery() as nursery:
            cluster = Cluster(directory, nursery, nodes, capacity_bytes, interposed)
            yield cluster
            cluster.check()
            nursery.cancel_scope.cancel()
