"""Mending the copies of chunks that a scrub has found wanting.

A copy that is bad or missing is withdrawn in the table first, if there is a sound one: a reader must not be sent to it, as
what a server does not have reads as zeros. Then its bytes are dropped with `trim`, which the server refuses once the chunk was
written anew: a mount may have made a copy there by then. New copies are made by the eldest mount, which hears of each change of
the table, and by the scrub itself while nothing is mounted.
"""

from __future__ import annotations

import errno
from collections.abc import Iterable
from contextlib import suppress

from gridfs.chunk.client import WRITE
from gridfs.chunk.mending import Holders, add_copy, targets
from gridfs.errors import FilesystemError
from gridfs.fsck.repair import Repair
from gridfs.fsck.verdict import Case
from gridfs.fsck.walk import Walker
from gridfs.meta.thin import ThinClient
from gridfs.types import ChunkId


class Restorer:
    """Mends one chunk after another. Owned by one task."""

    def __init__(self, client: ThinClient, walker: Walker, *, mounted: bool) -> None:
        """`mounted`: there is a mount that makes copies."""
        self._client, self._walker, self._mounted = client, walker, mounted

    async def restore(self, case: Case) -> Repair | None:
        """What became of the chunk; None if there is nothing to mend it from. Raises ConnectionLost of the inode table."""
        if not case.sound:
            return None
        name = f"chunk {case.chunk_id.index} of inode {case.chunk_id.ino}"
        done: list[str] = []
        try:
            holders = await self._withdraw(case)
            if case.unsound:
                done.append(f"withdrew what was on {self._hosts(case.unsound)}")
            if self._mounted:
                return await self._leave_to_mounts(case, name, done)
            done.append(f"made a copy on {self._hosts(await self._add_copies(case, holders))}")
        except FilesystemError as error:
            told = "".join(f"{step}, " for step in done)
            return Repair(case.fault, done=False, text=f"left {name}: {told}{error.strerror}")
        return Repair(case.fault, done=True, text=f"{name}: {', '.join(done)}")

    async def _leave_to_mounts(self, case: Case, name: str, done: list[str]) -> Repair:
        if done:
            return Repair(case.fault, done=True, text=f"{name}: {', '.join(done)}; a mount makes what copies are wanting")
        await self._replace(case.chunk_id, case.holders, case.holders)  # a change like any other: they look at it
        return Repair(case.fault, done=False, text=f"left {name} to the mounts: they make copies where there is room")

    async def _withdraw(self, case: Case) -> Holders:
        """Have only sound copies be read, and drop the others; returns who holds the chunk. Raises EAGAIN."""
        kept = tuple(server for server in case.holders if server not in case.unsound) if self._mounted else case.living
        if kept != case.holders and await self._replace(case.chunk_id, case.holders, kept) != kept:
            raise FilesystemError(errno.EAGAIN, "its copies were changed meanwhile; run this again")
        for server in case.unsound:
            with suppress(FilesystemError):  # it stays there as an orphan
                await self._walker.ask(server, WRITE, "trim", *case.chunk_id, 0, 0.0)
        return kept

    async def _add_copies(self, case: Case, holders: Holders) -> list[str]:
        """Make the copies that are wanting, where there is room; returns where. Raises what the last target failed with."""
        added: list[str] = []
        failure = FilesystemError(errno.EAGAIN, f"there are fewer than {case.wanted} chunk servers that take chunks")

        async def replace(before: Holders, after: Holders) -> Holders:
            return await self._replace(case.chunk_id, before, after)

        for target in targets(self._walker.chunks.placement, case.chunk_id, holders):
            if len(holders) >= case.wanted:
                break
            await self._walker.pace.keep(self._walker.inventories.get(case.sound[0], {}).get(case.chunk_id, 0))
            try:
                holders = await add_copy(self._walker.chunks, case.chunk_id, holders, case.sound[0], target, replace)
                added.append(target)
            except FilesystemError as error:
                failure = error
        if len(holders) < case.wanted:
            raise failure
        return added

    async def _replace(self, chunk_id: ChunkId, before: Holders, after: Holders) -> Holders:
        return tuple(await self._client.execute(("replace", *chunk_id, before, after)))

    def _hosts(self, servers: Iterable[str]) -> str:
        hosts = {node.server: node.host for node in self._walker.chunks.placement.nodes}
        return ", ".join(hosts.get(server, server) for server in servers)
