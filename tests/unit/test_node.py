"""A node's memory is the tightest of the machine and the control groups around the process."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest

from gridfs import node
from gridfs.config import MIB


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A /proc without pressure figures."""
    (tmp_path / "proc/self").mkdir(parents=True)
    return tmp_path / "proc"


@pytest.fixture
def groups(tmp_path: Path) -> Path:
    """A /sys/fs/cgroup without groups."""
    (tmp_path / "cgroup").mkdir()
    return tmp_path / "cgroup"


def v1(group: Path, limit: int, usage: int, inactive: int = 0) -> None:
    """A memory group of version 1."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (group / "memory.usage_in_bytes").write_text(f"{usage}\n")
    (group / "memory.stat").write_text(f"cache 5\ntotal_inactive_file {inactive}\n")


def v2(group: Path, limit: str, usage: int, inactive: int = 0) -> None:
    """A group of version 2."""
    group.mkdir(parents=True, exist_ok=True)
    (group / "memory.max").write_text(f"{limit}\n")
    (group / "memory.current").write_text(f"{usage}\n")
    (group / "memory.stat").write_text(f"anon 5\ninactive_file {inactive}\n")


def test_without_limits_it_is_the_machine_s(proc: Path, groups: Path) -> None:
    assert node.sample(proc, groups).total_bytes == psutil.virtual_memory().total


def test_a_limit_of_version_1_counts_and_reclaimable_cache_is_available(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("5:cpu,cpuacct:/x\n4:memory:/one/two\n")
    v1(groups / "memory/one/two", 100 * MIB, 60 * MIB, 10 * MIB)
    sample = node.sample(proc, groups)
    assert (sample.total_bytes, sample.available_bytes) == (100 * MIB, 50 * MIB)


def test_the_tightest_ancestor_wins(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one/two\n")
    v2(groups / "one/two", "max", 10 * MIB)
    v2(groups / "one", str(80 * MIB), 70 * MIB)
    sample = node.sample(proc, groups)
    assert (sample.total_bytes, sample.available_bytes) == (80 * MIB, 10 * MIB)


def test_version_1_says_unlimited_with_a_number(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("4:memory:/\n")
    v1(groups / "memory", 9223372036854771712, MIB)
    assert node.sample(proc, groups).total_bytes == psutil.virtual_memory().total


def test_a_group_that_is_not_visible_is_taken_for_the_root(proc: Path, groups: Path) -> None:
    """In a container the path is that of the host, and the container's own group is mounted as the root."""
    (proc / "self/cgroup").write_text("0::/system.slice/of-the-host\n")
    v2(groups, str(50 * MIB), 20 * MIB)
    assert node.sample(proc, groups).available_bytes == 30 * MIB


def test_more_in_use_than_allowed_is_nothing_available(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/\n")
    v2(groups, str(50 * MIB), 60 * MIB)
    assert node.sample(proc, groups).available_bytes == 0


def test_stalls_come_from_pressure_stall_information(proc: Path, groups: Path) -> None:
    (proc / "pressure").mkdir()
    (proc / "pressure/memory").write_text("some avg10=12.50 avg60=1.00 avg300=0.00 total=5\nfull avg10=3.00\n")
    assert node.sample(proc, groups).stalled_share == 0.125
