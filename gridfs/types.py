"""Plain values that cross rooms: who a node is, how it feels, where chunks go. No behaviour beyond packing.

Everything here is frozen, and packs to and from what msgpack carries, so that it can travel on a stream or through Ray.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple


class ChunkId(NamedTuple):
    """A chunk's name, computed and never stored: bytes [index * chunk_size, (index + 1) * chunk_size) of inode `ino`."""

    ino: int
    index: int  # type: ignore[assignment]  # the word of the field; tuple.index is never wanted here


class Address(NamedTuple):
    """Where a server's stream endpoint listens."""

    host: str
    port: int


@dataclass(frozen=True, slots=True)
class NodeSample:
    """The memory of one node at one moment, the tighter of the machine and the cgroup it runs in."""

    total_bytes: int
    available_bytes: int
    stalled_share: float
    """PSI `some avg10` of memory, 0..1: the share of time in which some task waited for memory."""

    @property
    def used_share(self) -> float:
        """Memory in use, 0..1 of the total; page cache that can be reclaimed does not count as used."""
        return 1 - self.available_bytes / self.total_bytes if self.total_bytes else 1.0


@dataclass(frozen=True, slots=True)
class ChunkServerStatistics:
    """What one chunk server says of itself; sizes in bytes."""

    server: str
    """Identity of this incarnation. A server that is started again holds no chunks, so it gets another identity."""
    host: str
    address: Address
    capacity_bytes: int
    used_bytes: int
    """Length of all chunks, open and sealed."""
    granted_bytes: int
    """Promised to clients and not yet written."""
    free_bytes: int
    """What it would grant now: its capacity less used and granted, bounded by the node's real free memory."""
    open_bytes: int
    """Memory of the buffers of chunks that are being written."""
    chunks: int
    sealed_chunks: int
    sample: NodeSample

    @staticmethod
    def unpack(packed: dict[str, Any]) -> ChunkServerStatistics:
        """The inverse of `dataclasses.asdict`."""
        sample, address = NodeSample(**packed["sample"]), Address(*packed["address"])
        return ChunkServerStatistics(**{**packed, "sample": sample, "address": address})


@dataclass(frozen=True, slots=True)
class PlacementNode:
    """One chunk server as a client sees it. `weight` is its share of new chunks, 0 when it takes none."""

    server: str
    host: str
    address: Address
    weight: float
    capacity_bytes: int
    used_bytes: int
    free_bytes: int
    """As in ChunkServerStatistics."""
    chunks: int
    level: str
    """calm, warm, hot; or lost, when the server no longer answers."""

    @property
    def alive(self) -> bool:
        """False once the server is lost: its chunks are gone with it."""
        return self.level != "lost"


@dataclass(frozen=True, slots=True)
class PlacementMap:
    """What the scheduler publishes once a cycle; a client picks nodes from the newest one it has."""

    epoch: int
    nodes: tuple[PlacementNode, ...]
    jobs: Address | None = None
    """Where the scheduler takes jobs; None while it takes none."""

    def pack(self) -> dict[str, Any]:
        """The map as plain dicts and lists."""
        return asdict(self)

    @staticmethod
    def unpack(packed: dict[str, Any]) -> PlacementMap:
        """The inverse of `pack`."""
        nodes = (PlacementNode(**{**node, "address": Address(*node["address"])}) for node in packed["nodes"])
        jobs = packed.get("jobs")
        return PlacementMap(packed["epoch"], tuple(nodes), None if jobs is None else Address(*jobs))


NO_PLACEMENT = PlacementMap(0, ())


@dataclass(frozen=True, slots=True)
class Endpoints:
    """All that a mount needs to reach its filesystem: resolved through Ray once, handed over in a 0600 file."""

    inode_table: Address
    secret: bytes
