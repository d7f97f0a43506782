"""The do-nothing filesystem of `tools/nullfs.py`, mounted for as long as a bench needs it."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NULLFS = Path(__file__).with_name("nullfs.py")
READY_S = 20.0
STOP_S = 10.0


class NothingFailed(Exception):
    """The do-nothing filesystem could not be mounted; the message says why."""


@contextmanager
def nothing() -> Iterator[Path]:
    """Mount it on a directory of its own, and take it down afterwards. Yields the mountpoint."""
    with tempfile.TemporaryDirectory(prefix="nullfs-") as mountpoint:
        daemon = subprocess.Popen(
            [sys.executable, str(NULLFS), mountpoint], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        try:
            _wait_until_ready(daemon)
            yield Path(mountpoint)
        finally:
            _stop(daemon, mountpoint)


def _wait_until_ready(daemon: subprocess.Popen[str]) -> None:
    assert daemon.stdout is not None and daemon.stderr is not None
    readable, _, _ = select.select([daemon.stdout], [], [], READY_S)
    if not readable or daemon.stdout.readline() != "ready\n":
        daemon.kill()
        last = daemon.stderr.read().strip().splitlines()[-1:]
        raise NothingFailed(f"the do-nothing filesystem did not mount: {''.join(last) or 'no word from it'}")


def _stop(daemon: subprocess.Popen[str], mountpoint: str) -> None:
    """Unmount, lazily so that a bench that failed half way leaves nothing mounted; end the daemon if that did not."""
    if os.path.ismount(mountpoint):
        unmount = ["umount", "-l"] if os.geteuid() == 0 else ["fusermount3", "-u", "-z"]
        subprocess.run([*unmount, mountpoint], check=False, capture_output=True)
    try:
        daemon.wait(STOP_S)
    except subprocess.TimeoutExpired:
        daemon.kill()
        daemon.wait()
