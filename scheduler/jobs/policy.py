"""Where a job runs, and why. Pure.

Bytes are not moved if that can be helped: a function that splits runs on every node over what that has, and anything else on
the node that has most, unless that is short of memory.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gridfs.config import MIB, format_size
from gridfs.errors import GridfsError
from gridfs.offload.job import Input
from scheduler.pressure import Level

Run = tuple[int, int]
"""A range of adjacent chunk indices, the end not included."""
Mode = Literal["map", "whole"]

CHEAP_BYTES = 16 * MIB
"""To move so much more than the best node would have to is cheaper than to wait for it."""


class BytesLostError(GridfsError):
    """A chunk of the input is on no node any more."""


class NoNodeError(GridfsError):
    """No node can ever do what the job needs."""


@dataclass(frozen=True, slots=True)
class NodeView:
    """A worker as jobs see it."""

    host: str
    server: str
    """Identity of its chunk server."""
    level: Level
    available_bytes: int
    total_bytes: int
    """Of its memory."""
    answers: bool = True
    """False while its chunk server is silent: it may be back any moment."""


@dataclass(frozen=True, slots=True)
class Part:
    """What one node does of a job."""

    host: str
    server: str
    runs: tuple[Run, ...]


@dataclass(frozen=True, slots=True)
class Plan:
    """Where a job runs; the first part is that of the node with most of the bytes, where results come together."""

    mode: Mode
    parts: tuple[Part, ...]
    decision: str

    @property
    def hosts(self) -> tuple[str, ...]:
        """The nodes that take part."""
        return tuple(part.host for part in self.parts)


@dataclass(frozen=True, slots=True)
class Wait:
    """It cannot run yet: these hosts are wanted, and are to be kept free for it."""

    hosts: frozenset[str]


def refuse_lost(source: Input, servers: Collection[str]) -> None:
    """Raise BytesLostError if a chunk is on none of these servers."""
    for index, having in source.chunks.items():
        if not any(server in servers for server in having):
            raise BytesLostError(f"the bytes are lost: chunk {index} was on {' and '.join(having)} only")


def decide(source: Input, memory_bytes: int, nodes: Sequence[NodeView], busy: Collection[str], *, splits: bool) -> Plan | Wait:
    """Where the job is to run, none of `busy` being taken. `splits`: each node may do its own part of it.

    Raises BytesLostError, and NoNodeError, with a sentence each.
    """
    if not nodes:
        return Wait(frozenset())
    _refuse_giants(memory_bytes, nodes)
    living = {node.server: node for node in nodes if node.answers}
    away = {node.server: node.host for node in nodes if not node.answers}
    silent = _silent_hosts(source, living, away)
    if silent or not living:
        return Wait(frozenset(silent))
    if splits:
        split = _split(source, living)
        if len(split) > 1:
            hosts = frozenset(living[server].host for server in split)
            return Wait(hosts) if hosts & set(busy) else _split_plan(source, living, split)
    return _whole(source, memory_bytes, living, busy)


def _refuse_giants(memory_bytes: int, nodes: Iterable[NodeView]) -> None:
    largest = max(nodes, key=lambda node: node.total_bytes)
    if memory_bytes > largest.total_bytes:
        raise NoNodeError(
            f"it asks for {format_size(memory_bytes)} of memory, and the largest node, {largest.host}, "
            f"has {format_size(largest.total_bytes)}"
        )


def _silent_hosts(source: Input, living: Collection[str], away: dict[str, str]) -> set[str]:
    """The hosts that are silent just now and have chunks that no other has. Raises BytesLostError."""
    refuse_lost(source, {*living, *away})
    missing = (servers for servers in source.chunks.values() if not any(server in living for server in servers))
    return {away[server] for servers in missing for server in servers if server in away}


# -- all at once, each its own part ----------------------------------------------------------------------------------


def _split(source: Input, living: dict[str, NodeView]) -> dict[str, list[Run]]:
    """Server -> its runs. Each chunk goes to one that has it, holes to whoever has what is before them.

    Where several have a chunk, it goes on with the run while that node has not got more than its share, so that runs are long.
    A node that is hot gets only what no other has.
    """
    assigned: Counter[str] = Counter()
    runs: dict[str, list[Run]] = {}
    holders = {server for servers in source.chunks.values() for server in servers if server in living}
    share = source.size // max(1, len(holders))
    previous = ""
    for index in range(source.chunk_count):
        servers = [server for server in source.chunks.get(index, ()) if server in living]
        cool = [server for server in servers if living[server].level is not Level.HOT] or servers
        if not cool:
            chosen = previous or next(iter(living))
        elif previous in cool and (len(cool) == 1 or assigned[previous] < share):
            chosen = previous
        else:
            chosen = min(cool, key=lambda server: (assigned[server], server))
        assigned[chosen] += source.length(index)
        own = runs.setdefault(chosen, [])
        if chosen == previous and own:
            own[-1] = (own[-1][0], index + 1)
        else:
            own.append((index, index + 1))
        previous = chosen
    return runs


def _split_plan(source: Input, living: dict[str, NodeView], split: dict[str, list[Run]]) -> Plan:
    sizes = {server: sum(source.length(i) for run in runs for i in range(*run)) for server, runs in split.items()}
    order = sorted(split, key=lambda server: (-sizes[server], server))
    parts = tuple(Part(living[server].host, server, tuple(split[server])) for server in order)
    shares = ", ".join(f"{living[server].host} {format_size(sizes[server])}" for server in order)
    decision = (
        f"each node works on what it holds ({shares}), and only partial results cross the network; "
        f"moving the bytes to one reader instead would have cost {format_size(source.size)}"
    )
    return Plan("map", parts, decision)


# -- all of it on one node -------------------------------------------------------------------------------------------


def _whole(source: Input, memory_bytes: int, living: dict[str, NodeView], busy: Collection[str]) -> Plan | Wait:
    """On the node that has most, of those with room for it; of the others if none has."""
    held = _held_bytes(source, living)
    roomy = [node for node in living.values() if node.level is not Level.HOT and node.available_bytes >= memory_bytes]
    able = roomy or [node for node in living.values() if node.total_bytes >= memory_bytes]
    if not able:
        return Wait(frozenset())
    ranked = sorted(able, key=lambda node: (-held[node.server], node.host in busy, -node.available_bytes, node.host))
    best = ranked[0]
    near = (node for node in ranked if held[best.server] - held[node.server] <= CHEAP_BYTES and node.host not in busy)
    chosen = next(near, None)
    if chosen is None:
        return Wait(frozenset({best.host}))
    part = Part(chosen.host, chosen.server, ((0, source.chunk_count),))
    return Plan("whole", (part,), _why(source, chosen, held, living, is_roomy=bool(roomy)))


def _held_bytes(source: Input, living: Iterable[str]) -> Counter[str]:
    held = Counter(dict.fromkeys(living, 0))
    for index, servers in source.chunks.items():
        for server in servers:
            if server in held:
                held[server] += source.length(index)
    return held


def _why(source: Input, chosen: NodeView, held: Counter[str], living: dict[str, NodeView], *, is_roomy: bool) -> str:
    stored = sum(source.length(index) for index in source.chunks)
    missing = stored - held[chosen.server]
    most = max(held, key=lambda server: (held[server], server == chosen.server))
    if held[most] == held[chosen.server]:
        why = "no node has more"
    elif chosen.level is Level.HOT or not is_roomy:
        why = f"{living[most].host} has more, and cannot run it"
    else:
        why = f"{living[most].host} has {format_size(held[most])}, and is busy or short of memory"
    short = "" if is_roomy else "; every node is short of memory"
    return (
        f"{chosen.host} holds {format_size(held[chosen.server])} of {format_size(stored)} ({why}), "
        f"so {format_size(missing)} cross the network{short}; "
        f"moving the bytes to the reader instead would have cost {format_size(source.size)}"
    )
