"""A gate between a client and a server: what passes can be cut off, held back, and looked at."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from gridfs.types import Address
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import Real, remove_all

_PIECE_BYTES = 1 << 16


class Gate:
    """Passes connections on to `target`. Owned by the trio thread of the test.

    `cut` ends all connections and every new one, as if the network were gone; `hold` lets bytes lie, as if the client
    were stopped, and `hold_answers` only those of the server; `release` ends all that.
    """

    def __init__(self, target: Address) -> None:
        self.address: Address
        self.sent: list[bytearray] = []
        """What the client of each connection has said, in the order of connecting."""
        self._target = target
        self._scopes: set[trio.CancelScope] = set()
        self._cut = False
        self._requests, self._answers = trio.Event(), trio.Event()
        """Set while bytes of that direction pass."""
        self.release()

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Listen at `address` until cancelled."""
        listener = (await trio.open_tcp_listeners(0, host="127.0.0.1"))[0]
        self.address = Address(*listener.socket.getsockname())
        await trio.serve_listeners(self._pass_on, [listener], task_status=task_status)  # type: ignore[arg-type]

    def cut(self) -> None:
        """End every connection."""
        self._cut = True
        for scope in self._scopes:
            scope.cancel()

    def hold(self) -> None:
        """Keep every connection, and let no byte through."""
        self._requests = trio.Event()
        self.hold_answers()

    def hold_answers(self) -> None:
        """Let no byte of the server through: it does as it is asked, and nobody hears of it."""
        self._answers = trio.Event()

    def release(self) -> None:
        """Let everything through again."""
        self._cut = False
        self._requests.set()
        self._answers.set()

    async def _pass_on(self, client: trio.SocketStream) -> None:
        with trio.CancelScope() as scope:
            self._scopes.add(scope)
            try:
                if not self._cut:
                    await self._join(client, scope)
            except OSError:  # there is no server at the moment
                pass
            finally:
                self._scopes.discard(scope)
        await trio.aclose_forcefully(client)

    async def _join(self, client: trio.SocketStream, scope: trio.CancelScope) -> None:
        sent = bytearray()
        self.sent.append(sent)
        async with await trio.open_tcp_stream(*self._target) as server, trio.open_nursery() as nursery:
            nursery.start_soon(self._pump, client, server, scope, sent)
            nursery.start_soon(self._pump, server, client, scope)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, scope: trio.CancelScope, seen: bytearray | None = None
    ) -> None:
        """Bytes from one side to the other; both sides end together."""
        try:
            while True:
                piece = await source.receive_some(_PIECE_BYTES)
                await (self._answers if seen is None else self._requests).wait()
                if not piece:
                    break
                if seen is not None:
                    seen += piece
                await sink.send_all(piece)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        scope.cancel()


@asynccontextmanager
async def gated(real: Real) -> AsyncIterator[tuple[Gate, Filesystem]]:
    """An empty filesystem, attached by a mount that reaches the inode table through a gate."""
    async with trio.open_nursery() as nursery:
        gate = Gate(real.endpoints.inode_table)
        await nursery.start(gate.run)
        async with real.mounted(gate.address) as filesystem:
            await remove_all(filesystem)
            yield gate, filesystem
        nursery.cancel_scope.cancel()
