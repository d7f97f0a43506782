"""The options of a mount: what `-o` of mount.gridfs may say."""

from __future__ import annotations

from dataclasses import dataclass

from gridfs.config import MIB, format_size, parse_size
from gridfs.errors import GridfsError
from gridfs.meta.xattrs import REPLICAS_MAX
from gridfs.vfs.budget import LIMITS, Limits

MOUNT_OPTIONS = frozenset(
    "ro,rw,dev,nodev,suid,nosuid,exec,noexec,atime,noatime,relatime,sync,dirsync,allow_other,allow_root".split(",")  # noqa: SIM905
)
MEMORY, WRITE_WINDOW = "memory", "write-window"
SIZE_OPTIONS = (MEMORY, WRITE_WINDOW)
REPLICAS = "replicas"
MEMORY_MIN_BYTES, WINDOW_MIN_BYTES = 64 * MIB, MIB
TASKS_MIN, TASKS_MAX = 8, 64
"""Requests handled at once. Each task keeps a receive buffer of 1 MiB, so a low minimum would free and fault them in again."""
TASK_BYTES = 2 * MIB
"""The most that a request takes: its receive buffer, and the bytes of a write that waits for the window, or of an answer."""
_TASKS_SHARE, _WINDOW_SHARE, _WINDOW_MOST_SHARE = 4, 4, 2


@dataclass(frozen=True, slots=True)
class Options:
    """How to mount: `flags` are for the kernel and libfuse, the rest is ours."""

    flags: frozenset[str]
    memory_bytes: int = LIMITS.budget_bytes
    window_bytes: int = LIMITS.window_bytes
    replicas: int = 1
    """Copies of each chunk of a file that does not say how many it wants."""

    @property
    def tasks(self) -> int:
        """Requests handled at once, as many as a quarter of the memory holds: 32 by default."""
        return min(TASKS_MAX, self.memory_bytes // _TASKS_SHARE // TASK_BYTES)

    @property
    def limits(self) -> Limits:
        """What the requests leave to the bytes of files."""
        return Limits(self.memory_bytes - self.tasks * TASK_BYTES, self.window_bytes)


def parse_options(text: str) -> Options:
    """The options of `-o`; of two that name the same size the later one counts. Raises GridfsError with what is wrong."""
    flags, sizes, replicas = set(), dict[str, int](), 1
    for option in filter(None, text.split(",")):
        name, equals, value = option.partition("=")
        if equals and name in SIZE_OPTIONS:
            sizes[name] = _size(name, value)
        elif equals and name == REPLICAS:
            replicas = _replicas(value)
        elif option in MOUNT_OPTIONS:
            flags.add(option)
        else:
            known = ", ".join([*(f"{size}=SIZE" for size in SIZE_OPTIONS), f"{REPLICAS}=N", *sorted(MOUNT_OPTIONS)])
            raise GridfsError(f"mount option {option!r} is not known; known are {known}")
    memory_bytes = sizes.get(MEMORY, LIMITS.budget_bytes)
    window_bytes = sizes.get(WRITE_WINDOW, min(LIMITS.window_bytes, memory_bytes // _WINDOW_SHARE))
    _check(memory_bytes, window_bytes)
    return Options(frozenset(flags), memory_bytes, window_bytes, replicas)


def _replicas(value: str) -> int:
    if not (value.isascii() and value.isdigit() and 1 <= int(value) <= REPLICAS_MAX):
        raise GridfsError(f"mount option {REPLICAS}: {value!r} is not a number of copies from 1 to {REPLICAS_MAX}")
    return int(value)


def _size(name: str, value: str) -> int:
    try:
        return parse_size(value)
    except ValueError as error:
        raise GridfsError(f"mount option {name}: {error}") from None


def _check(memory_bytes: int, window_bytes: int) -> None:
    if memory_bytes < MEMORY_MIN_BYTES:
        raise GridfsError(
            f"{MEMORY} of {format_size(memory_bytes)} is too little for a mount: give {format_size(MEMORY_MIN_BYTES)} at least"
        )
    most = memory_bytes // _WINDOW_MOST_SHARE
    if not WINDOW_MIN_BYTES <= window_bytes <= most:
        raise GridfsError(
            f"{WRITE_WINDOW} of {format_size(window_bytes)} does not fit into {MEMORY} of {format_size(memory_bytes)}: "
            f"give {format_size(WINDOW_MIN_BYTES)} to {format_size(most)}"
        )
