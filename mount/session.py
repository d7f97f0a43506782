"""One mount, from attaching to the filesystem to the clean end."""

from __future__ import annotations

import ctypes
import functools
import gc
import logging
import os
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pyfuse3
import trio

from gridfs.buffers import keep_freed_memory
from gridfs.chunk.client import ChunkClient
from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError, GridfsError
from gridfs.meta.client import MetaClient
from gridfs.offload.client import JobsClient
from gridfs.types import Endpoints
from gridfs.vfs.filesystem import Filesystem
from mount import baton, device
from mount.greeting import Greeting
from mount.kernel import KernelCache
from mount.operations import Operations
from mount.options import TASKS_MIN, Options

log = logging.getLogger(__name__)

READ_AHEAD_KIB = 1024
"""The kernel then asks for 1 MiB at a time instead of 128 KiB: twice the throughput of sequential reads."""
SETTLE_TIMEOUT_S = 50.0
"""Shorter than the patience of 'gridfs umount' (60 s), which would otherwise give up before we can say what was lost."""
_TASKS_SHARE_OF_JOBS = 2
"""Of all requests handled at once, those that ask for jobs are 1/2 at most."""
GC_THRESHOLD = 20_000
"""Objects made and not freed before the garbage collector looks at them: some thousand files, each of which makes several."""
_OCTAL = re.compile(r"\\([0-7]{3})")
"""How mountinfo writes blanks and backslashes, proc(5)."""
_PR_SET_IO_FLUSHER = 57  # linux/prctl.h
_OOM_SCORE = -500
"""Killing the mount frees little and loses much; -1000 would make it immune, which no filesystem daemon should be."""


async def serve(mountpoint: str, endpoints: Endpoints, options: Options, mounted: Callable[[], None]) -> None:
    """Attach, mount, call `mounted`, and serve until the filesystem is unmounted or SIGTERM or SIGINT arrives.

    On a clean end everything written is durable at the inode table. Raises GridfsError when the filesystem cannot be reached,
    is mounted elsewhere, or the mountpoint cannot be used.
    """
    keep_freed_memory()
    _ask_for_mercy()
    try:
        async with trio.open_nursery() as nursery:
            filesystem, jobs = await _attach(mountpoint, endpoints, options, nursery)
            unmount = _mount(filesystem, jobs, mountpoint, options.flags)
            nursery.start_soon(_end_on_signal)
            try:
                mounted()
                await pyfuse3.main(TASKS_MIN, options.tasks)
            finally:
                await _detach(filesystem, unmount)
            nursery.cancel_scope.cancel()
    except* AuthenticationFailed as refused:
        raise GridfsError(f"the filesystem refused this mount: {refused.exceptions[0]}") from None
    except* ConnectionLost as lost:
        raise GridfsError(f"the filesystem does not answer: {lost.exceptions[0]}; 'gridfs status' tells more") from None


async def _attach(
    mountpoint: str, endpoints: Endpoints, options: Options, nursery: trio.Nursery
) -> tuple[Filesystem, JobsClient]:
    """Start the clients and the vfs in `nursery`, in the order in which they need each other."""
    meta = MetaClient(endpoints, mountpoint)
    await nursery.start(meta.run)
    chunks = ChunkClient(endpoints.secret, lambda: meta.client_identity, lambda: meta.placement, meta.settle)
    await nursery.start(chunks.run)
    filesystem = Filesystem(meta, chunks, limits=options.limits, replicas=options.replicas)
    await nursery.start(filesystem.run)
    secret, at_once = endpoints.secret, options.tasks // _TASKS_SHARE_OF_JOBS
    jobs = JobsClient(secret, lambda: meta.client_identity, lambda: meta.placement.jobs, os.geteuid(), at_once)
    await nursery.start(jobs.run)
    _spare_the_collector()
    log.info("epoch %d: attached, %d inodes", meta.epoch, len(meta.table.inodes))
    return filesystem, jobs


def _spare_the_collector() -> None:
    """What is there now stays; a collection looks at what came since, and not at each of some thousand requests."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_THRESHOLD, 10, 10)


def _mount(filesystem: Filesystem, jobs: JobsClient, mountpoint: str, flags: frozenset[str]) -> Callable[[], None]:
    """Mount; returns what unmounts."""
    fuse_options = {"fsname=gridfs", "subtype=gridfs", "default_permissions", *flags}
    served, unmount, greeting = mountpoint, functools.partial(pyfuse3.close, unmount=True), None
    try:
        if os.geteuid() == 0:
            fuse_options.add("allow_other")
            fd = device.mount(mountpoint, flags)
            served, unmount = f"/dev/fd/{fd}", functools.partial(_close, fd, mountpoint)
            greeting = Greeting(fd, functools.partial(_raise_read_ahead, mountpoint))
        baton.install(greeting)
        pyfuse3.init(Operations(filesystem, jobs), served, fuse_options)
        filesystem.kernel = KernelCache()
    except (RuntimeError, OSError) as error:
        raise GridfsError(f"cannot mount on {mountpoint} ({error}); is /dev/fuse there, and are you root?") from error
    return unmount


def _close(fd: int, mountpoint: str) -> None:
    """Close the device first: the kernel would ask a daemon that is at its end."""
    still_there = device.is_mounted(fd)
    pyfuse3.close(unmount=True)
    if still_there:
        device.unmount(mountpoint)


async def _detach(filesystem: Filesystem, unmount: Callable[[], None]) -> None:
    """Make everything durable, then let the mountpoint go; what could not be made durable is logged."""
    with trio.CancelScope(shield=True, deadline=trio.current_time() + SETTLE_TIMEOUT_S) as scope:
        try:
            await filesystem.end()
        except FilesystemError as error:
            log.error("unmounted with changes that could not be made durable: %s", error)
    if scope.cancelled_caught:
        log.error("unmounted with changes that could not be made durable within %s s", SETTLE_TIMEOUT_S)
    unmount()
    log.info("unmounted")


async def _end_on_signal() -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
        async for number in signals:
            log.info("ending on %s", signal.Signals(number).name)
            pyfuse3.terminate()


def _raise_read_ahead(mountpoint: str) -> None:
    """Set the mount's read-ahead, once the kernel has been greeted: then it sets its own."""
    try:
        for device_number in _device_numbers(mountpoint):
            Path(f"/sys/class/bdi/{device_number}/read_ahead_kb").write_text(str(READ_AHEAD_KIB))
    except OSError as error:
        log.info("read-ahead stays at the kernel's default: %s", error)


def _device_numbers(mountpoint: str) -> Iterator[str]:
    """Of what is mounted there by gridfs, from mountinfo: a stat would ask the daemon that is asking."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields[4]) == mountpoint and " - fuse.gridfs " in line:
            yield fields[2]


def _ask_for_mercy() -> None:
    """Tell the kernel that memory reclaim may depend on this process, where we may."""
    ctypes.CDLL(None).prctl(_PR_SET_IO_FLUSHER, 1, 0, 0, 0)
    try:
        Path("/proc/self/oom_score_adj").write_text(str(_OOM_SCORE))
    except OSError as error:
        log.info("the oom score stays as it is: %s", error)
