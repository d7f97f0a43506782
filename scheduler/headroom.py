"""Which node may take a task that needs memory: the master while it has some to spare, else the roomiest worker. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gridfs.config import GIB, MIB, format_size
from gridfs.errors import GridfsError
from gridfs.types import NodeSample
from scheduler.pressure import Level, level, score

MASTER_USE_MAX = 0.8
"""Above this share of memory in use the master gets no task."""
MASTER_AVAILABLE_MIN_BYTES = 2 * GIB
TASK_BYTES = 100 * MIB
"""What a task takes before it does anything: a Ray worker process. So a thousand small tasks cannot fill a node either."""


@dataclass(frozen=True, slots=True)
class Promise:
    """Memory that a task on a node may take, and what was available there when it was sent."""

    size_bytes: int
    available_bytes: int


@dataclass(frozen=True, slots=True)
class NodeView:
    """A node that could take a task: its memory now, and what earlier tasks may still take of it."""

    host: str
    node_id: str
    is_master: bool
    sample: NodeSample
    promised_bytes: int = 0

    @property
    def headroom_bytes(self) -> int:
        """What a task may take."""
        return max(0, self.sample.available_bytes - self.promised_bytes)

    def sample_with(self, size_bytes: int) -> NodeSample:
        """The node as it would be with `size_bytes` more in use."""
        return NodeSample(self.sample.total_bytes, max(0, self.headroom_bytes - size_bytes), self.sample.stalled_share)


@dataclass(frozen=True, slots=True)
class Decision:
    """Where a task runs, and why there."""

    host: str
    node_id: str
    headroom_bytes: int
    """What the node could give when this was decided."""
    reason: str

    def __str__(self) -> str:
        return f"on {self.host}: {self.reason}"


def decide(views: Sequence[NodeView], size_bytes: int) -> Decision:
    """The node for a task that takes `size_bytes`. Raises GridfsError that says of every node why it cannot hold it.

    The master, if MASTER_USE_MAX of it or less is in use then, it has MASTER_AVAILABLE_MIN_BYTES now, and the task takes
    less than that; else the worker with the most headroom, of those that would not be hot with it.
    """
    obstacles = {view.host: _obstacle(view, size_bytes) for view in views}
    able = [view for view in views if not obstacles[view.host]]
    masters = [view for view in able if view.is_master]
    if masters:
        return _choose(masters[0], "it fits on the master", size_bytes)
    if able:
        best = max(able, key=lambda view: view.headroom_bytes)
        refusals = (f"{view.host} {obstacles[view.host]}" for view in views if view.is_master)
        return _choose(
            best, f"the worker with the most headroom, since {'; '.join(refusals) or 'no master was asked'}", size_bytes
        )
    reasons = "; ".join(f"{host} {obstacle}" for host, obstacle in obstacles.items()) or "no other node answers"
    raise GridfsError(f"no node can hold a task of {format_size(size_bytes)}: {reasons}")


def promised(promises: Sequence[Promise], available_bytes: int) -> int:
    """How much of a node's promises is still to come, the eldest first in `promises`, when so much is available.

    What has gone since the eldest task was sent counts as taken by tasks. If others took it, the sample shows that anyhow.
    """
    if not promises:
        return 0
    gone_bytes = max(0, promises[0].available_bytes - available_bytes)
    return max(0, sum(promise.size_bytes for promise in promises) - gone_bytes)


def _choose(view: NodeView, why: str, size_bytes: int) -> Decision:
    told = f"{format_size(view.headroom_bytes)} of {format_size(view.sample.total_bytes)} free for {format_size(size_bytes)}"
    return Decision(view.host, view.node_id, view.headroom_bytes, f"{why} ({told})")


def _obstacle(view: NodeView, size_bytes: int) -> str:
    """Why the node cannot take the task, as the rest of a sentence about it; empty if it can."""
    after = view.sample_with(size_bytes)
    if size_bytes >= view.headroom_bytes:
        return f"has {format_size(view.headroom_bytes)} available"
    if not view.is_master:
        return f"would be {after.used_share:.0%} in use" if level(score(after), Level.CALM) is Level.HOT else ""
    if view.headroom_bytes < MASTER_AVAILABLE_MIN_BYTES:
        return f"has {format_size(view.headroom_bytes)} available, less than {format_size(MASTER_AVAILABLE_MIN_BYTES)}"
    if after.used_share > MASTER_USE_MAX:
        return f"would be {after.used_share:.0%} in use, more than {MASTER_USE_MAX:.0%}"
    return ""
