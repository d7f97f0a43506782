"""A child is who submitted it, in a place of its own, and finds nothing of the service's."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from tempfile import gettempdir
from typing import Any

import pytest

from gridfs.config import MIB
from gridfs.offload import group, keeper, sandbox, usage
from gridfs.offload.job import Submitter
from gridfs.offload.pipes import Buffer
from gridfs.offload.process import Child, Limits
from tests.unit.children import LIMITS, ME, OTHER, PREFIX, as_user, detach_daemon, leaves_nothing, needs_group, needs_root, run

__all__ = ["leaves_nothing"]

pytestmark = pytest.mark.usefixtures("leaves_nothing")

Write = Callable[[Buffer], None]
WHO = [ME, pytest.param(OTHER, marks=needs_root)]


def seen(look: Callable[[], Any], submitter: Submitter = ME, limits: Limits = LIMITS) -> Any:
    """What `look` returns in a child."""
    pieces, ending, stderr = run(lambda write: write(json.dumps(look()).encode()), submitter, limits)
    assert ending.error == "", stderr
    return json.loads(pieces[0])


@needs_root
@pytest.mark.parametrize("who", [Submitter(0, 0), OTHER, Submitter(1000, 1001, ())])
def test_it_is_the_submitter_with_its_groups(who: Submitter) -> None:
    ids = seen(lambda: [os.getresuid(), os.getresgid(), sorted(os.getgroups())], who)
    assert ids == [[who.uid] * 3, [who.gid] * 3, sorted(who.groups)]


@needs_root
def test_it_can_gain_no_privilege() -> None:
    status = seen(lambda: Path("/proc/self/status").read_text(), OTHER).splitlines()
    fields = dict(line.split(":\t", 1) for line in status if ":\t" in line)
    assert fields["NoNewPrivs"] == "1"
    assert [int(fields[name], 16) for name in ("CapInh", "CapPrm", "CapEff", "CapAmb")] == [0] * 4


@pytest.mark.parametrize("who", WHO)
def test_its_environment_is_clean(who: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "secret")
    environment = seen(lambda: dict(os.environ), who)
    assert environment.pop("TMPDIR").startswith(f"{gettempdir()}/{PREFIX}0-")
    assert environment == {**sandbox.ENVIRONMENT, "GRIDFS_JOB": "0"}


@pytest.mark.parametrize("who", WHO)
def test_it_starts_in_an_empty_directory_of_its_own(who: Submitter) -> None:
    def look() -> list[Any]:
        Path("made").write_text("by it")
        status = os.stat(".")
        return [os.getcwd(), os.listdir(), status.st_uid, status.st_mode & 0o777, os.stat("made").st_mode & 0o777]

    directory, *rest = seen(look, who)
    assert rest == [["made"], who.uid, 0o700, 0o644]
    assert not os.path.exists(directory)


@needs_root
def test_what_it_makes_there_is_limited() -> None:
    def work(_: Write) -> None:
        Path("large").write_bytes(bytes(9 * MIB))

    assert "No space left" in run(work, OTHER, Limits(20.0, 8 * MIB))[1].error


@pytest.mark.parametrize("who", WHO)
def test_no_descriptor_of_the_parent_is_open_in_it(who: Submitter, tmp_path: Path) -> None:
    def look() -> list[str]:
        return [
            os.readlink(f"/proc/self/fd/{fd}") for fd in os.listdir("/proc/self/fd") if os.path.lexists(f"/proc/self/fd/{fd}")
        ]

    with open(tmp_path / "secret", "w") as file:
        os.set_inheritable(file.fileno(), True)
        for number in (40, 300):
            os.dup2(file.fileno(), number)
        opened = as_root_sees(look, who)
        for number in (40, 300):
            os.close(number)
    kinds = sorted(path.partition(":")[0] for path in opened)
    assert kinds == ["/dev/null", "pipe", "pipe", "pipe", "pipe"]


def as_root_sees(look: Callable[[], list[str]], who: Submitter) -> list[str]:
    """A process that has become somebody else may not look at its own descriptors."""
    if who == ME:
        opened: list[str] = seen(look, who)
        return opened
    with Child(ready, who, LIMITS) as child:
        next(child.chunks())
        second = list(usage.descendants(os.getpid()))[-1]
        return [os.readlink(path) for path in Path(f"/proc/{second}/fd").iterdir()]


def ready(write: Write) -> None:
    write(b"ready")
    signal.pause()


@needs_root
def test_its_shared_memory_is_its_own_and_limited() -> None:
    """The node's has the object store in it."""
    made = Path(f"/dev/shm/gridfs-test-{os.getpid()}")

    def look() -> list[Any]:
        return [os.listdir("/dev/shm"), made.write_text("by it")]

    def fill(_: Write) -> None:
        made.write_bytes(bytes(9 * MIB))

    assert seen(look, OTHER) == [[], 5]
    assert not made.exists()
    assert "No space left" in run(fill, OTHER, Limits(20.0, 8 * MIB))[1].error
    assert not made.exists()


@needs_root
def test_it_sees_its_own_processes_alone() -> None:
    assert seen(lambda: sorted(int(name) for name in os.listdir("/proc") if name.isdigit()), OTHER) == [1, 2]


@needs_root
def test_it_cannot_end_the_one_that_keeps_count() -> None:
    def work(_: Write) -> None:
        for target in (1, os.getppid(), os.getpgid(1)):
            with pytest.raises(PermissionError):
                os.kill(target, signal.SIGKILL)

    assert run(work, OTHER)[1].error == ""


@needs_root
def test_killing_everybody_kills_nobody_else() -> None:
    def work(_: Write) -> None:
        with pytest.raises(ProcessLookupError):  # it does not kill itself, kill(2), and there is nobody else
            os.kill(-1, signal.SIGKILL)

    assert run(work, Submitter(0, 0))[1].error == ""


@pytest.mark.parametrize("who", WHO)
def test_its_limits(who: Submitter) -> None:
    def look() -> list[Any]:
        names = ("CORE", "NOFILE", "NPROC", "DATA")
        return [resource.getrlimit(getattr(resource, f"RLIMIT_{name}")) for name in names]

    core, files, processes, data = seen(look, who, Limits(20.0, 64 * MIB, threads=10))
    assert (core, files) == ([0, 0], [sandbox.OPEN_FILES_MAX] * 2)
    assert processes[0] == processes[1] > 0
    assert data[0] == data[1] >= 64 * MIB


@needs_root
@pytest.mark.parametrize("who", [Submitter(0, 0), OTHER])
def test_between_two_samples_it_cannot_multiply_either(who: Submitter, monkeypatch: pytest.MonkeyPatch) -> None:
    def work(write: Write) -> None:
        for forked in range(100):
            try:
                if os.fork() == 0:
                    signal.pause()
            except BlockingIOError:
                write(str(forked).encode())
                return

    if who.uid == 0:
        needs_group()
    else:
        monkeypatch.setattr(group, "_parent", lambda: None)  # its user's number of processes is limited anyway
    monkeypatch.setattr(keeper, "_SAMPLE_S", 60.0)
    pieces, ending, _ = run(work, who, Limits(20.0, threads=10))
    assert ending.error == ""
    assert 10 <= int(pieces[0]) <= 20


def test_signal_handlers_and_the_mask_are_as_in_a_fresh_process() -> None:
    def look() -> list[Any]:
        handled = [number for number in signal.valid_signals() if signal.getsignal(number) not in (signal.SIG_DFL, None)]
        return [handled, list(signal.pthread_sigmask(signal.SIG_BLOCK, [])), os.getsid(0) == os.getpid()]

    signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
    before = signal.signal(signal.SIGUSR2, lambda *_: None)
    assert seen(look) == [[], [], True]
    signal.signal(signal.SIGUSR2, before)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, [signal.SIGUSR1])


def test_the_kernel_takes_it_first() -> None:
    assert seen(lambda: Path("/proc/self/oom_score_adj").read_text().strip()) == "1000"


@needs_root
def test_a_service_that_is_not_root_runs_its_own_users_jobs_alone() -> None:
    def own() -> list[bytes]:
        return run(lambda write: write(str(os.getuid()).encode()), OTHER)[0]

    assert as_user(OTHER, own) == [str(OTHER.uid).encode()]
    with pytest.raises(PermissionError, match=f"runs as user {OTHER.uid}, so it cannot run jobs of user 0"):
        as_user(OTHER, lambda: run(lambda write: None, Submitter(0, 0)))


@needs_root
def test_without_root_what_detaches_itself_ends_too() -> None:
    def daemon(write: Write) -> None:
        write(detach_daemon())
        signal.pause()

    def cancelled() -> list[str]:
        with Child(daemon, OTHER, LIMITS) as child:
            next(child.chunks())
            child.cancel()
            failure = child.wait().failure
        return [failure, *map(str, usage.descendants(os.getpid()))]

    assert as_user(OTHER, cancelled) == ["cancelled"]
    assert processes_of(OTHER) == []


def processes_of(user: Submitter) -> list[str]:
    return [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and entry.exists() and entry.stat().st_uid == user.uid
    ]
