"""This node's memory, as it really is: the tightest of the machine and the control groups this process lives in."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

from gridfs.types import NodeSample

_V1_UNLIMITED_BYTES = 1 << 62
"""Version 1 says "no limit" with a number near 2^63, rounded down to a page."""


@dataclass(frozen=True, slots=True)
class GroupFiles:
    """What the files of a memory control group are called in one version of the interface."""

    limit: str
    usage: str
    inactive_file: str
    """The line of `memory.stat` that counts page cache which can be reclaimed at once, groups below included."""


_V1 = GroupFiles("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
_V2 = GroupFiles("memory.max", "memory.current", "inactive_file")


def sample(proc: Path = Path("/proc"), groups: Path = Path("/sys/fs/cgroup")) -> NodeSample:
    """The memory of this node now. `proc` and `groups` say where the kernel shows it.

    Page cache that can be reclaimed counts as available, in the machine (MemAvailable, proc(5)) and in every group.
    A limit that cannot be read is no limit.
    """
    memory = psutil.virtual_memory()
    total, available = memory.total, memory.available
    for limit, free in _limits(proc, groups):
        total, available = min(total, limit), min(available, free)
    return NodeSample(total, min(max(0, available), total), _stalled_share(proc))


def _limits(proc: Path, groups: Path) -> Iterator[tuple[int, int]]:
    """(limit, available) of every limited group from this process's own up to the root."""
    for line in _read(proc / "self/cgroup").splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0" and not controllers:
            yield from _limits_above(groups, path, _V2)
        elif "memory" in controllers.split(","):
            yield from _limits_above(groups / "memory", path, _V1)


def _limits_above(root: Path, path: str, files: GroupFiles) -> Iterator[tuple[int, int]]:
    """A group that is not visible here (in a container its path is that of the host) is taken for the root."""
    group = root / path.lstrip("/")
    if not group.is_dir():
        group = root
    while True:
        limit = _read(group / files.limit).strip()
        if limit.isdigit() and int(limit) < _V1_UNLIMITED_BYTES:
            usage = int(_read(group / files.usage) or 0)
            yield int(limit), int(limit) - usage + _reclaimable_bytes(group / "memory.stat", files.inactive_file)
        if group == root:
            return
        group = group.parent


def _reclaimable_bytes(path: Path, wanted: str) -> int:
    for line in _read(path).splitlines():
        name, _, value = line.partition(" ")
        if name == wanted:
            return int(value)
    return 0


def _stalled_share(proc: Path) -> float:
    """`some avg10` of memory pressure, 0..1; 0 where the kernel does not measure it (docs.kernel.org, accounting/psi)."""
    for field in _read(proc / "pressure/memory").partition("\n")[0].split():
        name, _, value = field.partition("=")
        if name == "avg10":
            return float(value) / 100
    return 0.0


def _read(path: Path) -> str:
    """The file's text; empty when there is none, or when the kernel will not tell."""
    try:
        return path.read_text()
    except OSError:
        return ""
