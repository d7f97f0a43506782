"""The vfs object does what the model does, alone and with two mounts of one filesystem."""

from __future__ import annotations

import tempfile
from contextlib import ExitStack
from pathlib import Path

from tests.calls.machine import Machine, World, profile
from tests.calls.vfs import bed


class VfsMachine(Machine):
    """One mount. All times are compared: nothing stands between the calls and the filesystem."""

    asks_kernel = False
    mount_count = 1
    times: tuple[str, ...] = ("atime_ns", "mtime_ns", "ctime_ns")

    def __init__(self) -> None:
        super().__init__()
        self.context = ExitStack()
        directory = Path(self.context.enter_context(tempfile.TemporaryDirectory()))
        self.bed = self.context.enter_context(bed(directory, self.mount_count))
        self.worlds = [World("vfs", list(self.bed.mounts), self.times)]

    def teardown(self) -> None:
        try:
            if self.sound:
                self.bed.check()
                self.finish()
                self.bed.check_empty()
        finally:
            self.context.close()


class TwoMountsMachine(VfsMachine):
    """Which of two mounts makes a call is drawn: what has returned on one is seen by the next call on the other.

    atime is left out: a read of one mount may find another atime than the model's, which knows of one cache only.
    """

    mount_count = 2
    close_to_open = True
    times = ("mtime_ns", "ctime_ns")


TestVfs = VfsMachine.TestCase
TestVfs.settings = profile(examples=30, steps=40)

TestTwoMounts = TwoMountsMachine.TestCase
TestTwoMounts.settings = profile(examples=12, steps=40)
