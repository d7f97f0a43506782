"""What to make of the copies that chunk servers have verified. Pure.

A bad copy needs no second look: its server goes on to refuse it. A **missing** one may only be on its way. Let the first
snapshot of the table be T, then come the first walk W, a pause, a second walk W' over what seemed wrong, and the second
snapshot T': T < W < pause < W' < T'. What is placed at a server in T and in T', claimed by the size, with the same size and
times of its inode in both, and in neither walk there, has been placed ever since, so its bytes had the whole pause to arrive. A
chunk that is short of copies was so in T too.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from gridfs.chunk.layout import claimed_bytes
from gridfs.config import format_size
from gridfs.fsck import walk
from gridfs.fsck.compare import LOST, MISSING, UNDER_REPLICATED, Fault, evidence
from gridfs.meta.directory import Servers
from gridfs.meta.inode import Inode
from gridfs.meta.table import Table
from gridfs.meta.xattrs import replicas
from gridfs.types import ChunkId, PlacementMap

BAD, UNREACHABLE = "bad", "unreachable"
"""Kinds of faults beside those of `gridfs.fsck.compare`."""


@dataclass(frozen=True, slots=True)
class Case:
    """A chunk whose copies are not as they should be."""

    chunk_id: ChunkId
    fault: Fault
    holders: Servers
    """As the table has it."""
    unsound: Servers
    """Of the holders, those whose copies are bad or missing."""
    sound: Servers
    """Of the holders, those that live and whose copies may be read; none if there is nothing to mend it from."""
    living: Servers
    """Of the holders, those to keep: the sound ones, and those that just do not answer."""
    wanted: int
    """How many copies there should be."""


def seem_wrong(table: Table, placement: PlacementMap, states: Mapping[ChunkId, Mapping[str, str]]) -> bool:
    """Whether a first walk, and the table before it, give reason to look again."""
    alive = {node.server for node in placement.nodes if node.alive}
    if any(state != walk.OPEN for found in states.values() for state in found.values()):
        return True
    return any(_is_short(table.inodes.get(ino), servers, alive) for ino, _, servers in table.directory)


def _is_short(inode: Inode | None, servers: Servers, alive: set[str]) -> bool:
    """Whether fewer copies are on living servers than should be."""
    return inode is not None and sum(server in alive for server in servers) < _wanted(inode, servers)


def _wanted(inode: Inode, servers: Servers) -> int:
    return max(replicas(inode) or 1, len(servers))


def cases(first: Table, table: Table, placement: PlacementMap, states: Mapping[ChunkId, Mapping[str, str]]) -> Iterator[Case]:
    """Every chunk that is not as it should be, by the newest `table`; `states` are what the walks have found."""
    hosts = {node.server: node.host for node in placement.nodes}
    alive = {node.server for node in placement.nodes if node.alive}
    for ino, index, servers in table.directory:
        inode, chunk_id = table.inodes.get(ino), ChunkId(ino, index)
        found, before = states.get(chunk_id, {}), first.directory.servers(ino, index)
        short = _is_short(inode, servers, alive) and _is_short(first.inodes.get(ino), before, alive)
        if inode is None or not (found or short):
            continue
        if evidence(inode) != evidence(first.inodes.get(ino)) or not claimed_bytes(inode.size, index):
            before = ()
        unsound = tuple(
            server
            for server in servers
            if found.get(server) == walk.BAD or (found.get(server) == walk.MISSING and server in before)
        )
        living = tuple(server for server in servers if server in alive and server not in unsound)
        sound = tuple(server for server in living if found.get(server) not in (walk.SILENT, walk.MISSING))
        bad = [server for server in unsound if found.get(server) == walk.BAD]
        fault = _fault(inode, index, servers, hosts, bad=bad, unsound=unsound, living=living, sound=sound)
        if fault is not None:
            yield Case(chunk_id, fault, servers, unsound, sound, living, _wanted(inode, servers))


def _fault(
    inode: Inode,
    index: int,
    servers: Servers,
    hosts: Mapping[str, str],
    *,
    bad: list[str],
    unsound: Servers,
    living: Servers,
    sound: Servers,
) -> Fault | None:
    claimed, wanted = claimed_bytes(inode.size, index), _wanted(inode, servers)
    where = _listed(bad or unsound, hosts)
    if not living and not unsound:
        kind, text = LOST, f"the chunk server on {_listed(servers, hosts)} is lost with it"
    elif not living and bad:
        kind, text = LOST, f"no copy is left, the one on {where} is bad"
    elif unsound and not sound and living:
        text = f"its copy on {where} is {'bad' if bad else 'missing'}, and {_listed(living, hosts)} does not answer"
        kind = BAD if bad else MISSING
    elif bad:
        kind, text = BAD, f"its copy on {where} is bad"
    elif unsound:
        kind, text = MISSING, f"the chunk server on {where} does not have it, {format_size(claimed)} read as zeros"
    elif len(living) < wanted:
        kind, text = UNDER_REPLICATED, f"it has {len(living)} of {wanted} copies"
    else:
        return None
    server = (bad or unsound or servers)[0]
    return Fault(kind, text, inode.ino, index, server if kind != UNDER_REPLICATED else "", claimed)


def _listed(servers: Iterable[str], hosts: Mapping[str, str]) -> str:
    return ", ".join(hosts.get(server, server) for server in servers)
