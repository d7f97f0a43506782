"""What the kernel may remember of names and attributes, and how it is made to forget."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable
from functools import partial

import pyfuse3
import trio

log = logging.getLogger(__name__)

KEEP_S = 300.0
"""While this is the only mount nothing changes behind its back, but by clients that have the kernel told of it."""
KEEP_BRIEFLY_S = 1.0
"""For what the kernel cannot well be told to forget: a directory that somebody is in would lose its path, and names that do not
exist are not listed anywhere."""
FORGET_S = 0.1
"""The kernel forgets a name only when no call is under way in its directory, and such a call may wait for whoever waits for
us. After this long the change is let go on; the name is forgotten as soon as that call has ended."""


class KernelCache:
    """The kernel's memory of one mount. The requests to forget may block, so they run in a thread, one at a time."""

    def __init__(self) -> None:
        self._threads = trio.CapacityLimiter(1)

    async def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        """These inodes and names (directory, name) have changed, by a client without a mount of its own."""
        with trio.move_on_after(FORGET_S):
            await self._run(partial(_forget, list(inos), list(names)))

    async def forget_all(self, known: Iterable[tuple[int, bytes, int]]) -> None:
        """Anything may change from now on; `known` lists (directory, name, inode) of all that was told."""
        rows = list(known)
        inos = {ino for _, _, ino in rows} | {pyfuse3.ROOT_INODE}
        directories = {parent for parent, _, _ in rows}
        names = [(parent, name) for parent, name, ino in rows if ino not in directories]
        await self._run(partial(_forget, list(inos), names))
        await trio.sleep(KEEP_BRIEFLY_S)

    async def _run(self, action: Callable[[], None]) -> None:
        await trio.to_thread.run_sync(action, abandon_on_cancel=True, limiter=self._threads)


def _forget(inos: list[int], names: list[tuple[int, bytes]]) -> None:
    for ino in inos:
        _tell(partial(pyfuse3.invalidate_inode, pyfuse3.InodeT(ino), attr_only=True))
    for parent, name in names:
        _tell(partial(pyfuse3.invalidate_entry, pyfuse3.InodeT(parent), pyfuse3.FileNameT(name)))


def _tell(request: Callable[[], None]) -> None:
    try:
        request()
    except FileNotFoundError:
        pass  # the kernel does not know it
    except OSError as error:
        log.debug("the kernel does not forget: %s", error)
