"""The inode table's server: the table, its store, and the one mount session that may write.

It runs in a detached Ray actor. Its Ray methods are the control plane; mounts speak the stream protocol.
"""

from __future__ import annotations

import errno
import logging
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from gridfs import logs
from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.rows import Page, pages
from gridfs.meta.store import Store
from gridfs.meta.table import Op
from gridfs.stream.endpoint import Answer, Endpoint, Methods, Peer
from gridfs.stream.handshake import Identity
from gridfs.stream.thread import TrioThread
from gridfs.types import NO_PLACEMENT, Address

log = logging.getLogger(__name__)

LEASE_S = 10.0
"""A mount that says nothing for this long has lost its session to whoever attaches next; it speaks every second."""


@dataclass
class Session:
    """The mount that may write, connected or not."""

    identity: Identity
    started_s: float
    heard_s: float
    peer: Peer | None = None
    ended: bool = True
    """False from its first connection until the last one has ended before the eyes of this server, or of the one before."""
    snapshot: Iterator[Page] = field(default_factory=lambda: iter(()))


class MetaService:
    """What the inode table's server does with connections; lives in one trio thread, and nothing here awaits.

    A session is the right to write, given to one mount at a time. Each has an epoch, greater than all before it; a connection
    of an older epoch is refused, so a mount that was taken for dead cannot write again. A mount whose connection broke may
    come back to its session as long as no other took it.
    """

    def __init__(self, store: Store, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._store, self._monotonic = store, monotonic
        self.table = store.load()
        if ROOT_INO not in self.table.inodes:
            self.table.apply(("format", time.time_ns(), os.geteuid(), os.getegid()))
        self.epoch: int = store.fact("epoch", 0)
        self.applied: int = store.fact("applied", 0)
        self.placement: dict[str, Any] = NO_PLACEMENT.pack()
        self.session: Session | None = None
        if identity := store.fact("session"):
            self.session = Session(identity, monotonic(), monotonic(), ended=store.fact("ended", True))
        self._save()
        self.methods: Methods = {"page": self.page, "apply": self.apply, "placement": self.get_placement}

    def _save(self) -> None:
        """Make what has been applied durable. After a failure nothing is forgotten: the next save includes it."""
        identity = self.session.identity if self.session else None
        ended = self.session is None or self.session.ended
        facts = {"epoch": self.epoch, "applied": self.applied, "session": identity, "ended": ended}
        self._store.save(self.table, self.table.changes, facts)
        self.table.changes.clear()

    # -- sessions ----------------------------------------------------------------------------------------------------

    def greet(self, identity: Identity) -> Identity:
        """Give the session to this mount, or give it back, or refuse it."""
        if identity.get("role") != "mount":
            raise AuthenticationFailed(f"this server knows no role {identity.get('role')!r}")
        current = self.session
        if identity.get("epoch"):
            if not current or (identity["epoch"], identity["id"]) != (self.epoch, current.identity["id"]):
                raise AuthenticationFailed(f"fenced: another mount has attached since epoch {identity['epoch']}")
        else:
            if current and self._holds(current):
                raise AuthenticationFailed("already mounted on {host} at {mountpoint}".format(**current.identity))
            self._begin_session(identity)
        return {"epoch": self.epoch, "applied": self.applied, "next_ino": self.table.next_ino}

    def _holds(self, session: Session) -> bool:
        """True while the session's mount is connected and talking, or may not yet know that this server has restarted."""
        return not session.ended and self._monotonic() - session.heard_s < LEASE_S

    def _begin_session(self, identity: Identity) -> None:
        if self.session and self.session.peer:
            log.warning("the mount on %s stopped talking and is fenced", self.session.identity["host"])
            self.session.peer.disconnect()
        self.epoch, self.applied = self.epoch + 1, 0
        self.session = Session(identity, self._monotonic(), self._monotonic())
        self._save()
        log.info("epoch %d: mounted on %s at %s", self.epoch, identity["host"], identity["mountpoint"])

    def welcome(self, peer: Peer) -> None:
        """The session's connection is this one from now on."""
        session = self.session
        if session is None or session.identity["id"] != peer.identity["id"]:
            peer.disconnect()
            return
        if session.peer is not None:
            session.peer.disconnect()
        session.peer, session.heard_s, session.ended = peer, self._monotonic(), False
        session.snapshot = pages(self.table)
        self._save()

    def goodbye(self, peer: Peer) -> None:
        """The connection ended; the session stays until another mount takes it."""
        if self.session and self.session.peer is peer:
            self.session.peer, self.session.ended = None, True
            log.info("epoch %d: the mount's connection ended", self.epoch)
            self._save()

    def _session(self, peer: Peer) -> Session:
        """The session, if it is this connection's. Raises ESTALE."""
        if self.session is None or self.session.peer is not peer:
            raise FilesystemError(errno.ESTALE, "fenced: the session is not this connection's")
        self.session.heard_s = self._monotonic()
        return self.session

    # -- requests ----------------------------------------------------------------------------------------------------

    async def page(self, peer: Peer) -> Answer:
        """The next page of the snapshot, taken when the connection was welcomed; None after the last."""
        return Answer(next(self._session(peer).snapshot, None))

    async def apply(self, peer: Peer, first: int, ops: list[Op]) -> Answer:
        """Apply ops numbered from `first`, make them durable, and return the number of the last op applied.

        Ops that were applied before are skipped. ESTALE means that this table and the mount's replica have parted: an op
        failed here that had succeeded there, or ops are missing.
        """
        self._session(peer)
        for number, op in enumerate(ops, first):
            if number <= self.applied:
                continue
            if number > self.applied + 1:
                raise FilesystemError(errno.ESTALE, f"op {self.applied + 1} is missing before op {number}")
            try:
                self.table.apply(op)
            except FilesystemError as error:
                log.error("op %d %r failed here and not at the mount: %s", number, op, error)
                raise FilesystemError(errno.ESTALE, f"the replica has parted from the table at op {number}") from error
            self.applied = number
        self._save()
        return Answer(self.applied)

    async def get_placement(self, peer: Peer) -> Answer:
        """The newest placement map; asking for it is also how a mount says that it lives."""
        self._session(peer)
        return Answer(self.placement)

    # -- what the control plane sees ---------------------------------------------------------------------------------

    def statistics(self) -> dict[str, Any]:
        """Counts, the session if its mount is there, and the placement."""
        sessions = []
        if self.session and self.session.peer:
            since_s = self._monotonic() - self.session.started_s
            sessions = [{k: self.session.identity.get(k) for k in ("host", "mountpoint", "pid")} | {"since_s": since_s}]
        return {
            "inodes": len(self.table.inodes),
            "chunks": len(self.table.directory),
            "orphans": len(self.table.orphans),
            "epoch": self.epoch,
            "applied": self.applied,
            "sessions": sessions,
            "placement": self.placement,
        }

    def publish(self, placement: dict[str, Any]) -> None:
        """Hand a newer placement map to all who ask from now on."""
        if placement["epoch"] >= self.placement["epoch"]:
            self.placement = placement


class InodeTable:
    """The Ray actor's class. Every method is safe to call at any time; none waits for a client."""

    def __init__(self, store_directory: str, address: str, secret: bytes) -> None:
        """Load the store in `store_directory`, or make it, and listen on `address`.

        The port is kept beside the store, so that a restarted actor is found where its predecessor was.
        """
        logs.start()
        self._directory, self._address, self._secret = Path(store_directory), address, secret
        self._started_s = time.monotonic()
        self._service: MetaService
        self._endpoint: Endpoint
        self._thread = TrioThread("inode-table", partial(_serve, self))

    def open(self) -> tuple[Endpoint, Store]:
        """Load the store and begin to listen; for the server's own thread."""
        store = Store(self._directory / "inodes.sqlite")
        self._service = MetaService(store)
        port_file = self._directory / "port"
        port = int(port_file.read_text()) if port_file.exists() else 0
        try:
            self._endpoint = Endpoint(Address(self._address, port), self._secret, self._service)
        except OSError as error:
            log.warning("port %d is not free any more (%s); mounts must resolve again", port, error)
            self._endpoint = Endpoint(Address(self._address, 0), self._secret, self._service)
        port_file.write_text(str(self._endpoint.address.port))
        return self._endpoint, store

    def endpoint(self) -> tuple[str, int]:
        """Where mounts connect."""
        return self._endpoint.address.host, self._endpoint.address.port

    def secret(self) -> bytes:
        """The filesystem's secret, for whoever may call this actor: Ray's token guards that."""
        return self._secret

    def publish(self, placement: dict[str, Any]) -> None:
        """Take a packed PlacementMap from the scheduler."""
        self._thread.call(self._service.publish, placement)

    def statistics(self) -> dict[str, Any]:
        """Plain counts; see `MetaService.statistics`."""
        return self._thread.call(self._service.statistics) | {"uptime_s": time.monotonic() - self._started_s}

    def check(self) -> list[str]:
        """The table's broken invariants, one sentence each; empty when all is well."""
        return self._thread.call(self._service.table.check)

    def stop(self) -> None:
        """Stop serving and close the store."""
        self._thread.stop()


async def _serve(server: InodeTable, started: Callable[[], None]) -> None:
    """The server's thread. A function, since a class with coroutine methods would become an asyncio actor in Ray."""
    endpoint, store = server.open()
    try:
        started()
        await endpoint.serve()
    finally:
        store.close()
