"""Writes and truncations by another than root take setuid and setgid away, whatever the kernel remembers of the mode.

Through the kernel: suite/test_permissions.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Iterable

import pytest

from gridfs.vfs.filesystem import Filesystem, NoKernel
from tests.vfs.cluster import USER

SETUID, PLAIN = 0o104755, 0o100755


class Kernel(NoKernel):
    """Notes which attributes it is made to forget."""

    def __init__(self) -> None:
        self.forgotten: set[int] = set()

    async def forget(self, inos: Iterable[int], names: Iterable[tuple[int, bytes]]) -> None:
        self.forgotten.update(inos)


async def write(filesystem: Filesystem, ino: int, fh: int) -> None:
    assert await filesystem.write(fh, 0, b"x") == 1
    await filesystem.data.fsync(fh)


async def truncate(filesystem: Filesystem, ino: int, fh: int) -> None:
    await filesystem.change(ino, size=0, clears_setuid=True)


async def reopen(filesystem: Filesystem, ino: int, fh: int) -> None:
    await filesystem.release(await filesystem.open(ino, os.O_WRONLY | os.O_TRUNC, clears_setuid=True))


@pytest.mark.parametrize("change", [write, truncate, reopen])
async def test_what_another_changes_loses_setuid_and_the_kernel_forgets_the_mode(
    filesystem: Filesystem, change: Callable[[Filesystem, int, int], Awaitable[None]]
) -> None:
    filesystem.kernel = kernel = Kernel()
    ino = (await filesystem.make(USER, 1, b"file", SETUID)).ino
    fh = await filesystem.open(ino, os.O_RDWR, clears_setuid=True)
    for _ in range(2):  # also when it was set while the file was open, and written
        await change(filesystem, ino, fh)
        assert (await filesystem.attributes(ino)).mode == PLAIN
        assert kernel.forgotten == {ino}
        await filesystem.change(ino, mode=SETUID)
        kernel.forgotten.clear()


async def test_what_root_writes_keeps_setuid(filesystem: Filesystem) -> None:
    ino = (await filesystem.make(USER, 1, b"file", SETUID)).ino
    fh = await filesystem.open(ino, os.O_RDWR)
    assert await filesystem.write(fh, 0, b"x") == 1
    await filesystem.data.fsync(fh)
    await filesystem.change(ino, size=0)
    assert (await filesystem.attributes(ino)).mode == SETUID
