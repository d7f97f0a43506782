"""What processes take: their threads, and the memory that is theirs, as /proc shows them.

All of it is sampled. Processes come and go meanwhile, so a sample may miss some; the next one finds them.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass

_KIB = 1024


@dataclass(frozen=True, slots=True)
class Usage:
    """What some processes take together."""

    threads: int = 0
    """Threads of all of them; a process has one at least."""
    memory_bytes: int = 0


def below(pid: int, enough: int, own_bytes: int = 0, shared_bytes: int | None = None) -> Usage:
    """What all descendants of `pid` take, `pid` itself apart. With more than `enough` threads it looks no further.

    Memory is resident anonymous memory, of each process less `own_bytes`: what it was forked with; and, unless
    `shared_bytes` is None, shared memory that it maps, less so much, which is somebody else's. Files in memory that nobody
    maps (in a tmpfs, or a memfd) are not seen.
    """
    threads = memory = 0
    for descendant in descendants(pid):
        status = _status(descendant)
        threads += status.get("Threads", 0)
        if threads > enough:
            break
        memory += max(0, status.get("RssAnon", 0) * _KIB - own_bytes)
        if shared_bytes is not None:
            memory += max(0, status.get("RssShmem", 0) * _KIB - shared_bytes)
    return Usage(threads, memory)


def descendants(pid: int) -> Iterator[int]:
    """The children of `pid`, theirs, and so on, parents first. Processes that multiply may keep it going for ever."""
    known = deque(_children(pid))
    while known:
        descendant = known.popleft()
        yield descendant
        known.extend(_children(descendant))


def anonymous_bytes() -> int:
    """Resident anonymous memory of this process: what a child of it is forked with."""
    return _status(os.getpid()).get("RssAnon", 0) * _KIB


def data_bytes() -> int:
    """What RLIMIT_DATA counts of this process now."""
    return _status(os.getpid()).get("VmData", 0) * _KIB


def threads_of(uid: int) -> int:
    """How many threads of that user there are, in all processes that can be seen: what RLIMIT_NPROC counts."""
    return sum(_status(pid).get("Threads", 0) for pid in _all() if _owner(pid) == uid)


def _all() -> Iterator[int]:
    return (int(entry) for entry in os.listdir("/proc") if entry.isdigit())


def _owner(pid: int) -> int | None:
    try:
        return os.stat(f"/proc/{pid}").st_uid
    except OSError:  # it has ended
        return None


def _children(pid: int) -> Iterator[int]:
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            yield from map(int, _read(f"/proc/{pid}/task/{thread}/children").split())
    except OSError:  # it has ended
        return


def _status(pid: int) -> dict[str, int]:
    """The numbers of /proc/PID/status, sizes in KiB; none if it has ended."""
    numbers = {}
    for line in _read(f"/proc/{pid}/status").splitlines():
        name, _, value = line.partition(":")
        first = value.split(maxsplit=1)[:1]
        if first and first[0].isdigit():
            numbers[name] = int(first[0])
    return numbers


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as file:
            return file.read()
    except OSError:
        return ""
