"""The inode table's server, as a Ray actor: its methods are the control plane; clients speak the stream protocol."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import trio

from gridfs import logs
from gridfs.meta.service import MetaService
from gridfs.meta.store import Store
from gridfs.stream.endpoint import Endpoint
from gridfs.stream.thread import TrioThread
from gridfs.types import Address

log = logging.getLogger(__name__)


class InodeTable:
    """The Ray actor's class. Every method is safe to call at any time; none waits for a client."""

    def __init__(self, store_directory: str, address: str, secret: bytes) -> None:
        """Load the store in `store_directory`, or make it, and listen on `address`.

        The port is kept beside the store, so that a restarted actor is found where its predecessor was.
        """
        logs.start()
        self._directory, self._address, self._secret = Path(store_directory), address, secret
        self._started_s = time.monotonic()
        self.service: MetaService
        self._endpoint: Endpoint
        self._thread = TrioThread("inode-table", partial(_serve, self))

    def open(self) -> tuple[Endpoint, Store]:
        """Load the store and begin to listen; for the server's own thread."""
        store = Store(self._directory / "inodes.sqlite")
        self.service = MetaService(store, self._secret)
        port_file = self._directory / "port"
        port = int(port_file.read_text()) if port_file.exists() else 0
        try:
            self._endpoint = Endpoint(Address(self._address, port), self._secret, self.service)
        except OSError as error:
            log.warning("port %d is not free any more (%s); mounts must resolve again", port, error)
            self._endpoint = Endpoint(Address(self._address, 0), self._secret, self.service)
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
        self._thread.call(self.service.publish, placement)

    def statistics(self) -> dict[str, Any]:
        """Plain counts; see `MetaService.statistics`."""
        return self._thread.call(self.service.statistics) | {"uptime_s": time.monotonic() - self._started_s}

    def check(self) -> list[str]:
        """The table's broken invariants, one sentence each; empty when all is well."""
        return self._thread.call(self.service.engine.table.check)

    def stop(self) -> None:
        """Stop serving and close the store."""
        self._thread.stop()


async def _serve(server: InodeTable, started: Callable[[], None]) -> None:
    """The server's thread. A function, since a class with coroutine methods would become an asyncio actor in Ray."""
    endpoint, store = server.open()
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.service.run)
            nursery.start_soon(endpoint.serve)
            started()
    finally:
        store.close()
