"""Random calls through the kernel: the filesystem does what a tmpfs does, and what the model does."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls.kernel import KernelCalls
from tests.calls.machine import Machine, World, profile, run
from tests.suite import testbed
from tests.suite.syscalls import filesystem_type
from tests.suite.testbed import PROJECT, Testbed

TMPFS, GRIDFS = Path("/dev/shm"), "fuse.gridfs"


@pytest.fixture
def tmpfs() -> Iterator[Path]:
    """A directory of a tmpfs."""
    assert filesystem_type(TMPFS) == "tmpfs"
    directory = Path(tempfile.mkdtemp(prefix="gridfs-suite-", dir=TMPFS))
    yield directory
    shutil.rmtree(directory)


class MountedMachine(Machine):
    """`roots` is one directory, as each mount shows it.

    A tmpfs agrees about everything but times. The kernel's clock is too coarse for them, so they are compared with the
    model's, and of gridfs alone. atime is left out, since reads that the page cache answers do not move it.
    """

    def __init__(self, roots: list[Path], tmpfs: Path) -> None:
        super().__init__()
        name = Path(tempfile.mkdtemp(dir=roots[0])).name
        self.mounts = [KernelCalls(root / name) for root in roots]
        self.tmpfs = KernelCalls(Path(tempfile.mkdtemp(dir=tmpfs)))
        self.close_to_open = len(roots) > 1
        times = ("mtime_ns", "ctime_ns") if filesystem_type(roots[0]) == GRIDFS else ()
        self.worlds = [World("tmpfs", [self.tmpfs], ()), World("mount", list(self.mounts), times)]

    def teardown(self) -> None:
        try:
            if self.sound:
                self.finish()
        finally:
            for calls in (*self.mounts, self.tmpfs):
                calls.close_all()


def test_random_calls_do_what_they_do_on_a_tmpfs_and_on_the_model(root: Path, tmpfs: Path) -> None:
    run(lambda: MountedMachine([root], tmpfs), profile(examples=30, steps=40))


@pytest.fixture
def second_mountpoint(bed: Testbed) -> Iterator[Path]:
    """The filesystem of the testbed, mounted once more, from another of its hosts."""
    mountpoint = Path(tempfile.mkdtemp(prefix="gridfs-second-"))
    try:
        bed.on("gpu1", PROJECT / ".venv/bin/gridfs", "mount", mountpoint)
        yield mountpoint
        bed.on("gpu1", PROJECT / ".venv/bin/gridfs", "umount", mountpoint)
    finally:
        mountpoint.rmdir()


def test_random_calls_on_two_mounts_do_what_they_do_on_one_tmpfs(root: Path, second_mountpoint: Path, tmpfs: Path) -> None:
    top = testbed.testbed().mountpoint
    roots = [root, second_mountpoint / root.relative_to(top)]
    run(lambda: MountedMachine(roots, tmpfs), profile(examples=8, steps=40))
