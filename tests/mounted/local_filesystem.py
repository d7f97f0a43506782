"""A filesystem of a test's own, brought up by the command `gridfs` as a person does it, in a home of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

from gridfs.cluster.processes import children
from tests.suite.testbed import PROJECT

BIN = PROJECT / ".venv/bin"
MIB = 1 << 20
COMMAND_S = 60.0
POLL_S = 0.05
NOTHING: Mapping[str, str] = MappingProxyType({})


def until(condition: Callable[[], object], timeout_s: float = 15.0) -> None:
    """Wait for the condition. Raises AssertionError when it does not come true in time."""
    deadline_s = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline_s, "this did not come about in time"
        time.sleep(POLL_S)


def refused(done: subprocess.CompletedProcess[str], *words: str, status: int = 1) -> None:
    """Assert that a command failed with one sentence for people that holds these words."""
    assert done.returncode == status, f"ended with {done.returncode}: {done.stdout}{done.stderr}"
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("gridfs: "), lines
    for word in words:
        assert word in lines[0]


@dataclass(frozen=True)
class LocalFilesystem:
    """One home, whether or not a filesystem is up in it."""

    home: Path
    mountpoint: Path

    def gridfs(
        self, *arguments: str | Path, under: Sequence[str] = (), environment: Mapping[str, str] = NOTHING
    ) -> subprocess.CompletedProcess[str]:
        """Run the command to its end, by way of the program `under` and with more environment if they are given."""
        return subprocess.run(
            [*under, str(BIN / "gridfs"), *map(str, arguments)],
            env={**os.environ, "COLUMNS": "80", "GRIDFS_HOME": str(self.home), **environment},
            capture_output=True,
            text=True,
            timeout=COMMAND_S,
            check=False,
        )

    def do(self, *arguments: str | Path, environment: Mapping[str, str] = NOTHING) -> str:
        """Run the command, which has to succeed without a complaint; returns what it printed."""
        done = self.gridfs(*arguments, environment=environment)
        assert (done.returncode, done.stderr) == (0, ""), f"{arguments} ended with {done.returncode}: {done.stderr}"
        return done.stdout

    def mount(self) -> None:
        """Mount it at the mountpoint, unless it is."""
        if not self.mounted:
            self.do("mount", self.mountpoint)

    @property
    def mounted(self) -> bool:
        """Whether the kernel lists the mountpoint; a dead mount counts."""
        return any(line.split()[4] == str(self.mountpoint) for line in Path("/proc/self/mountinfo").read_text().splitlines())

    def status(self) -> dict[str, Any]:
        """What `gridfs status --json` says, healthy or not."""
        status: dict[str, Any] = json.loads(self.gridfs("status", "--json").stdout)
        return status

    @property
    def record(self) -> dict[str, Any]:
        """What `gridfs up` has written down."""
        record: dict[str, Any] = json.loads((self.home / "cluster.json").read_text())
        return record

    def node(self, host: str) -> int:
        """The pid that is the whole node."""
        return next(int(node["pid"]) for node in self.record["nodes"] if node["host"] == host)

    def actor(self, host: str, title: str) -> int | None:
        """The pid of an actor's process on that host, None while it does not run."""
        for pid in descendants(self.node(host)):
            if command_line(pid).startswith(f"ray::{title}"):
                return pid
        return None

    def replace_actor(self, host: str, title: str) -> None:
        """Kill an actor's process and wait for another one."""
        pid = self.actor(host, title)
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        until(lambda: self.actor(host, title) not in (None, pid))

    def file_on(self, host: str) -> Path:
        """A new file of one whole chunk that is durable on that host, and of which the kernel has no copy."""
        for number in range(50):
            path = self.mountpoint / f"on-{host}-{time.monotonic_ns()}-{number}"
            with path.open("wb") as file:
                file.write(os.urandom(8 * MIB))
                os.fsync(file.fileno())
            forget_cached(path)
            if host in layout(path)["nodes"]:
                return path
        raise AssertionError(f"no chunk goes to {host}")


@contextmanager
def own_filesystem() -> Iterator[LocalFilesystem]:
    """A home and a mountpoint of their own; what is up or mounted in the end is taken away by force."""
    top = Path(tempfile.mkdtemp(prefix="gridfs-own-"))
    top.chmod(0o755)
    filesystem = LocalFilesystem(top / "home", top / "mnt")
    filesystem.mountpoint.mkdir()
    try:
        yield filesystem
    finally:
        if (filesystem.home / "cluster.json").exists():
            filesystem.do("down", "--force")
        shutil.rmtree(top)


def layout(path: Path) -> dict[str, Any]:
    """Which node holds how many chunks of the file."""
    packed: dict[str, Any] = json.loads(os.getxattr(path, "user.gridfs.layout"))
    return packed


def forget_cached(path: Path) -> None:
    """Make a file durable and drop the kernel's copy of it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
        os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(descriptor)


def descendants(pid: int) -> Iterator[int]:
    """All processes below one."""
    for child in children(pid):
        yield child
        yield from descendants(child)


def command_line(pid: int) -> str:
    """What a process was started as, or calls itself; empty once it has ended."""
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def running(text: str) -> list[str]:
    """The command lines on this machine that hold the text."""
    lines = (command_line(int(entry)) for entry in os.listdir("/proc") if entry.isdigit())
    return [line for line in lines if text in line]
