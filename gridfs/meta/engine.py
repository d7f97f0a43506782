"""The table at work: ops applied, made durable, and noted for every replica."""

from __future__ import annotations

import errno
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable
from typing import Any

import trio

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO, Inode
from gridfs.meta.lease import Lease
from gridfs.meta.session import Session
from gridfs.meta.store import Store
from gridfs.meta.table import Changes, Op, Table
from gridfs.types import ChunkId

log = logging.getLogger(__name__)

SAVE_S = 0.02
"""Ops that nobody waits for become durable within this."""
SAVE_RETRY_S = 1.0


class Engine:
    """Table, store, and the sessions whose replicas must hear of every change.

    Owned by the server's trio thread. Applying an op, counting it and noting its rows happens without an await in between, so
    replicas are never told a part. `applied` numbers all ops ever applied; the store knows the number that it holds.
    """

    def __init__(self, store: Store, now_s: float, drop_soon: Callable[[str, ChunkId], None]) -> None:
        """`drop_soon` has a chunk dropped of which the store has no trace any more."""
        self._store, self._drop_soon = store, drop_soon
        self.table = store.load()
        if ROOT_INO not in self.table.inodes:
            self.table.apply(("format", time.time_ns(), os.geteuid(), os.getegid()))
        self.epoch: int = store.fact("epoch", 0)
        self.applied: int = store.fact("applied", 0)
        self.lease = Lease(store.fact("holder"))
        self.sessions: dict[str, Session] = {}
        for identity, epoch, seq, results in store.fact("sessions", []):
            session = Session(identity, epoch, now_s, seq, results)
            session.number = 0
            self.sessions[session.id] = session
            self.lease.join(session.id, follows=True)
        self._saved_holder: str | None = None
        self._unsaved = Changes()
        self._dirty = trio.Event()
        self._unused: dict[int, set[str]] = defaultdict(set)
        """Orphan -> sessions that do not hold it; it is reaped when they all are here."""
        self._to_drop: list[tuple[str, ChunkId]] = []
        """Chunks of orphans that were reaped here, until that is durable."""
        self.save()

    # -- durability --------------------------------------------------------------------------------------------------

    def save_lease(self) -> None:
        """Nobody may learn of a turn that a restarted server would not know."""
        if self.lease.held_by != self._saved_holder:
            self.save()

    def save(self) -> None:
        """Make what has been applied durable. After a failure nothing is forgotten: the next save includes it."""
        self.note_changes(None)
        holder = self.lease.held_by
        facts = {
            "epoch": self.epoch,
            "applied": self.applied,
            "holder": holder,
            "sessions": [session.pack() for session in self.sessions.values()],
        }
        self._store.save(self.table, self._unsaved, facts)
        self._saved_holder = holder
        self._unsaved.clear()
        self._drop_reaped()
        for session in self.sessions.values():
            session.saved_seq = session.seq

    async def keep_saving(self) -> None:
        """Save what nobody waits for; a failure is logged, and tried again."""
        while True:
            await self._dirty.wait()
            await trio.sleep(SAVE_S)
            self._dirty = trio.Event()
            if not self._unsaved:
                continue
            try:
                self.save()
            except Exception:
                log.exception("the inode table could not be saved")
                self._dirty.set()
                await trio.sleep(SAVE_RETRY_S)

    def note_changes(self, author: Session | None, leased: bool = False) -> None:
        """The ops just applied have changed rows: note them for the store and for the replicas, a lease holder's excepted."""
        changes, self.table.changes = self.table.changes, Changes()
        if not changes:
            return
        self._unsaved.merge(changes)
        self._dirty.set()
        for session in self.sessions.values():
            if session is not author:
                session.foreign.merge(changes)
            elif not leased:
                session.own.merge(changes)

    # -- ops ---------------------------------------------------------------------------------------------------------

    def take_in(self, session: Session, first: int, ops: list[Op]) -> None:
        """Apply what the holder of the lease has applied."""
        if self.lease.held_by != session.id:
            raise FilesystemError(errno.ESTALE, "the session has no lease")
        for number, op in enumerate(ops, first):
            if number <= session.seq:
                continue
            if number > session.seq + 1:
                raise FilesystemError(errno.ESTALE, f"op {session.seq + 1} is missing before op {number}")
            session.seq = number
            if op[0] == "disown":
                self.note_changes(session, leased=True)
                self.disown(session, op[1])
                continue
            if op[0] == "reap" and op[1] not in self.table.orphans:
                continue  # it was disowned before the mount was alone, and reaped then
            try:
                self.table.apply(op)
            except FilesystemError as error:
                log.error("op %d %r failed here and not at the mount: %s", number, op, error)
                raise FilesystemError(errno.ESTALE, f"the replica has parted from the table at op {number}") from error
            except Exception as error:
                log.exception("op %d %r failed", number, op)
                raise FilesystemError(errno.ESTALE, f"the replica has parted from the table at op {number}") from error
            self.applied += 1
        self.note_changes(session, leased=True)

    def execute(self, session: Session, op: Op) -> tuple[int, Any]:
        """[errno, value or message] of one op; an inode is told by its number."""
        if op[0] == "disown":
            self.disown(session, op[1])
            return 0, None
        try:
            result = self.apply(op)
        except FilesystemError as error:
            return error.errno or errno.EIO, error.strerror
        except Exception as error:
            log.exception("op %r failed", op)
            return errno.EIO, type(error).__name__
        return 0, result.ino if isinstance(result, Inode) else result

    def apply(self, op: Op) -> Any:
        """Apply an op that was made without knowing the next inode number."""
        if op[0] == "make":
            op = (*op[:2], self.table.next_ino, *op[3:])
        result = self.table.apply(op)
        self.applied += 1
        return result

    # -- loading -----------------------------------------------------------------------------------------------------

    def refuse_load(self) -> None:
        """Raise EBUSY while there are sessions, ENOTEMPTY while there is more than the root: then nothing can be loaded."""
        if self.sessions:
            hosts = ", ".join(sorted({str(session.identity.get("host")) for session in self.sessions.values()}))
            raise FilesystemError(errno.EBUSY, f"the filesystem is mounted on {hosts}: unmount it before you load a table")
        if len(self.table.inodes) > 1 or len(self.table.directory):
            count = len(self.table.inodes) - 1
            raise FilesystemError(
                errno.ENOTEMPTY,
                f"the filesystem is not empty, it has {count:,} inodes: a table is loaded into an empty one only",
            )

    def load(self, table: Table) -> None:
        """Let a sound table be the table from now on, durably; it is the caller's no more. Inode numbers never go back.

        Raises as `refuse_load`, EINVAL with the first broken invariant, and what `save` raises; nothing has changed then.
        """
        self.refuse_load()
        faults = table.check()
        if faults:
            raise FilesystemError(errno.EINVAL, f"it is no sound table: {faults[0]}")
        self.save()
        before, self.table = self.table, table
        table.next_ino = max(table.next_ino, before.next_ino)
        table.changes = everything(table)
        self.applied += 1
        try:
            self.save()
        except BaseException:
            self.table = before
            self.applied -= 1
            self._unsaved.clear()
            raise
        self._unused.clear()

    # -- orphans -----------------------------------------------------------------------------------------------------

    def disown(self, session: Session, ino: int) -> None:
        """The session does not hold this orphan, and never will again."""
        if ino in self.table.orphans:
            self._unused[ino].add(session.id)
            self.reap_unused(ino)

    def reap_unused(self, *inos: int) -> None:
        """Reap the orphans, or those named, that no session holds; their chunks are dropped once that is durable.

        Without any session just those named are reaped: a mount that was fenced may begin another one, and hold them still.
        """
        for ino in inos or list(self._unused):
            if ino not in self.table.orphans:
                self._unused.pop(ino, None)
            elif (self.sessions or inos) and self._unused[ino] >= set(self.sessions):
                del self._unused[ino]
                chunks = self.table.apply(("reap", ino))
                self.applied += 1
                self.note_changes(None)
                self._to_drop += [(server, ChunkId(ino, index)) for index, servers in chunks for server in servers]

    def _drop_reaped(self) -> None:
        for server, chunk_id in self._to_drop:
            self._drop_soon(server, chunk_id)
        self._to_drop.clear()


def everything(table: Table) -> Changes:
    """All rows of a table, names in their order, as if they had just been made."""
    changes = Changes()
    changes.inodes.update(table.inodes)
    changes.names.update(((ino, name), None) for ino, inode in table.inodes.items() for name in inode.entries or ())
    changes.chunks.update((ino, index) for ino, index, _ in table.directory)
    return changes
