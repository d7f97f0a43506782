"""What is wrong between an inode table and the chunk servers. Pure: a look in, faults out.

A look is taken while mounts write, so a single one shows much that is only on its way. The order within a look, and the rule
that a fault has to be found in two looks, word for word, make each kind certain. Let a look be (I, T): first the inventories I
of all living servers, then a snapshot T of the table, and let the second look (I', T') begin some seconds after the first:
I < T < pause < I' < T'. `evidence` is the inode's size and times: equal in T and T', nothing has been truncated, written or
committed in between, since each of those moves a time.

* **orphaned** (in I', not placed in T'): a mount places a chunk before its bytes arrive, and a snapshot calls the write lease
  back, so whatever was placed before I' is in T'. Bytes may also outlive what placed them, as drops follow the table: but with
  equal evidence they had the whole pause for it. An inode that is gone stays gone: numbers are not used again.
* **missing** (placed in T', claimed by the size, not in I'): it was placed in T already, and with equal evidence it has been
  placed ever since, so the bytes had the whole pause to arrive.
* **wrong-length** (longer in I' than the size in T' allows): bytes reach the server before the size reaches the table, but a
  mount commits sizes every second; with equal evidence it said nothing for the whole pause. Cuts follow the table as drops do.
* **lost**, **under-replicated**: the map that came with T' lists the server as lost or not at all, as did the first.
* **unreaped** (an orphan, and no mount): orphans are held by sessions only, and without a name nobody can open them again.
* **invariant**: a snapshot is one transaction, so one look is enough.

What a file that changes all the time would have to show is not judged; it is found when it rests.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from gridfs.chunk.layout import claimed_bytes
from gridfs.config import format_size
from gridfs.meta.directory import Servers
from gridfs.meta.inode import Inode
from gridfs.meta.table import Table
from gridfs.meta.xattrs import replicas
from gridfs.types import ChunkId, PlacementMap

INVARIANT, LOST, MISSING, ORPHANED = "invariant", "lost", "missing", "orphaned"
WRONG_LENGTH, UNDER_REPLICATED, UNREAPED = "wrong-length", "under-replicated", "unreaped"


@dataclass(frozen=True, slots=True)
class Look:
    """What was found at one moment, or nearly so: the inventories are a little older than the table."""

    inventories: Mapping[str, Mapping[ChunkId, int]]
    """Server -> chunk -> length; of living servers only."""
    table: Table
    placement: PlacementMap
    mounts: int

    def host(self, server: str) -> str:
        """Where the server is, or was; its identity if the map does not list it any more."""
        return next((node.host for node in self.placement.nodes if node.server == server), server)


@dataclass(frozen=True, slots=True)
class Fault:
    """One thing that is wrong. Faults of two looks are the same if they are equal."""

    kind: str
    text: str
    """One sentence, without the names of files."""
    ino: int = 0
    """0 when it is not about one inode."""
    index: int = -1
    """The chunk's, -1 when it is not about one chunk."""
    server: str = ""
    keep_bytes: int = 0
    """Up to where the table has a use for the chunk."""
    evidence: tuple[Any, ...] = ()


def faults(look: Look) -> list[Fault]:
    """Everything that is wrong in this look, the table's own faults first."""
    sound = [Fault(INVARIANT, sentence) for sentence in look.table.check()]
    return [*sound, *_placed_chunks(look), *_held_chunks(look), *_unreaped(look)]


def certain(first: Iterable[Fault], second: Iterable[Fault]) -> list[Fault]:
    """Of the faults of the second look those that no race explains."""
    known = set(first)
    return [fault for fault in second if fault.kind == INVARIANT or fault in known]


def evidence(inode: Inode | None) -> tuple[Any, ...]:
    """What stays the same while nothing of the inode's bytes is written, committed or cut."""
    return () if inode is None else (inode.size, inode.mtime_ns, inode.ctime_ns)


# -- what the table says, against the servers ------------------------------------------------------------------------


def _placed_chunks(look: Look) -> Iterator[Fault]:
    alive = {node.server for node in look.placement.nodes if node.alive}
    for ino, index, servers in look.table.directory:
        inode = look.table.inodes.get(ino)
        if inode is None or not inode.is_regular:
            continue  # a broken invariant, and told as such
        yield from _copies(look, inode, index, servers, alive)
        for server in servers:
            if server in alive and server in look.inventories:
                yield from _copy(look, inode, index, server)


def _copies(look: Look, inode: Inode, index: int, servers: Servers, alive: set[str]) -> Iterator[Fault]:
    ino, living, wanted = inode.ino, sum(server in alive for server in servers), replicas(inode) or 1
    if servers and not living:
        hosts = ", ".join(look.host(server) for server in servers)
        yield Fault(LOST, f"the chunk server on {hosts} is lost with it", ino, index, servers[0])
    elif living < max(wanted, len(servers)):
        yield Fault(UNDER_REPLICATED, f"it has {living} of {max(wanted, len(servers))} copies", ino, index)


def _copy(look: Look, inode: Inode, index: int, server: str) -> Iterator[Fault]:
    claimed = claimed_bytes(inode.size, index)
    length = look.inventories[server].get(ChunkId(inode.ino, index))
    host, unchanged = look.host(server), evidence(inode)
    if length is None and claimed:
        text = f"the chunk server on {host} does not have it, {format_size(claimed)} read as zeros"
        yield Fault(MISSING, text, inode.ino, index, server, claimed, unchanged)
    elif length is not None and length > claimed:
        text = f"it has {length:,} bytes on {host}, the file's size allows {claimed:,}"
        yield Fault(WRONG_LENGTH, text, inode.ino, index, server, claimed, unchanged)


# -- what the servers hold, against the table ------------------------------------------------------------------------


def _held_chunks(look: Look) -> Iterator[Fault]:
    for server, chunks in look.inventories.items():
        for (ino, index), length in chunks.items():
            placed = look.table.directory.servers(ino, index)
            if server in placed:
                continue
            inode = look.table.inodes.get(ino)
            if inode is None:
                reason = "its inode does not exist"
            elif placed:
                reason = f"the table has it on {', '.join(map(look.host, placed))}"
            else:
                reason = "the table has it nowhere"
            text = f"{length:,} bytes on {look.host(server)}, and {reason}"
            yield Fault(ORPHANED, text, ino, index, server, 0, evidence(inode))


def _unreaped(look: Look) -> Iterator[Fault]:
    if not look.mounts:
        for ino in sorted(look.table.orphans):
            size = look.table.inodes[ino].size
            yield Fault(UNREAPED, f"no name leads to it and no mount holds it, of {format_size(size)}", ino)
