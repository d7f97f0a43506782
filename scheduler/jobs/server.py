"""The scheduler's server for jobs: its store, its settings and its endpoint, in a thread of their own."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from gridfs.config import JOBS_STORE
from gridfs.stream.endpoint import Endpoint
from gridfs.stream.thread import TrioThread
from gridfs.types import Address
from scheduler.jobs.dispatch import Fleet
from scheduler.jobs.functions import Functions
from scheduler.jobs.service import JobsService
from scheduler.jobs.settings import SettingsFile
from scheduler.jobs.store import JobStore

log = logging.getLogger(__name__)

SETTINGS = "offload.toml"
_PORT = "port"


class JobsServer:
    """Takes jobs from its start to `stop`. Its methods are for threads other than its own."""

    def __init__(self, home: Path, host: str, secret: bytes, functions: Functions, call: Callable[..., Any]) -> None:
        """Load the store in `home`, or make it, and listen on `host`, where an earlier server did if that port is free.

        Raises GridfsError when the store cannot be used, OSError when it cannot listen.
        """
        self._home, self._host, self._secret = home, host, secret
        self._functions, self._call = functions, call
        self.service: JobsService
        self.address: Address
        """Where mounts connect."""
        self._thread = TrioThread("jobs", partial(_serve, self))

    def open(self) -> tuple[Endpoint, JobStore]:
        """Load what there is and begin to listen; for the server's own thread."""
        store = JobStore(self._home / JOBS_STORE, hashlib.sha256(self._secret).hexdigest())
        self.service = JobsService(store, SettingsFile(self._home / SETTINGS), self._secret, self._functions, self._call)
        try:
            endpoint = Endpoint(Address(self._host, int(store.fact(_PORT, 0))), self._secret, self.service)
        except OSError as error:
            log.info("the port of before is not free any more (%s)", error)
            endpoint = Endpoint(Address(self._host, 0), self._secret, self.service)
        store.set_fact(_PORT, endpoint.address.port)
        self.address = endpoint.address
        return endpoint, store

    def update(self, fleet: Fleet) -> None:
        """The nodes as the newest cycle has found them."""
        self._thread.call(self.service.dispatcher.update, fleet)

    def take_broken(self) -> set[str]:
        """The hosts whose runner was lost since the last call."""
        return self._thread.call(self._take_broken)

    def _take_broken(self) -> set[str]:
        broken, self.service.dispatcher.broken = self.service.dispatcher.broken, set()
        return broken

    def statistics(self) -> dict[str, int]:
        """How many jobs wait and run."""
        queue = self.service.queue
        return self._thread.call(lambda: {"queued": queue.queued, "running": len(queue.running)})

    def stop(self) -> None:
        """Take and start no more; what runs goes on at its nodes, and nobody hears of it."""
        self._thread.stop()


async def _serve(server: JobsServer, started: Callable[[], None]) -> None:
    """The server's thread."""
    endpoint, store = server.open()
    try:
        async with trio.open_nursery() as nursery:
            await nursery.start(server.service.run)
            nursery.start_soon(endpoint.serve)
            started()
    finally:
        store.close()
