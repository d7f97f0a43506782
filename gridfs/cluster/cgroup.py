"""A memory limit of its own for each node of a testbed, so that nodes on one machine do not share one memory figure.

Control groups of version 1 and 2. Where they cannot be written (in a container, say) a node goes without, and the
caller gets the reason to keep in its record.
"""

from __future__ import annotations

import time
from pathlib import Path

_V1 = Path("/sys/fs/cgroup/memory")
_V2 = Path("/sys/fs/cgroup")
_REMOVE_TIMEOUT_S = 3.0


def create(cluster: str, host: str, limit_bytes: int) -> tuple[Path | None, str]:
    """Make the group `cluster/host` limited to `limit_bytes`; returns (its folder, "") or (None, why there is none)."""
    try:
        if (_V1 / "memory.limit_in_bytes").exists():
            return _create_v1(_V1 / cluster / host, limit_bytes), ""
        if "memory" in _controllers(_V2):
            return _create_v2(_V2 / cluster / host, limit_bytes), ""
    except OSError as error:
        return None, f"no memory limit: {error}"
    return None, "no memory limit: this machine has no memory control group"


def remove(cluster: str) -> None:
    """Remove all groups of a cluster; none left over is no error, and one still in use is waited for briefly."""
    deadline = time.monotonic() + _REMOVE_TIMEOUT_S
    for top in (_V1 / cluster, _V2 / cluster):
        while top.exists():
            for folder in (*(child for child in top.iterdir() if child.is_dir()), top):
                try:
                    folder.rmdir()
                except OSError:
                    continue
            if top.exists():
                if time.monotonic() > deadline:
                    break
                time.sleep(0.05)


def _create_v1(folder: Path, limit_bytes: int) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.limit_in_bytes").write_text(str(limit_bytes))
    return folder


def _create_v2(folder: Path, limit_bytes: int) -> Path:
    for parent in (folder.parent.parent, folder.parent):
        parent.mkdir(exist_ok=True)
        if "memory" not in (parent / "cgroup.subtree_control").read_text().split():
            (parent / "cgroup.subtree_control").write_text("+memory")
    folder.mkdir(exist_ok=True)
    (folder / "memory.max").write_text(str(limit_bytes))
    swap = folder / "memory.swap.max"
    if swap.exists():
        swap.write_text("0")
    return folder


def _controllers(root: Path) -> list[str]:
    try:
        return (root / "cgroup.controllers").read_text().split()
    except OSError:
        return []
