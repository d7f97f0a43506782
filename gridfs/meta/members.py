"""The sessions of all mounts: how they begin, who is lost, and how they end."""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable

import trio

from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.meta.engine import Engine
from gridfs.meta.holders import Holders
from gridfs.meta.lease import Phase
from gridfs.meta.session import Session
from gridfs.stream.endpoint import Peer
from gridfs.stream.handshake import Identity

log = logging.getLogger(__name__)

LEASE_S = 10.0
"""A mount that says nothing for this long is fenced as soon as somebody waits for it; it speaks every second."""
RECONNECT_S = 2.0
"""The same for one whose connections have ended: its process is gone, or is about to come back."""


class Members:
    """Owned by the server's trio thread. A session that is over is *fenced*: it is refused here from that moment on, and the
    chunk servers refuse it before anyone who waited for it goes on.
    """

    def __init__(self, engine: Engine, holders: Holders, monotonic: Callable[[], float]) -> None:
        self._engine, self._holders, self._monotonic = engine, holders, monotonic
        self.sessions, self.lease = engine.sessions, engine.lease
        self._changed = trio.Event()
        self.ending: set[str] = set()
        """Sessions that are over and of which not every chunk server knows it."""
        self.fence_chunk_servers()

    def signal(self) -> None:
        """Something that tasks may wait for has changed."""
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    async def until(self, condition: Callable[[], bool]) -> None:
        """Wait for other sessions; bounded, since one that does not do its part is fenced after LEASE_S."""
        while not condition():
            await self._changed.wait()

    def admit(self, identity: Identity) -> Session:
        """Begin a mount's session, or let it come back to it, or refuse it."""
        session = self.sessions.get(identity["id"])
        if not identity.get("epoch"):
            return session or self._begin(identity)
        if session is None or session.epoch != identity["epoch"]:
            raise AuthenticationFailed(f"fenced: the session of epoch {identity['epoch']} is over")
        return session

    def _begin(self, identity: Identity) -> Session:
        self._engine.epoch += 1
        session = Session({**identity, "epoch": self._engine.epoch}, self._engine.epoch, self._monotonic())
        self.sessions[session.id] = session
        self._engine.save()
        log.info("epoch %d: mounted on %s at %s", self._engine.epoch, identity["host"], identity["mountpoint"])
        return session

    def welcome(self, peer: Peer) -> None:
        """The session's connection for this stream is this one from now on."""
        session = self.sessions.get(peer.identity["id"])
        if session is None:
            peer.disconnect()
            return
        stream = peer.identity["stream"]
        if stream in session.peers:
            session.peers[stream].disconnect()
        session.peers[stream] = peer
        session.heard_s, session.ended_s = self._monotonic(), None

    def goodbye(self, peer: Peer) -> None:
        """A connection ended; its session stays until somebody has to wait for it."""
        session = self.sessions.get(peer.identity.get("id", ""))
        if session is not None and session.peers.get(peer.identity["stream"]) is peer:
            del session.peers[peer.identity["stream"]]
            if not session.peers:
                session.ended_s = self._monotonic()
                log.info("epoch %d: the mount's connections ended", session.epoch)
                self.signal()

    def session_of(self, peer: Peer) -> Session:
        """The connection's session. Raises ESTALE when it is over, or the connection is not its newest."""
        session: Session | None = self.sessions.get(peer.identity.get("id", ""))
        if session is None or session.peers.get(peer.identity["stream"]) is not peer:
            raise FilesystemError(errno.ESTALE, "fenced: the session is over")
        session.heard_s = self._monotonic()
        return session

    def _is_followed(self, session: Session) -> bool:
        """Whether a newer session is at the same place: a mountpoint has one daemon, so this one's is gone for good."""
        return any(
            other.epoch > session.epoch and all(other.identity[at] == session.identity[at] for at in ("host", "mountpoint"))
            for other in self.sessions.values()
        )

    def _is_lost(self, session: Session) -> bool:
        if not session.peers and self._is_followed(session):
            return True
        now_s = self._monotonic()
        if session.ended_s is not None:
            return now_s - session.ended_s > RECONNECT_S
        return now_s - session.heard_s > LEASE_S

    async def fence_the_lost(self) -> None:
        """End the sessions that others would wait for in vain.

        A sole one is left alone, as it may come back at any time; but not while a client without a replica waits for its lease.
        """
        for session in list(self.sessions.values()):
            awaited = len(self.sessions) > 1 or self.lease.phase is Phase.RECALLING
            if awaited and self._is_lost(session) and self.sessions.get(session.id) is session:
                if session.ended_s is None:
                    log.warning("epoch %d: the mount on %s stopped talking: fenced", session.epoch, session.identity["host"])
                else:
                    log.info("epoch %d: the mount on %s is gone: fenced", session.epoch, session.identity["host"])
                await self._end(session)

    async def _end(self, session: Session) -> None:
        """The session is over: first here, then at the chunk servers, and only then for those who wait for it."""
        del self.sessions[session.id]
        for peer in list(session.peers.values()):
            peer.disconnect()
        self.ending.add(session.id)
        self._engine.epoch += 1  # a fence is known by its epoch
        self.fence_chunk_servers()
        await self._holders.fenced()
        self.ending.discard(session.id)
        self.lease.leave(session.id)
        self._engine.reap_unused()
        self.wake_all()
        self._engine.save()

    def fence_chunk_servers(self) -> None:
        """Have them told of all sessions that are over."""
        self._holders.fence(self._engine.epoch, (session.epoch for session in self.sessions.values()))

    def wake_all(self) -> None:
        """There is news for every session, and for every task that waits."""
        for session in self.sessions.values():
            session.wake()
        self.signal()

    def leave(self, session: Session) -> None:
        """The session ends by its own wish, having settled everything."""
        log.info("epoch %d: unmounted on %s", session.epoch, session.identity["host"])
        del self.sessions[session.id]
        self.lease.leave(session.id)
        self._engine.epoch += 1
        self.fence_chunk_servers()
        self._engine.reap_unused(*([] if self.sessions else list(self._engine.table.orphans)))  # nobody is left to hold them
        self._engine.save()
        self.wake_all()
