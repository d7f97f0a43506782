"""What tests of jobs' child processes start from: who submits, how to be somebody else, and that nothing is left behind."""

from __future__ import annotations

import os
import pickle
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from gridfs.config import GIB
from gridfs.offload import command, directory, group, usage
from gridfs.offload.group import Group
from gridfs.offload.job import Input, Job, Request, Submitter
from gridfs.offload.pipes import Buffer
from gridfs.offload.process import Child, Ending, Limits, Work

ME = Submitter(os.geteuid(), os.getegid(), tuple(os.getgroups()))
OTHER = Submitter(100_000 + os.getpid(), 65534, (1, 2))
"""A user who has no other processes, not even those of somebody who runs these tests at the same time."""
LIMITS = Limits(20.0)
LATE_S = 10.0
"""What ends a child takes a moment; what does not end it takes until its own time is over, which is longer."""
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
PREFIX = f"gridfs-test-{os.getpid()}-"
"""Of directories and groups: others may be running jobs on this machine."""
_SETTLE_S = 5.0


@pytest.fixture
def leaves_nothing(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """After the test there are no processes, threads, descriptors, directories and groups that were not there before."""
    for module in (directory, group):
        monkeypatch.setattr(module, "_PREFIX", PREFIX)
    before = left()
    yield
    deadline_s = time.monotonic() + _SETTLE_S
    while (now := left() - before) and time.monotonic() < deadline_s:
        threading.Event().wait(0.01)
    assert not now


def needs_group() -> None:
    """Skip the test where nothing holds root's processes."""
    made = Group(1, 10)
    if not made.path:
        pytest.skip("cannot make a control group for processes")
    made.remove()


def left() -> set[str]:
    processes = {f"process {pid}" for pid in usage.descendants(os.getpid())}
    threads = {f"thread {thread.name}" for thread in threading.enumerate()}
    directories = {str(path) for path in Path(gettempdir()).glob(f"{PREFIX}*")}
    descriptors = {
        f"descriptor {fd}" for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}") or is_pipe(fd)
    }
    groups = {str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{PREFIX}*")}
    return processes | threads | directories | descriptors | groups


def is_pipe(fd: str) -> bool:
    try:
        return ":" in os.readlink(f"/proc/self/fd/{fd}")
    except OSError:  # the listing's own
        return False


def detach_daemon() -> bytes:
    """In a child: start a process that leaves session and parent, and stays; what it says once it has."""
    out, into = os.pipe()
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            os.write(into, b"daemon")
            while True:
                signal.pause()
        os._exit(0)
    return os.read(out, 6)


def run(work: Work, submitter: Submitter = ME, limits: Limits = LIMITS, **options: Any) -> tuple[list[bytes], Ending, str]:
    """What comes out, how it ends, and its standard error."""
    with Child(work, submitter, limits, **options) as child:
        pieces = list(child.chunks())
        return pieces, child.wait(), child.stderr.decode()


def job(*words: str, submitter: Submitter = ME, size: int = 0, memory_bytes: int = GIB, timeout_s: float = 20.0) -> Job:
    """A command; one word alone is a shell's."""
    request = Request("command", words[0], words, shell=len(words) == 1, timeout_s=timeout_s, memory_bytes=memory_bytes)
    return Job(7, request, submitter, Input(1, "data", size), None, submitted_ns=0)


def run_command(asked: Job, *content: Buffer) -> tuple[bytes, Ending, str]:
    """Its standard output, how it ends, and its standard error."""
    with command.start(asked, content, spare_bytes=GIB) as child:
        output = b"".join(child.chunks())
        return output, child.wait(), child.stderr.decode()


def as_user(user: Submitter, call: Callable[[], Any]) -> Any:
    """What `call` returns in a process that runs as somebody else; only root may."""
    out, into = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            os.setgroups(user.groups)
            os.setresgid(*[user.gid] * 3)
            os.setresuid(*[user.uid] * 3)
            answer = pickle.dumps((call(), None))
        except BaseException as error:
            answer = pickle.dumps((None, error))
        os.write(into, answer)
        os._exit(0)
    os.close(into)
    with open(out, "rb") as answers:
        told = answers.read()
    os.waitpid(pid, 0)
    result, raised = pickle.loads(told)
    if raised:
        raise raised
    return result
