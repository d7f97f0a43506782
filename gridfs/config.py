"""Where gridfs keeps its files, its limits and defaults, and how sizes are written.

Every constant that more than one room needs stands here, with where it comes from.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30

CHUNK_SIZE_BYTES = 8 * MIB
"""Default chunk: large enough that 3 GB/s is some 400 chunks a second, small enough to spread one file over nodes."""

SECRET_BYTES = 32
JOBS_STORE = "jobs.sqlite"
"""In the home of the head: what jobs there are and were."""
NAME_MAX_BYTES = 255
PATH_MAX_BYTES = 4096
SYMLINK_MAX_BYTES = PATH_MAX_BYTES - 1
XATTR_SIZE_MAX_BYTES = 64 * KIB
"""XATTR_SIZE_MAX of Linux; the kernel refuses more before a filesystem is asked."""
FILE_SIZE_MAX_BYTES = (1 << 63) - 1

_UNITS = {"": 1, "K": KIB, "M": MIB, "G": GIB, "T": 1 << 40}
_SIZE = re.compile(r"\s*(\d+)(\.\d+)?\s*(?:([KMGT])(?:i?B)?|B)?\s*", re.IGNORECASE)


def home() -> Path:
    """The folder that holds the cluster's record, the secret, logs and the inode table's store.

    $GRIDFS_HOME, else /var/lib/gridfs for root, else ~/.local/state/gridfs. It is not created here.
    """
    chosen = os.environ.get("GRIDFS_HOME")
    if chosen:
        return Path(chosen)
    return Path("/var/lib/gridfs") if os.geteuid() == 0 else Path.home() / ".local/state/gridfs"


def parse_size(text: str) -> int:
    """Bytes from "3GiB", "512M", "1.5g" or "4096"; units are powers of 1024. Raises ValueError with a sentence."""
    match = _SIZE.fullmatch(text)
    if not match:
        raise ValueError(f"{text!r} is not a size: write a number and a unit, such as 512MiB or 3GiB")
    unit = _UNITS[(match[3] or "").upper()]
    return int(match[1]) * unit + int(float(match[2] or 0) * unit)


def format_size(size_bytes: int) -> str:
    """A size for people: "3.0 GiB"; exact below 1 KiB."""
    size = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(size) < (1024 if unit == "B" else 1023.95):  # what would be rounded up to 1024.0 is 1.0 of the next
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1024
    return f"{size:.1f} TiB"


def write_private(path: Path, content: bytes) -> None:
    """Put `content` at `path`, readable by its owner only, whole or not at all; parent folders are made 0700."""
    for folder in reversed([path.parent, *path.parent.parents]):  # with parents=True, mkdir gives them another mode
        folder.mkdir(mode=0o700, exist_ok=True)
    staged = path.with_name(f".{path.name}.{os.getpid()}")
    descriptor = os.open(staged, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.replace(staged, path)
    except BaseException:
        staged.unlink(missing_ok=True)
        raise
