"""Mending what can be mended without losing a byte that a file claims.

Orphaned chunks are dropped, chunks that are too long are cut, orphans that no mount holds are reaped. Between the look and the
repair mounts go on writing, so the chunk server refuses to drop or cut a chunk that was written since it told its inventory:
a chunk that was placed anew, or a file that grew, after the snapshot. What is lost or missing stays for a person to decide.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import NamedTuple

from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.fsck.compare import ORPHANED, UNREAPED, WRONG_LENGTH, Fault
from gridfs.fsck.look import Examiner, Finding

COMMIT_MAX_S = 60.0
"""While mounts are attached, bytes beyond a file's size are cut only when they are older than this: their mount has waited no
longer for the bytes before them (a reply within 30 s, sizes committed every second), so it does not know of them any more."""


class Repair(NamedTuple):
    """What became of one fault."""

    fault: Fault
    done: bool
    text: str


async def repair(examiner: Examiner, finding: Finding) -> AsyncIterator[Repair]:
    """Mend what is safe of what was found, one fault after another. A server that is gone meanwhile leaves its faults."""
    actions = {ORPHANED: _drop, WRONG_LENGTH: _cut, UNREAPED: _reap}
    for fault in finding.faults:
        action = actions.get(fault.kind)
        if action is not None:
            try:
                yield await action(examiner, finding, fault)
            except (ConnectionLost, FilesystemError) as error:
                yield Repair(fault, done=False, text=f"left {_name(fault)}: {error}")


async def _drop(examiner: Examiner, finding: Finding, fault: Fault) -> Repair:
    host = finding.look.host(fault.server)
    if await examiner.ask(fault.server, "trim", fault.ino, fault.index, 0, 0.0):
        return Repair(fault, done=True, text=f"dropped {_name(fault)} from {host}")
    return _left_in_use(fault, host)


async def _cut(examiner: Examiner, finding: Finding, fault: Fault) -> Repair:
    host, quiet_s = finding.look.host(fault.server), COMMIT_MAX_S if finding.look.mounts else 0.0
    if await examiner.ask(fault.server, "trim", fault.ino, fault.index, fault.keep_bytes, quiet_s):
        return Repair(fault, done=True, text=f"cut {_name(fault)} on {host} to {fault.keep_bytes:,} bytes")
    return _left_in_use(fault, host)


async def _reap(examiner: Examiner, finding: Finding, fault: Fault) -> Repair:
    """The table first: before that, a crash could bring the orphan back, without its bytes."""
    chunks = await examiner.client.execute(("reap", fault.ino))
    for index, servers in chunks:
        for server in servers:
            if server in finding.look.inventories:
                await examiner.ask(server, "drop", [(fault.ino, index)])
    return Repair(fault, done=True, text=f"reaped inode {fault.ino} and dropped its chunks, {len(chunks)}")


def _left_in_use(fault: Fault, host: str) -> Repair:
    return Repair(fault, done=False, text=f"left {_name(fault)} on {host}: it was written a moment ago; run this again")


def _name(fault: Fault) -> str:
    return f"inode {fault.ino}" if fault.index < 0 else f"chunk {fault.index} of inode {fault.ino}"
