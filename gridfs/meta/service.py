"""What the inode table's server does with connections: the sessions of the mounts that share it, and their requests.

* a mount has two connections. On `ops` it attaches, loads the snapshot page by page, and sends its ops in numbered batches;
  on `follow` it hears the news: changed rows, its turn with the lease, the placement map. It asks again as soon as it has
  taken them in, which is how the server knows, and at least every second, which is how it lives;
* a client without a replica (CLI, jobs) has one, on which it asks for the snapshot or for single ops to be executed.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import trio

from gridfs.errors import AuthenticationFailed
from gridfs.meta.engine import Engine
from gridfs.meta.holders import Holders
from gridfs.meta.inode import Inode
from gridfs.meta.lease import DARK, Phase
from gridfs.meta.loading import Loading
from gridfs.meta.members import Members
from gridfs.meta.rows import Page, take_rows
from gridfs.meta.session import Session
from gridfs.meta.store import Store
from gridfs.meta.table import Op
from gridfs.stream.endpoint import Answer, Methods, Peer
from gridfs.stream.handshake import Identity
from gridfs.types import NO_PLACEMENT, PlacementMap

log = logging.getLogger(__name__)

STREAMS = ("ops", "follow")
QUIET_S = 1.0
"""A mount gets the lease when no other client has done anything for this long."""
HEARTBEAT_S = 1.0
TICK_S = 0.2


class MetaService:
    """What the inode table's server does with connections; lives in one trio thread.

    What sessions may do is `Lease`'s to say. While one holds the lease, its ops arrive in batches that it has applied
    already, and are durable a little later. In phase SHARED ops are executed here: they are durable, and every session's
    replica has them, before the one who sent them hears of it. Applying, counting and noting for the others happens without
    an await in between, so rows are never told in part.
    """

    def __init__(self, store: Store, secret: bytes, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self.placement: dict[str, Any] = NO_PLACEMENT.pack()
        self.holders = Holders(secret, lambda: PlacementMap.unpack(self.placement))
        self.engine = Engine(store, monotonic(), self.holders.drop_soon)
        self.sessions, self.lease = self.engine.sessions, self.engine.lease
        self.boot = os.urandom(8).hex()
        self._loaded = self.engine.applied
        """The last op that was durable when this process began: the one point that replicas of before can go on from."""
        self.members = Members(self.engine, self.holders, monotonic)
        self._client_s = monotonic() - QUIET_S
        """When a client without a replica last had its turn."""
        self._clients_waiting = 0
        self.methods: Methods = {
            "attach": self.attach,
            "page": self.page,
            "follow": self.follow,
            "share": self.share,
            "ops": self.ops,
            "execute": self.execute,
            "snapshot": self.snapshot,
            "load": Loading(self.engine, self._until_client_turn).load,
            "leave": self.leave,
            "placement": self.get_placement,
        }

    async def run(self) -> None:
        """The background: saving, fencing, granting the lease, and telling the chunk servers; until cancelled."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.holders.run)
            nursery.start_soon(self.engine.keep_saving)
            while True:
                await trio.sleep(TICK_S)
                try:
                    await self.members.fence_the_lost()
                    self._grant_to_the_only_one()
                except Exception:  # a full disk, say: those who are served go on, and the next tick tries again
                    log.exception("the sessions could not be looked after")

    # -- connections -------------------------------------------------------------------------------------------------

    def greet(self, identity: Identity) -> Identity:
        """Admit a mount to its session, or refuse it; a client without a replica is welcome."""
        role = identity.get("role")
        if role == "client":
            return {}
        if role != "mount":
            raise AuthenticationFailed(f"this server knows no role {role!r}")
        if identity.get("stream") not in STREAMS:
            raise AuthenticationFailed(f"a mount has no stream {identity.get('stream')!r}")
        session = self.members.admit(identity)
        return {"epoch": session.epoch, "seq": session.seq}

    def welcome(self, peer: Peer) -> None:
        """A mount's connection for this stream is this one from now on."""
        if peer.identity["role"] == "mount":
            self.members.welcome(peer)

    def goodbye(self, peer: Peer) -> None:
        """A connection ended; a mount's session stays until somebody has to wait for it."""
        if peer.identity["role"] == "mount":
            self.members.goodbye(peer)

    # -- the lease ---------------------------------------------------------------------------------------------------

    def _grant_to_the_only_one(self) -> None:
        """Give the lease to a mount that has been the only one to do anything for a while."""
        awaited = self._clients_waiting or self._monotonic() - self._client_s < QUIET_S
        if self.lease.phase is not Phase.SHARED or awaited:
            return
        following = [session for session in self.sessions.values() if session.number >= 0]
        recent = [session for session in following if self._monotonic() - session.active_s < QUIET_S]
        chosen = recent if recent else following
        if len(chosen) == 1:
            self.lease.grant(chosen[0].id)
            self.members.wake_all()

    async def _until_executable(self, author: str) -> None:
        """Recall the lease, unless the author may have ops executed; no await follows the last look."""
        while not self.lease.may_execute(author):
            self.lease.recall()
            self.members.wake_all()
            turn = self.lease.turn
            await self.members.until(lambda turn=turn: self.lease.turn != turn)  # type: ignore[misc]

    async def _until_client_turn(self) -> None:
        """`_until_executable` for a client without a replica; nobody gets the lease before it goes on, and QUIET_S after."""
        self._clients_waiting += 1
        try:
            await self._until_executable("")
        finally:
            self._clients_waiting -= 1
            self._client_s = self._monotonic()

    async def _until_seen(self, number: int, author: Session | None) -> None:
        """Wait until every replica but the author's that may be read has the ops up to `number`."""
        for session in self.sessions.values():
            if session.pending:
                session.wake()

        def seen() -> bool:
            if self.members.ending:
                return False
            others = (session for session in self.sessions.values() if session is not author and session.number >= 0)
            return self.lease.phase is Phase.LEASED or all(session.number >= number for session in others)

        await self.members.until(seen)

    # -- requests of mounts ------------------------------------------------------------------------------------------

    async def attach(self, peer: Peer) -> Answer:
        """Make the session ready to load: `page` gives the rows as of now, and `follow` what changes from now on.

        It waits until the mounts before it have stopped to rely on being alone, or are fenced. The result tells whether there
        are others (`alone`), this server's `boot`, the number of the last op (`applied`), and the next inode number.
        """
        session = self.members.session_of(peer)
        session.number = -1
        self.lease.join(session.id)
        self.members.wake_all()
        turn = self.lease.turn
        others = [other for other in self.sessions.values() if other is not session]
        await self.members.until(
            lambda: (
                self.lease.adopted(turn, but=session.id)
                and not any(other.ended_s is not None for other in others if other.id in self.sessions)
                and not self.members.ending
            )
        )
        self.members.fence_chunk_servers()
        await self.holders.fenced()
        session = self.members.session_of(peer)
        self.engine.save()
        session.forget_changes()
        session.snapshot, session.base = self._store.snapshot(), self.engine.applied
        alone = len(self.sessions) == 1
        return Answer(
            {"alone": alone, "boot": self.boot, "applied": self.engine.applied, "next_ino": self.engine.table.next_ino}
        )

    async def page(self, peer: Peer) -> Answer:
        """The next page of the snapshot; None after the last."""
        return Answer(next(self._snapshot_of(peer), None))

    def _snapshot_of(self, peer: Peer) -> Iterator[Page]:
        if peer.identity["role"] == "client":
            snapshot: Iterator[Page] = peer.identity["snapshot"]
            return snapshot
        return self.members.session_of(peer).snapshot

    async def follow(self, peer: Peer, said: dict[str, Any]) -> Answer:
        """The news, as soon as there is any, at the latest after HEARTBEAT_S.

        `said`: `boot`, `number` and `reply` of the newest news taken in; `turn` adopted; epoch of the newest `map`; `active`:
        whether programs have asked for anything since. The result has the same words for what the mount is to take in,
        and `state` (what it may do), `alone`, `eldest` (of the sessions there are), `saved` (how many of its ops are durable),
        the changed rows by `own` and `foreign` ops, and `more` when there are more rows to fetch before number and turn mean
        anything. With `reload` alone the replica is of another time, and must be loaded again.
        """
        session = self.members.session_of(peer)
        if self._must_reload(session, said):
            return Answer({"reload": True})
        turn = said["turn"] if said["boot"] == self.boot else 0
        session.heard(said["reply"])
        session.number = max(session.number, said["number"])
        if said["active"]:
            session.active_s = self._monotonic()
        self._adopt(session, turn)
        if len(self.sessions) == 1:
            self._grant_to_the_only_one()
        with trio.move_on_after(HEARTBEAT_S):
            while not self._has_news(session, turn, said["map"]):
                await session.news.wait()
        return Answer(self._news(self.members.session_of(peer), said["map"]))

    def _must_reload(self, session: Session, said: dict[str, Any]) -> bool:
        """Whether there are rows that the replica has not been sent and never will be.

        That is so when they were changed before this process began, or before a snapshot which the mount did not get.
        """
        if self.lease.held_by == session.id:
            return False
        missed = said["number"] < session.base or (said["boot"] != self.boot and said["number"] != self._loaded)
        return bool(missed)

    def _adopt(self, session: Session, turn: int) -> None:
        before = self.lease.turn
        self.lease.adopt(session.id, turn)
        if self.lease.turn == before:
            self.members.signal()
        else:
            self.members.wake_all()

    def _has_news(self, session: Session, turn: int, map_epoch: int) -> bool:
        if self.lease.turn != turn or self.placement["epoch"] > map_epoch:
            return True
        return session.pending and self.lease.state(session.id) != DARK

    def _news(self, session: Session, map_epoch: int) -> dict[str, Any]:
        self.engine.save_lease()
        own = take_rows(self.engine.table, session.own, session.sent_own)
        foreign = take_rows(self.engine.table, session.foreign, session.sent_foreign)
        session.reply += 1
        return {
            "boot": self.boot,
            "reply": session.reply,
            "number": self.engine.applied,
            "turn": self.lease.turn,
            "state": self.lease.state(session.id),
            "alone": len(self.sessions) == 1,
            "eldest": session.epoch == min(other.epoch for other in self.sessions.values()),
            "saved": session.saved_seq,
            "map": self.placement if self.placement["epoch"] > map_epoch else None,
            "own": own,
            "foreign": foreign,
            "more": session.pending,
            "next_ino": self.engine.table.next_ino,
        }

    async def share(self, peer: Peer) -> Answer:
        """The session wants to read its replica: the lease is called back, which `follow` will tell."""
        session = self.members.session_of(peer)
        session.active_s = self._monotonic()
        if self.lease.phase is not Phase.SHARED:
            self.lease.recall()
            self.members.wake_all()
        return Answer()

    async def ops(self, peer: Peer, first: int, ops: list[Op], leased: bool, durable: bool) -> Answer:
        """The session's ops from number `first` on. A batch that is sent again is answered, not applied again.

        `leased`: the mount has applied them to its replica; the result is [number of the last one applied, of the last one
        durable]. ESTALE means that table and replica have parted. Otherwise they are executed, durably and for all to see, and
        the result is [number of the op, [[errno, value or message], ...]]: the author's replica has them with that number.
        """
        session = self.members.session_of(peer)
        session.active_s = self._monotonic()
        if leased:
            if ops:
                self.engine.take_in(session, first, ops)
            if durable:
                self.engine.save()
            return Answer((session.seq, session.saved_seq))
        if first > session.seq:
            await self._until_executable(session.id)
            self.members.session_of(peer)
            session.results = [self.engine.execute(session, op) for op in ops]
            session.seq = first + len(ops) - 1
            self.engine.note_changes(session)
        number = self.engine.applied
        self.engine.save()
        await self._until_seen(number, session)
        return Answer((number, session.results))

    # -- requests of either kind -------------------------------------------------------------------------------------

    async def execute(self, peer: Peer, op: Op) -> Answer:
        """One op for a client without a replica: durable, and seen by every mount, when it is answered.

        The result is the op's, an inode as it packs. It is not safe to repeat: a client that hears nothing does not know.
        """
        await self._until_client_turn()
        result = self.engine.apply(op)
        self.engine.note_changes(None)
        self.engine.save()
        await self._until_seen(self.engine.applied, None)
        return Answer(result.pack() if isinstance(result, Inode) else result)

    async def snapshot(self, peer: Peer) -> Answer:
        """For a client without a replica: begin a snapshot, to be read by `page`. A mount's ops are all in it.

        The result tells the next inode number, the placement map, and how many mounts there are.
        """
        await self._until_client_turn()
        self.engine.save()
        peer.identity["snapshot"] = self._store.snapshot()
        return Answer({"next_ino": self.engine.table.next_ino, "map": self.placement, "mounts": len(self.sessions)})

    async def leave(self, peer: Peer) -> Answer:
        """The mount ends its session, having settled everything."""
        self.members.leave(self.members.session_of(peer))
        return Answer()

    async def get_placement(self, peer: Peer) -> Answer:
        """The newest placement map; asking for it is also a way for a mount to say that it lives."""
        if peer.identity["role"] == "mount":
            self.members.session_of(peer)
        return Answer(self.placement)

    # -- what the control plane sees ---------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counts, the sessions whose mounts are there, who has the lease, and the placement."""
        now_s = self._monotonic()
        sessions = [
            {name: session.identity.get(name) for name in ("host", "mountpoint", "pid")}
            | {"since_s": now_s - session.started_s, "lease": self.lease.state(session.id), "epoch": session.epoch}
            for session in self.sessions.values()
            if session.peers
        ]
        return {
            "inodes": len(self.engine.table.inodes),
            "chunks": len(self.engine.table.directory),
            "orphans": len(self.engine.table.orphans),
            "epoch": self.engine.epoch,
            "applied": self.engine.applied,
            "sessions": sessions,
            "placement": self.placement,
        }

    def publish(self, placement: dict[str, Any]) -> None:
        """Hand a newer placement map to all who ask from now on."""
        if placement["epoch"] >= self.placement["epoch"]:
            self.placement = placement
            self.holders.placed()
            self.members.wake_all()
