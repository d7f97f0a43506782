"""The mount's end of the scheduler's jobs: asked for, read and cancelled over a stream, and never waited for long."""

from __future__ import annotations

import errno
import math
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import asdict
from typing import Any

import trio

from gridfs.buffers import allocate
from gridfs.config import MIB
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.offload.job import Input, Output, Request, Submitter
from gridfs.stream.connection import Connection, Reply
from gridfs.types import Address

LIMIT_S = 10.0
"""For any answer, connecting included."""
TURN_S = 1.0
"""How long a request may wait until fewer than `at_once` are under way."""
SILENT_S = 5.0
"""For so long after it did not answer the scheduler is not asked again, so that a dead one does not take the mount's tasks."""
PAYLOAD_MAX_BYTES = 4 * MIB
"""Of what a job leaves; the scheduler keeps less."""
SUBMIT, ASK = "submit", "ask"
"""A connection each: answers come in order, and a submission takes as long as its chunks need to be held."""

Status = dict[str, Any]


class JobsClient:
    """Asks the scheduler that the newest placement map names. Owned by one trio thread; `run` owns the connections."""

    def __init__(
        self,
        secret: bytes,
        identity: Callable[[], dict[str, Any]],
        address: Callable[[], Address | None],
        mounter_uid: int,
        at_once: int = 16,
    ) -> None:
        """`identity` is the session's at present; `mounter_uid` is who has mounted, and may submit jobs by default."""
        self._secret, self._identity, self._address, self._mounter_uid = secret, identity, address, mounter_uid
        self._turns = trio.CapacityLimiter(at_once)
        self._nursery: trio.Nursery
        self._connections: dict[str, tuple[Address, Connection]] = {}
        self._connecting = {SUBMIT: trio.Lock(), ASK: trio.Lock()}
        self._silent_until_s = -math.inf

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Hold the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    # -- requests ----------------------------------------------------------------------------------------------------

    async def submit(self, request: Request, submitter: Submitter, source: Input, output: Output | None) -> int:
        """Queue a job; returns its id. Raises EAGAIN, EPERM, EINVAL, EIO as the scheduler does, EAGAIN without its answer."""
        packed = (asdict(request), asdict(submitter), asdict(source), None if output is None else asdict(output))
        try:
            job: int = (await self._ask(SUBMIT, "submit", *packed, self._mounter_uid)).result
        except ConnectionLost as lost:
            raise FilesystemError(errno.EAGAIN, f"the scheduler does not answer: {lost}") from lost
        return job

    async def newest(self, ino: int, uid: int) -> Status | None:
        """The status of the newest job on that file which `uid` may see, None if there is none. Raises EIO."""
        status: Status | None = await self._asked("newest", ino, uid)
        return status

    async def status(self, job: int, uid: int) -> Status:
        """The job's status. Raises ENOENT if there is none that `uid` may see, EIO."""
        status: Status = await self._asked("status", job, uid)
        return status

    async def visible(self, uid: int) -> list[Status]:
        """The jobs that `uid` may see, newest first. Raises EIO."""
        return list(await self._asked("list", uid))

    async def read(self, job: int, uid: int, what: str) -> bytes:
        """What a job has left: its status, result, stdout or stderr. Raises ENOENT, EIO."""
        return (await self._settled("read", job, uid, what, into_bytes=PAYLOAD_MAX_BYTES))[1]

    async def cancel(self, job: int, uid: int) -> bool:
        """End the job; False if it has ended. Raises ENOENT, EIO."""
        return bool(await self._asked("cancel", job, uid))

    async def cancel_newest(self, ino: int, uid: int) -> bool:
        """End the newest job on that file; False if none of `uid` has not ended. Raises EIO."""
        return bool(await self._asked("cancel_newest", ino, uid))

    # -- the stream --------------------------------------------------------------------------------------------------

    async def _asked(self, method: str, *arguments: Any) -> Any:
        return (await self._settled(method, *arguments))[0]

    async def _settled(self, method: str, *arguments: Any, into_bytes: int = 0) -> tuple[Any, bytes]:
        """The result and the payload of what may be carried out twice: a scheduler that was restarted is found at once."""
        for attempt in (1, 2):
            buffer = memoryview(allocate(into_bytes))
            try:
                reply = await self._ask(ASK, method, *arguments, into=buffer)
                return reply.result, bytes(buffer[: reply.payload_bytes])
            except ConnectionLost as lost:
                if attempt == 2 or self._is_silent:
                    raise FilesystemError(errno.EIO, f"the scheduler does not answer: {lost}") from lost
        raise AssertionError

    async def _ask(self, kind: str, method: str, *arguments: Any, into: memoryview | None = None) -> Reply:
        """The settled reply. Raises FilesystemError as the scheduler does, ConnectionLost when it does not answer in time."""
        if self._is_silent:
            raise ConnectionLost("it has not answered just now")
        async with self._turn():
            try:
                with trio.fail_after(LIMIT_S):
                    reply = (await self._connection(kind)).submit(method, *arguments, into=into)
                    await reply.wait()
                    return reply
            except trio.TooSlowError:
                self._silent_until_s = trio.current_time() + SILENT_S
                self._give_up(kind)
                raise ConnectionLost(f"no answer within {LIMIT_S:.0f} s") from None

    def _give_up(self, kind: str) -> None:
        """End the connection: the scheduler then drops submissions for whose answer nobody waits."""
        if kind in self._connections:
            self._connections[kind][1].close(ConnectionLost("an answer on it was overdue"))

    @property
    def _is_silent(self) -> bool:
        return trio.current_time() < self._silent_until_s

    @asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """A share of the mount's tasks, so that files are served however many ask for jobs."""
        try:
            with trio.fail_after(TURN_S):
                await self._turns.acquire()
        except trio.TooSlowError:
            raise ConnectionLost("too many requests wait for it") from None
        try:
            yield
        finally:
            self._turns.release()

    async def _connection(self, kind: str) -> Connection:
        """The standing connection of this kind to where the scheduler is now."""
        address = self._address()
        if address is None:
            raise ConnectionLost("the filesystem has none that takes jobs")
        async with self._connecting[kind]:
            known, connection = self._connections.get(kind, (None, None))
            if connection is not None and known == address and not connection.lost:
                return connection
            if connection is not None:
                connection.close(ConnectionLost("the scheduler is elsewhere now"))
            identity = {**self._identity(), "stream": kind}
            connection = await Connection.open(address, self._secret, identity)
            await self._nursery.start(connection.run)
            self._connections[kind] = address, connection
            return connection
