"""A mount whose scheduler is played: what the kernel makes of `user.offload` and `.gridfs`, without a testbed.

All of it runs in a thread of the test's process, so a test may set the jobs' states behind the mount's back.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyfuse3
import trio

from mount import device
from mount.kernel import KernelCache
from mount.operations import Operations
from tests.unit.fake_jobs import JobsService, Scheduler, scheduler_and_client
from tests.vfs.cluster import running

START_S = 15.0


class Doors:
    """One mount, at `top`."""

    def __init__(self, top: Path, scheduler: Scheduler, token: trio.lowlevel.TrioToken) -> None:
        self.top, self._scheduler, self._token = top, scheduler, token
        self.jobs = top / ".gridfs/jobs"

    @property
    def service(self) -> JobsService:
        """The jobs' service; its attributes may be set from the test's thread."""
        return self._scheduler.service

    def end_scheduler(self) -> None:
        """As kill -9 does."""
        trio.from_thread.run_sync(self._scheduler.end, trio_token=self._token)

    def start_scheduler(self) -> None:
        """Another one, elsewhere."""
        trio.from_thread.run_sync(self._scheduler.start, trio_token=self._token)

    def end(self) -> None:
        """Stop serving."""
        trio.from_thread.run_sync(pyfuse3.terminate, trio_token=self._token)


@contextmanager
def doors(directory: Path) -> Iterator[Doors]:
    """The mount below `directory`, for the length of the context."""
    top = directory / "mnt"
    top.mkdir()
    started: list[Doors] = []
    ready = threading.Event()

    def mounted(mount: Doors) -> None:
        started.append(mount)
        ready.set()

    def serve() -> None:
        try:
            trio.run(_serve, directory, top, mounted)
        finally:
            ready.set()

    thread = threading.Thread(target=serve, name="doors")
    thread.start()
    ready.wait(START_S)
    assert started, "the mount did not start"
    try:
        yield started[0]
    finally:
        started[0].end()
        thread.join(START_S)
        assert not thread.is_alive()


async def _serve(directory: Path, top: Path, mounted: Callable[[Doors], None]) -> None:
    async with running(directory) as cluster, cluster.mounted() as filesystem, scheduler_and_client() as (scheduler, client):
        fd = device.mount(str(top), frozenset())
        pyfuse3.init(Operations(filesystem, client), f"/dev/fd/{fd}", {"fsname=gridfs", "default_permissions", "allow_other"})
        filesystem.kernel = KernelCache()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(pyfuse3.main, 8, 16)
                mounted(Doors(top, scheduler, trio.lowlevel.current_trio_token()))
        finally:
            pyfuse3.close(unmount=True)
            device.unmount(os.fspath(top))
