"""One scrub of a whole filesystem: every copy of every chunk is verified where it is, and what is wrong is mended."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import trio

from gridfs.config import MIB, format_size
from gridfs.errors import GridfsError
from gridfs.fsck.compare import Fault, Look
from gridfs.fsck.look import PAUSE_S
from gridfs.fsck.pace import Pace
from gridfs.fsck.repair import Repair
from gridfs.fsck.report import Report
from gridfs.fsck.restore import Restorer
from gridfs.fsck.verdict import UNREACHABLE, Case, cases, seem_wrong
from gridfs.fsck.walk import BAD, MISSING, Advance, Copies, Walked, Walker
from gridfs.meta import thin
from gridfs.meta.table import Table
from gridfs.meta.thin import Say, Snapshot, ThinClient
from gridfs.types import ChunkId, Endpoints, PlacementMap

RATE_BYTES_S = 256 * MIB
"""Over all chunk servers: a GiB takes four seconds."""


@dataclass(frozen=True, slots=True)
class ScrubReport(Report):
    """A report of copies. Those that are wanting are faults, and repairs are what became of them."""

    walked: Walked

    def counts(self) -> str:
        """How much was verified."""
        walked = self.walked
        text = f"{walked.copies:,} copies of chunks verified, {format_size(walked.size_bytes)}"
        if walked.open_copies:
            text += f", and {walked.open_copies:,} passed over that are being written"
        return f"{text}, on {len(self.look.inventories)} chunk servers"

    def values(self) -> dict[str, Any]:
        """See `Report.values`."""
        walked = self.walked
        verified = {"copies": walked.copies, "bytes": walked.size_bytes, "open_copies": walked.open_copies}
        return {**super(ScrubReport, self).values(), "verified": verified, "unreachable": sorted(walked.silent)}


async def scrub(
    client: ThinClient,
    secret: bytes,
    say: Say,
    advance: Advance = lambda done, total: None,
    *,
    rate_bytes_s: int = RATE_BYTES_S,
    mend: bool = True,
    pause_s: float = PAUSE_S,
) -> ScrubReport:
    """Verify every copy, and with `mend` mend what can be. `advance` hears of the bytes that are done.

    Chunk servers that do not answer are told of in the report. Raises GridfsError when nobody says where the servers are, and
    ConnectionLost when the inode table does not answer.
    """
    first = newest = await _snapshot(client, say)
    async with Walker.serving(secret, lambda: newest.placement, Pace(rate_bytes_s), advance) as walker:
        say("verifying")
        walked = await walker.walk(_copies(first.table.directory, first.placement))
        found: list[Case] = []
        if seem_wrong(first.table, first.placement, walked.states):
            say("looking again at what seems wrong")
            await trio.sleep(pause_s)
            await _verify_again(walker, walked)
            newest = await _snapshot(client, say)
            found = await trio.to_thread.run_sync(_cases, first.table, newest, walked)
        repairs: list[Repair] = []
        if mend and found:
            say("mending")
            restorer = Restorer(client, walker, mounted=newest.mounts > 0)
            repairs = [repair for case in found if (repair := await restorer.restore(case))]
        look = Look(walker.inventories, newest.table, newest.placement, newest.mounts)
        return ScrubReport(look, [*_unreachable(look, walked), *(case.fault for case in found)], repairs, walked)


def scrub_now(endpoints: Endpoints, say: Say, advance: Advance, *, rate_bytes_s: int, mend: bool) -> ScrubReport:
    """`scrub`, from outside trio. Raises GridfsError with a sentence when the filesystem could not be scrubbed."""

    async def work(client: ThinClient) -> ScrubReport:
        return await scrub(client, endpoints.secret, say, advance, rate_bytes_s=rate_bytes_s, mend=mend)

    try:
        return thin.run(endpoints, work)
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt):
            raise KeyboardInterrupt from None
        raise


async def _snapshot(client: ThinClient, say: Say) -> Snapshot:
    snapshot = await client.snapshot(say)
    if not snapshot.placement.epoch:
        raise GridfsError("nobody says where the chunks are: the scheduler does not run: see gridfs status, and try again")
    return snapshot


def _copies(directory: Iterable[tuple[int, int, tuple[str, ...]]], placement: PlacementMap) -> Copies:
    """What each living server is to hold."""
    copies: Copies = {node.server: [] for node in placement.nodes if node.alive}
    for ino, index, servers in directory:
        for server in servers:
            if server in copies:
                copies[server].append(ChunkId(ino, index))
    return copies


async def _verify_again(walker: Walker, walked: Walked) -> None:
    """Have every copy that was bad or missing verified once more; what is found is entered in `walked`."""
    suspect: Copies = defaultdict(list)
    for chunk_id, states in walked.states.items():
        for server, state in list(states.items()):
            if state in (BAD, MISSING):
                suspect[server].append(chunk_id)
    again = await walker.walk(suspect)
    for server, chunk_ids in suspect.items():
        for chunk_id in chunk_ids:
            del walked.states[chunk_id][server]
            walked.states[chunk_id].update(again.states.get(chunk_id, {}))
    walked.silent.update(again.silent)


def _cases(first: Table, newest: Snapshot, walked: Walked) -> list[Case]:
    return list(cases(first, newest.table, newest.placement, walked.states))


def _unreachable(look: Look, walked: Walked) -> Iterator[Fault]:
    for server, reason in walked.silent.items():
        count = sum(server in states for states in walked.states.values())
        yield Fault(UNREACHABLE, f"{look.host(server)}, {count:,} copies there were not verified: {reason}", server=server)
