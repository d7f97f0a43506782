"""Which nodes get how many of the new chunks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gridfs.types import Address, ChunkServerStatistics, PlacementMap, PlacementNode
from scheduler.pressure import Level, score

LOST = "lost"
_CALMNESS_EXPONENT = 2
"""A node at pressure 0.5 gets a quarter of the chunks that its free memory alone would bring it."""
_WEIGHT_MIN = 1e-6
"""Of a node without room: it is asked last, and not at all only when its owner needs the memory."""


@dataclass(frozen=True, slots=True)
class ServerView:
    """One chunk server as the scheduler sees it: what it last said, its node's level, and whether it still answers."""

    statistics: ChunkServerStatistics
    level: Level
    answers: bool


def plan(servers: Sequence[ServerView], epoch: int, jobs: Address | None = None) -> PlacementMap:
    """The map for the next second; `jobs` is where the scheduler takes jobs.

    A node's weight is what it could really give (its free memory within its capacity, in GiB) times (1 - pressure)^2.
    A hot node has weight 0 and gets no chunk, unless all nodes are hot: then all go by free memory, since the
    alternative is to refuse writes. A server that does not answer stays listed as lost, so that clients know why its
    chunks are gone.
    """
    answering = [server for server in servers if server.answers]
    all_hot = all(server.level is Level.HOT for server in answering)
    return PlacementMap(epoch, tuple(_node(server, all_hot) for server in servers), jobs)


def _node(server: ServerView, all_hot: bool) -> PlacementNode:
    said = server.statistics
    return PlacementNode(
        server=said.server,
        host=said.host,
        address=said.address,
        weight=_weight(server, all_hot),
        capacity_bytes=said.capacity_bytes,
        used_bytes=said.used_bytes,
        free_bytes=said.free_bytes,
        chunks=said.chunks,
        level=server.level.value if server.answers else LOST,
    )


def _weight(server: ServerView, all_hot: bool) -> float:
    if not server.answers or (server.level is Level.HOT and not all_hot):
        return 0.0
    calmness = 1.0 if all_hot else 1 - score(server.statistics.sample)
    return max(server.statistics.free_bytes / 2**30 * calmness**_CALMNESS_EXPONENT, _WEIGHT_MIN)
