"""The mount's end of the metadata: a replica of the inode table, and the right to use it.

While the mount holds the write lease, an op is applied to the replica, answered from it, and sent on in the background. While
it shares, ops are executed by the server, and the replica follows. While it is dark, it asks to share before it is read.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import uuid
from collections.abc import Callable
from typing import Any

import trio

from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.meta.attachment import HEARTBEAT_S, ask, fetch, first_placement, while_talking
from gridfs.meta.inode import Inode
from gridfs.meta.lease import DARK, LEASE, SHARED
from gridfs.meta.rows import apply_rows
from gridfs.meta.table import Op, Table
from gridfs.meta.uplink import Batch, Call, Uplink
from gridfs.meta.watcher import Watcher
from gridfs.stream.connection import Connection
from gridfs.types import NO_PLACEMENT, Endpoints, PlacementMap

log = logging.getLogger(__name__)

QUEUE_MAX_OPS = 50_000
"""Ops not yet durable at the server; beyond it producers wait."""
GATHER_S = 0.02
"""While nobody waits for the server, ops gather this long, so that it applies fewer and larger batches."""
RETRY_S = 0.2
SETTLE_TIMEOUT_S = 60.0
OPS_TIMEOUT_S, NEWS_TIMEOUT_S = 40.0, 8.0
"""Patience with the server: it may have to fence a mount that hangs before it answers ops; news comes every second."""
UNMOUNTED = "unmounted"
"""Why nothing can be done any more after `leave`: what is under way then is answered that the session is over."""


class MetaClient:
    """A replica, and a session of the inode table's server.

    Owned by the trio thread that runs `run`. The replica changes in `apply` alone while `state` is lease, and in the task that
    follows the server otherwise; neither awaits while it does. `Uplink` holds the ops under way; one task sends them.
    """

    def __init__(self, endpoints: Endpoints, mountpoint: str) -> None:
        self.table = Table()
        self.placement: PlacementMap = NO_PLACEMENT
        self.epoch = 0
        self.state = DARK
        self.alone = True
        """No other mount is attached: the kernel may keep what it was told for long."""
        self.eldest = False
        """Of all mounts this one has been attached longest: what one of them has to do for all is its task."""
        self.watcher: Watcher | None = None
        self.failure: str | None = None
        self._endpoints = endpoints
        self._identity: dict[str, Any] = {
            "role": "mount",
            "host": os.environ.get("GRIDFS_HOST") or socket.gethostname(),
            "mountpoint": mountpoint,
            "pid": os.getpid(),
        }
        self._uplink = Uplink()
        self._more, self._urgent, self._progress = trio.Event(), trio.Event(), trio.Event()
        self._waiting = self._settling = 0
        self._active = True
        """A program has asked for something since the server was last told."""
        self._holding = False
        """The lease is coming: nothing more is sent to be executed."""
        self._readers = 0
        """Tasks that wait until the replica may be read."""
        self._asked_turn = 0
        """The turn for which the server has been asked to let us share."""
        self._number = 0
        """The replica has all ops up to this one."""
        self._attached = False
        self._over = False
        """The session is lost, and another would hide what was lost with it."""
        self._ops: Connection
        self._new_session()

    def _new_session(self) -> None:
        self._identity["id"] = uuid.uuid4().hex
        self.epoch = 0
        self._news: dict[str, Any] = {"boot": "", "number": 0, "reply": 0, "turn": 0}
        self.state = DARK

    @property
    def client_identity(self) -> dict[str, Any]:
        """This session's identity, to show to chunk servers."""
        return {"role": "mount", "client": self._identity["id"], "epoch": self.epoch}

    # -- ops ---------------------------------------------------------------------------------------------------------

    async def readable(self) -> None:
        """Return once the replica may be read, without yielding if it may be now. Raises EIO as `execute`."""
        self._active = True
        if self.state is DARK or self.failure:
            self._readers += 1
            try:
                await self._until(lambda: self.state is not DARK)
            finally:
                self._readers -= 1

    async def execute(self, op: Op) -> Any:
        """Carry out one op, and return what `Table.apply` does, with the replica as new. Raises as that, or EIO.

        Under the lease that is done without yielding, unless too many ops are queued. A crash of this process, or of the
        server, may lose the op until `settle` has returned.
        """
        self._active = True
        while self.state is LEASE:
            if len(self._uplink.applied) < QUEUE_MAX_OPS:
                return self.apply(op)
            await self._until(lambda: len(self._uplink.applied) < QUEUE_MAX_OPS)
        self._refuse_if_failed()
        call = Call(op)
        self._uplink.calls.append(call)
        self._more.set()
        await self._until(lambda: call.settled)
        value = call.result()
        if self._number < call.number:
            await self._until(lambda: self._number >= call.number)
        return self.table.inode(value) if isinstance(value, int) else value

    def apply(self, op: Op) -> Any:
        """Carry out one op under the lease; raises as `Table.apply`, having queued nothing."""
        self._refuse_if_failed()
        assert self.state is LEASE
        if op[0] == "make":
            op = (*op[:2], self.table.next_ino, *op[3:])
        result = None if op[0] == "disown" else self.table.apply(op)
        self._uplink.append(op)
        self._more.set()
        return result

    def post(self, op: Op) -> None:
        """Carry out an op some time that nobody waits for.

        Once the session is lost it is forgotten, and so it is when too many wait: then an atime stays, or an orphan, until the
        next mount.
        """
        if self.failure:
            return
        if self.state is LEASE:
            self.apply(op)
        elif len(self._uplink.calls) < QUEUE_MAX_OPS:
            self._uplink.calls.append(Call(op))
            self._more.set()

    async def settle(self) -> None:
        """Return once every op so far is durable at the server. Raises EIO after SETTLE_TIMEOUT_S, or if fenced."""
        self._refuse_if_failed()
        goal = self._uplink.last
        if self._uplink.saved < goal:
            self._settling += 1
            try:
                await self._until(lambda: self._uplink.saved >= goal)
            finally:
                self._settling -= 1

    async def _until(self, condition: Callable[[], bool]) -> None:
        """Wait for the server. Raises EIO when the session is lost, or nothing has come of it for SETTLE_TIMEOUT_S."""
        with trio.move_on_after(SETTLE_TIMEOUT_S) as scope:
            await self._while_not(lambda: bool(self.failure) or condition())
        self._refuse_if_failed()
        if scope.cancelled_caught:
            raise FilesystemError(errno.EIO, f"the inode table has not answered for {SETTLE_TIMEOUT_S} s")

    async def _while_not(self, condition: Callable[[], bool]) -> None:
        """Wait for the server, which is told without gathering ops; whoever waits bounds it."""
        self._waiting += 1
        self._more.set()
        self._urgent.set()
        try:
            while not condition():
                await self._progress.wait()
        finally:
            self._waiting -= 1
            if not self._waiting:
                self._urgent = trio.Event()

    def _refuse_if_failed(self) -> None:
        if self.failure:
            raise FilesystemError(errno.EIO, self.failure)

    # -- the session -------------------------------------------------------------------------------------------------

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Attach, load the replica, say `started`, then keep the session until cancelled, reconnecting as often as it takes.

        Raises ConnectionLost or AuthenticationFailed when the first attachment fails. Once attached it raises nothing: a
        session that is lost shows as `failure`, and in the log. One that had nothing to lose is followed by another.
        """
        while not self._over:
            await self._keep_trying(task_status.started)
            await trio.sleep(RETRY_S)
        await trio.sleep_forever()

    async def _keep_trying(self, started: Callable[[], None]) -> None:
        """One conversation; the first failure of all is raised, later ones end it."""

        def attached() -> None:
            if not self._attached:
                started()
            elif self.failure:
                log.warning("epoch %d: attached again", self.epoch)
            self._attached, self.failure = True, None

        try:
            await self._converse(attached)
        except* AuthenticationFailed as refused:
            if not self._attached:
                raise AuthenticationFailed(str(refused.exceptions[0])) from refused
            self._lose(str(refused.exceptions[0]))
        except* ConnectionLost as lost:
            if not self._attached:
                raise ConnectionLost(str(lost.exceptions[0])) from lost
            log.warning("the inode table's connection ended: %s", lost.exceptions[0])
            self._suspend()
        except* FilesystemError as errors:
            log.error("the inode table's connections are begun anew: %s", errors.exceptions[0])

    def _suspend(self) -> None:
        """The server does not hear of us, so it may be letting others change things: nothing may be relied on.

        Alone there is nobody to change anything: names, attributes and bytes go on, and what is to be durable waits.
        """
        if not self.alone:
            self.state = DARK
            self._news["turn"] = 0

    def _lose(self, reason: str) -> None:
        """The session is over. Without anything to lose, another begins."""
        if self.failure == UNMOUNTED:
            return
        clean = self._uplink.settled and (self.watcher is None or self.watcher.is_clean())
        log.error("this mount's session is lost: %s", reason)
        if not clean:
            log.error("changes that were not durable are lost with it; nothing can be done here before it is mounted again")
        self.failure = reason
        self._uplink.fail(FilesystemError(errno.EIO, reason))
        self._signal()
        self._over = not clean
        if clean:
            self._uplink = Uplink()
            self._new_session()

    async def _converse(self, attached: Callable[[], None]) -> None:
        """One pair of connections, until they end. Raises ConnectionLost, and AuthenticationFailed when the session is over."""
        ops = await self._open("ops", OPS_TIMEOUT_S)
        self.epoch = ops.greeting["epoch"]
        self._uplink.send_again_from(ops.greeting["seq"])
        try:
            follow = await self._open("follow", NEWS_TIMEOUT_S)
        except BaseException:
            ops.close()
            raise
        self._holding, self._asked_turn = False, 0
        async with trio.open_nursery() as nursery:
            await nursery.start(ops.run)
            await nursery.start(follow.run)
            self._ops = ops
            if not self._news["boot"]:
                await self._load(ops)
            nursery.start_soon(self._send, ops)
            nursery.start_soon(self._follow, follow, attached)

    async def _open(self, stream: str, timeout_s: float) -> Connection:
        identity = {**self._identity, "epoch": self.epoch, "stream": stream}
        address, secret = self._endpoints.inode_table, self._endpoints.secret
        return await Connection.open(address, secret, identity, reply_timeout_s=timeout_s)

    async def _load(self, connection: Connection) -> None:
        """Fetch the whole table, and let the replica be that. Meanwhile nobody waits for us, so nothing may be relied on."""
        self.state = DARK
        if self.alone and self.watcher is not None:
            self.alone = False
            await while_talking(connection, self.watcher.joined)
        table, greeting = await fetch(connection)
        self.table, self.alone = table, greeting["alone"]
        self._news = {"boot": greeting["boot"], "number": greeting["applied"], "reply": 0, "turn": 0}
        self._number = greeting["applied"]
        if not self.placement.epoch:
            self.placement = await first_placement(connection)
        if self.watcher is not None:
            self.watcher.reloaded()

    async def leave(self) -> None:
        """End the session, with everything durable; for a clean unmount. Raises as `settle`."""
        await self.settle()
        self.failure = UNMOUNTED
        with trio.move_on_after(NEWS_TIMEOUT_S):
            await ask(self._ops, "leave")

    # -- sending -----------------------------------------------------------------------------------------------------

    async def _send(self, ops: Connection) -> None:
        """Send what is queued, one batch at a time, until the connection or the session ends."""
        while True:
            leased, batch = True, self._uplink.next_applied()
            if batch is not None and not self._urgent.is_set():
                with trio.move_on_after(GATHER_S):
                    await self._urgent.wait()
                batch = self._uplink.next_applied()
            elif batch is None and self.state is LEASE and self._uplink.executing is None:
                self._apply_calls()
                batch = self._uplink.next_applied()
            if batch is None and (self._uplink.executing or (self.state is not LEASE and not self._holding)):
                leased, batch = False, self._uplink.next_calls()
            if batch is None and self._settling and self._uplink.saved < self._uplink.last:
                batch = Batch(self._uplink.last + 1, [], [])
            if batch is None and self._readers and self.state is DARK and self._asked_turn != self._news["turn"]:
                self._asked_turn = self._news["turn"]
                await ask(ops, "share")
                continue
            if batch is None:
                self._more = trio.Event()
                await self._more.wait()
                continue
            await self._send_batch(ops, batch, leased)

    async def _send_batch(self, ops: Connection, batch: Batch, leased: bool) -> None:
        self.table.changes.clear()  # the replica has no store
        try:
            one, other = await ask(ops, "ops", batch.first, batch.ops, leased, self._settling > 0)
        except FilesystemError as error:
            log.error("the inode table could not store %d ops, will try again: %s", len(batch.ops), error.strerror)
            await trio.sleep(HEARTBEAT_S)
            return
        if leased:
            self._uplink.acknowledge(one, other)
        else:
            self._uplink.executed(one, other)
        self._signal()

    def _apply_calls(self) -> None:
        """The lease has come: what waited to be executed is applied here."""
        while self._uplink.calls:
            call = self._uplink.calls.popleft()
            try:
                value = self.apply(call.op)
            except FilesystemError as error:
                call.finish(error=error)
            else:
                call.finish(value.ino if isinstance(value, Inode) else value)

    # -- following ---------------------------------------------------------------------------------------------------

    async def _follow(self, follow: Connection, attached: Callable[[], None]) -> None:
        """Take in the news, and thereby say that we live, until the connection or the session ends."""
        while True:
            said = {**self._news, "map": self.placement.epoch, "active": self._active}
            self._active = False
            try:
                news = await ask(follow, "follow", said)
            except FilesystemError as error:
                log.error("the inode table has no news: %s", error.strerror)
                await trio.sleep(HEARTBEAT_S)
                continue
            if "reload" in news:
                await self._load(follow)
                continue
            await self._take_in(news, follow)
            attached()

    async def _take_in(self, news: dict[str, Any], follow: Connection) -> None:
        """Rows first, then those who must know, then the number by which the server learns of it, then the turn."""
        if news["map"] is not None:
            self.placement = PlacementMap.unpack(news["map"])
        apply_rows(self.table, news["own"])
        changed = apply_rows(self.table, news["foreign"])
        self.table.next_ino = max(self.table.next_ino, news["next_ino"])
        self._uplink.acknowledge(0, news["saved"])
        if not news["more"]:
            self._number = news["number"]
        self.eldest = news["eldest"]
        self._signal()
        if changed and self.watcher is not None:
            await self.watcher.changed(changed)
        if self._news["boot"] != news["boot"]:
            self._news |= {"boot": news["boot"], "turn": 0}
            if self.watcher is not None:
                self.watcher.restarted()
        self._news["reply"] = news["reply"]
        if not news["more"]:
            self._news["number"] = news["number"]
            if news["turn"] != self._news["turn"]:
                await self._adopt(news["turn"], news["state"], news["alone"], follow)

    async def _adopt(self, turn: int, state: str, alone: bool, follow: Connection) -> None:
        """Do from now on as the server says; the next request tells it so."""
        if self.alone and not alone:
            self.alone = False
            if self.watcher is not None:
                await while_talking(follow, self.watcher.joined)
        self.alone = alone
        if state == LEASE and self.state is not LEASE:
            self._holding = self._uplink.executing is not None
            if self._holding:  # its rows must be here first; then the same news comes again
                await self._while_not(lambda: self._uplink.executing is None)
                return
        elif state != LEASE:
            if self.state is LEASE:
                self.state = SHARED  # nothing more is applied here
            await self._while_not(lambda: self._uplink.drained)
        self.state = {LEASE: LEASE, SHARED: SHARED, DARK: DARK}[state]
        self._news["turn"] = turn
        self._more.set()
        self._signal()

    def _signal(self) -> None:
        progress, self._progress = self._progress, trio.Event()
        progress.set()
