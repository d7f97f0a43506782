"""What a mount asks of the inode table's server to attach: the whole table, and where chunks may go."""

from __future__ import annotations

import errno
import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any

import trio

from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.meta.rows import load_page, loading
from gridfs.meta.table import Table
from gridfs.stream.connection import Connection, Reply
from gridfs.types import NO_PLACEMENT, PlacementMap

log = logging.getLogger(__name__)

HEARTBEAT_S = 1.0
PAGES_IN_FLIGHT = 3
"""While one page is put into the replica, the server makes the next."""
PLACEMENT_TIMEOUT_S = 10.0
"""How long an attaching mount waits for the first map; the scheduler publishes every second, and restarts within a few."""
_RETRY_S = 0.2


async def fetch(connection: Connection) -> tuple[Table, dict[str, Any]]:
    """The whole table, and what the server said about it; see `MetaService.attach`."""
    table = Table()
    greeting: dict[str, Any] = await ask(connection, "attach")
    with loading(table):
        pages = deque(connection.submit("page") for _ in range(PAGES_IN_FLIGHT))
        while page := await answer(pages.popleft()):
            pages.append(connection.submit("page"))
            load_page(table, page)
    table.next_ino = greeting["next_ino"]  # numbers of inodes that are gone are not used again
    return table, greeting


async def first_placement(connection: Connection) -> PlacementMap:
    """The newest map; a server that has just restarted knows none until the scheduler's next cycle, which is waited for.

    Without a map every chunk would look lost, and what a crash has left could not be collected before it is served.
    """
    with trio.move_on_after(PLACEMENT_TIMEOUT_S):
        while True:
            newest = PlacementMap.unpack(await ask(connection, "placement"))
            if newest.epoch:
                return newest
            await trio.sleep(_RETRY_S)
    log.warning(
        "nobody has said where the chunks are for %.0f s: files cannot be read until the scheduler is back",
        PLACEMENT_TIMEOUT_S,
    )
    return NO_PLACEMENT


async def ask(connection: Connection, method: str, *arguments: Any) -> Any:
    """Ask, and wait for the answer; raises as `answer`."""
    return await answer(connection.submit(method, *arguments))


async def answer(reply: Reply) -> Any:
    """The server's answer. ESTALE, which says that the session is over, is raised as AuthenticationFailed."""
    try:
        return await reply.wait()
    except FilesystemError as error:
        if error.errno == errno.ESTALE:
            raise AuthenticationFailed(error.strerror) from error
        raise


async def while_talking(connection: Connection, action: Callable[[], Awaitable[None]]) -> None:
    """Carry out what may take longer than the server's patience, and let it hear of us meanwhile."""

    async def talk() -> None:
        while True:
            await trio.sleep(HEARTBEAT_S)
            await ask(connection, "placement")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(talk)
        await action()
        nursery.cancel_scope.cancel()
