"""Loading a whole table into a server that has an empty one."""

from __future__ import annotations

import errno
from collections.abc import Awaitable, Callable

from gridfs.errors import FilesystemError
from gridfs.meta.engine import Engine
from gridfs.meta.rows import Page, load_page
from gridfs.meta.table import Table
from gridfs.stream.endpoint import Answer, Peer

_STAGED = "staged"


class Loading:
    """The request `load`. What has arrived is kept with its connection, and is forgotten with it: nobody sees a part."""

    def __init__(self, engine: Engine, until_turn: Callable[[], Awaitable[None]]) -> None:
        self._engine, self._until_turn = engine, until_turn

    async def load(self, peer: Peer, page: Page | None, next_ino: int = 0) -> Answer:
        """Take a page in; after the last, with `page` None, put it all in the place of the server's table, durably.

        Raises, having changed nothing: EBUSY while a mount is attached, ENOTEMPTY unless there is the root alone, and EINVAL
        when what has arrived is no sound table.
        """
        await self._until_turn()  # which ends the session of a mount that has crashed
        self._engine.refuse_load()
        staged: Table = peer.identity.setdefault(_STAGED, Table())
        if page is not None:
            _take(staged, page)
            return Answer()
        del peer.identity[_STAGED]
        staged.next_ino = max(staged.next_ino, next_ino)
        self._engine.load(staged)
        return Answer()


def _take(table: Table, page: Page) -> None:
    try:
        load_page(table, page)
    except (KeyError, AssertionError, TypeError, ValueError) as error:
        raise FilesystemError(errno.EINVAL, f"a row cannot be loaded: {error!r}") from error
