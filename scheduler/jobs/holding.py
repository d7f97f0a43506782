"""The chunk servers' side of a job: its chunks are held as they are when it is submitted, and let go when it has ended."""

from __future__ import annotations

import errno
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from uuid import uuid4

import trio

from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.offload.job import Input
from gridfs.stream.connection import Connection
from gridfs.types import Address

log = logging.getLogger(__name__)

HOLD_TIMEOUT_S = 30.0
"""For one server: it may have to seal many chunks first."""
RELEASE_TIMEOUT_S = 5.0


class Holding:
    """Connections to chunk servers, one each, made when they are needed. Owned by one trio thread; `run` owns their tasks."""

    def __init__(self, secret: bytes, addresses: Callable[[], Mapping[str, Address]]) -> None:
        """`addresses` tells where the servers that answer are, by identity."""
        self._secret, self._addresses = secret, addresses
        self._identity = {"role": "client", "client": uuid4().hex, "epoch": 0}
        self._connections: dict[str, Connection] = {}
        self._connecting: dict[str, trio.Lock] = defaultdict(trio.Lock)
        self._nursery: trio.Nursery

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Keep the connections until cancelled."""
        async with trio.open_nursery() as nursery:
            self._nursery = nursery
            task_status.started()
            await trio.sleep_forever()

    async def hold(self, job: int, source: Input) -> Input:
        """Have all copies of the input held under the job's id; gives the input with the servers that do hold it.

        Raises EIO with a sentence when a chunk is held nowhere; then, and when it is cancelled, nothing stays held.
        """
        wanted: dict[str, list[int]] = defaultdict(list)
        for index, servers in source.chunks.items():
            for server in servers:
                wanted[server].append(index)
        held, failures = set[str](), dict[str, str]()
        done = False
        try:
            async with trio.open_nursery() as nursery:
                for server, indices in wanted.items():
                    nursery.start_soon(self._hold_at, server, job, source.ino, indices, held, failures)
            found = {index: tuple(filter(held.__contains__, servers)) for index, servers in source.chunks.items()}
            missing = next((index for index, servers in found.items() if not servers), None)
            if missing is not None:
                reasons = "; ".join(failures[server] for server in source.chunks[missing]) or "no server has it"
                raise FilesystemError(errno.EIO, f"chunk {missing} of the file cannot be held: {reasons}")
            done = True
        finally:
            if not done:
                self.release_soon(job, wanted)
        return replace(source, chunks=found)

    async def _hold_at(
        self, server: str, job: int, ino: int, indices: list[int], held: set[str], failures: dict[str, str]
    ) -> None:
        try:
            with trio.fail_after(HOLD_TIMEOUT_S):
                await (await self._connection(server)).call("hold", job, ino, indices)
        except (ConnectionLost, FilesystemError, trio.TooSlowError) as error:
            failures[server] = f"{server}: {_reason(error)}"
            log.info("job %d: %s does not hold its chunks: %s", job, server, _reason(error))
        else:
            held.add(server)

    def release_soon(self, job: int, servers: Iterable[str]) -> None:
        """Have what is held for the job let go in the background; who cannot be told is told by `keep_holds` some time."""
        for server in set(servers):
            self._nursery.start_soon(self._release_at, server, job)

    async def _release_at(self, server: str, job: int) -> None:
        with trio.move_on_after(RELEASE_TIMEOUT_S):
            try:
                await (await self._connection(server)).call("release", job)
            except (ConnectionLost, FilesystemError) as error:
                log.info("job %d: %s was not told that it has ended: %s", job, server, error)

    async def _connection(self, server: str) -> Connection:
        """The standing connection to that server. Raises ConnectionLost."""
        addresses = self._addresses()
        self._forget_strangers(addresses)
        if server not in addresses:
            raise ConnectionLost("it is lost")
        async with self._connecting[server]:
            connection = self._connections.get(server)
            if connection is None or connection.lost:
                options = {"reply_timeout_s": HOLD_TIMEOUT_S}
                connection = await Connection.open(addresses[server], self._secret, self._identity, **options)
                self._connections[server] = connection
                await self._nursery.start(connection.run)
            return connection

    def _forget_strangers(self, addresses: Mapping[str, Address]) -> None:
        for server in [server for server in self._connections if server not in addresses]:
            self._connections.pop(server).close()
        for server in [server for server, lock in self._connecting.items() if server not in addresses and not lock.locked()]:
            del self._connecting[server]


def _reason(error: Exception) -> str:
    if isinstance(error, FilesystemError):
        return str(error.strerror)
    return str(error) or "it does not answer"
