"""What a job's processes may do, and what they may not: the walls around them, put up between fork and the job's own code.

Everything here but `check` and `Place` runs in a forked child of a process with many threads: it takes no lock of theirs, logs
nothing, and closes nothing that Python would close again.

As root, a job's processes are in a PID namespace of their own: they see and signal each other alone, and all of them die when
the first one does, however they detached themselves. In a mount namespace of their own they have a /proc that shows just them,
a private directory in memory, and a /dev/shm of their own. They run as the submitter, can gain no privilege, and the kernel's
OOM killer takes them first. Where the kernel refuses namespaces, or without root, they are found by who started whom, which a
process of the service's own user can evade by killing the one that keeps count.
"""

from __future__ import annotations

import ctypes
import gc
import itertools
import os
import resource
import signal
from collections.abc import Collection
from contextlib import suppress
from dataclasses import dataclass

from gridfs.offload import usage
from gridfs.offload.job import Submitter

ENVIRONMENT = {
    "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
    "LANG": "C.UTF-8",
    "HOME": "/nonexistent",
}
"""All that a job finds in its environment, besides GRIDFS_JOB, its id, and TMPDIR, its directory."""
OPEN_FILES_MAX = 1024
_NICE = 10
_KILLED_AT_ONCE = 10_000
_UMASK = 0o022
_OOM_SCORE = "1000"

_CLONE_NEWNS, _CLONE_NEWPID = 0x00020000, 0x20000000  # linux/sched.h
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER, _PR_SET_NO_NEW_PRIVS = 1, 36, 38  # linux/prctl.h
_MS_NOSUID, _MS_NODEV, _MS_NOEXEC, _MS_REC, _MS_SLAVE = 2, 4, 8, 1 << 14, 1 << 19  # sys/mount.h

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Place:
    """Where and as whom a job runs."""

    job: int
    submitter: Submitter
    directory: str
    """Its own, empty; it starts there."""
    memory_bytes: int
    threads_max: int


def check(submitter: Submitter) -> None:
    """PermissionError, with a sentence, if this process cannot run anything as that user."""
    if os.geteuid() not in (0, submitter.uid):
        raise PermissionError(f"the service runs as user {os.geteuid()}, so it cannot run jobs of user {submitter.uid}")


def separate() -> bool:
    """Make the next child of this thread the first process of a new PID namespace.

    False where that may not be done. This thread can have no other children after that one has ended.
    """
    return os.geteuid() == 0 and _libc.unshare(_CLONE_NEWPID) == 0


def detach() -> None:
    """In a fresh child: forget what it inherits and must not use: signal handlers, the mask, the session.

    What Python has allocated so far is never collected here: its finalizers are the parent's business.
    """
    gc.freeze()
    with suppress(ValueError):
        signal.set_wakeup_fd(-1)
    for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP}:
        with suppress(OSError, ValueError):  # some are the C library's
            signal.signal(number, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_SETMASK, [])
    os.setsid()


def close_all_but(kept: Collection[int]) -> None:
    """In a child: close all other descriptors. No Python object that owns one may go away after that."""
    for fd in map(int, os.listdir("/proc/self/fd")):
        if fd not in kept:
            with suppress(OSError):  # that of the listing itself
                os.close(fd)


def keep_count(separated: bool, place: Place) -> None:
    """In the first process of a job: die with the parent's thread, and be who gets what the job's processes abandon."""
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))
    _libc.prctl(_PR_SET_CHILD_SUBREAPER, ctypes.c_ulong(1))
    with suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
        file.write(_OOM_SCORE)
    if separated and _libc.unshare(_CLONE_NEWNS) == 0:
        _mount(None, "/", None, _MS_REC | _MS_SLAVE)
        _mount("proc", "/proc", "proc", _MS_NOSUID | _MS_NODEV | _MS_NOEXEC)
        owner = f"mode=0700,uid={place.submitter.uid},gid={place.submitter.gid}"
        for own in (place.directory, "/dev/shm"):  # the node's has the object store in it, and is not to be filled
            _mount("job", own, "tmpfs", _MS_NOSUID | _MS_NODEV, f"size={place.memory_bytes},{owner}")


def _mount(source: str | None, target: str, kind: str | None, flags: int, data: str = "") -> None:
    """A mount that is refused leaves what is there, which does too."""
    names = [None if name is None else name.encode() for name in (source, target, kind)]
    _libc.mount(*names, ctypes.c_ulong(flags), data.encode())


def confine(place: Place) -> None:
    """In the process that is to run the job's own code: become the submitter, within its limits, in its directory.

    Raises OSError where that fails: then nothing may be run. `limit_data` is apart, since it depends on what comes next.
    """
    parent = os.getppid()
    os.nice(_NICE)
    os.umask(_UMASK)
    os.chdir(place.directory)
    _lower(resource.RLIMIT_CORE, 0)
    _lower(resource.RLIMIT_NOFILE, OPEN_FILES_MAX)
    _lower(resource.RLIMIT_NPROC, place.threads_max)
    if os.geteuid() == 0:
        os.setgroups(place.submitter.groups)
        os.setresgid(*[place.submitter.gid] * 3)
        os.setresuid(*[place.submitter.uid] * 3)
    if place.submitter.uid:
        _libc.prctl(_PR_SET_NO_NEW_PRIVS, *map(ctypes.c_ulong, (1, 0, 0, 0)))
    _libc.prctl(_PR_SET_PDEATHSIG, ctypes.c_ulong(signal.SIGKILL))  # becoming another user has taken it back
    if os.getppid() != parent:
        raise ProcessLookupError("the process that keeps count has ended")
    os.environ.clear()
    os.environ.update({**ENVIRONMENT, "GRIDFS_JOB": str(place.job), "TMPDIR": place.directory})


def limit_data(limit_bytes: int) -> None:
    """Bound private writable memory (heap, anonymous mappings, RLIMIT_DATA) of each process from here on, one by one.

    Shared mappings, those of the object store among them, are not counted.
    """
    _lower(resource.RLIMIT_DATA, limit_bytes)


def _lower(limited: int, wanted: int) -> None:
    _, hard = resource.getrlimit(limited)
    value = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(limited, (value, value))


def kill_below(pid: int) -> None:
    """Kill descendants of `pid`, those that are there now at most: for where there is no namespace to kill."""
    for descendant in itertools.islice(usage.descendants(pid), _KILLED_AT_ONCE):
        with suppress(OSError):
            os.kill(descendant, signal.SIGKILL)


def end_children() -> None:
    """Kill all descendants of this process, which is the one that keeps count, and wait for them."""
    with suppress(ChildProcessError):
        while True:
            kill_below(os.getpid())
            while os.waitpid(-1, os.WNOHANG) != (0, 0):
                pass
            os.sched_yield()
