"""A node's memory is the tightest of the machine and the control groups around the process."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

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


# -- a machine of known size -----------------------------------------------------------------------------------------


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """1000 MiB, 600 of them available."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(total=1000 * MIB, available=600 * MIB))


def mib(proc: Path, groups: Path) -> tuple[float, float]:
    """(total, available) of a sample, in MiB."""
    sample = node.sample(proc, groups)
    return sample.total_bytes / MIB, sample.available_bytes / MIB


def unreadable(path: Path) -> None:
    """Reading it is an OSError, for root too."""
    path.unlink(missing_ok=True)
    path.mkdir(parents=True)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("cgroup", ["", "0::/\n", "0::/one/two\n", "4:memory:/one\n0::/\n"])
def test_without_files_to_say_otherwise_it_is_the_machine_s(cgroup: str, proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text(cgroup)
    assert mib(proc, groups) == (1000, 600)


@pytest.mark.usefixtures("machine")
def test_a_limit_above_the_machine_changes_nothing(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one\n")
    v2(groups / "one", str(5000 * MIB), 100 * MIB)
    assert mib(proc, groups) == (1000, 600)


@pytest.mark.usefixtures("machine")
def test_a_group_with_more_room_than_the_machine_has_left_gets_what_the_machine_has(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one\n")
    v2(groups / "one", str(900 * MIB), 100 * MIB)
    assert mib(proc, groups) == (900, 600)


@pytest.mark.usefixtures("machine")
def test_version_2_says_unlimited_with_a_word(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one\n")
    v2(groups / "one", "max", 999 * MIB)
    assert mib(proc, groups) == (1000, 600)


@pytest.mark.usefixtures("machine")
def test_reclaimable_cache_of_a_group_of_version_2_is_available(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one\n")
    v2(groups / "one", str(100 * MIB), 90 * MIB, 30 * MIB)
    assert mib(proc, groups) == (100, 40)


@pytest.mark.usefixtures("machine")
def test_version_1_counts_reclaimable_cache_of_the_groups_below_too(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("4:memory:/one\n")
    v1(groups / "memory/one", 100 * MIB, 90 * MIB)
    (groups / "memory/one/memory.stat").write_text(f"inactive_file {MIB}\ntotal_inactive_file {30 * MIB}\n")
    assert mib(proc, groups) == (100, 40)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("tight", ["", "one", "one/two", "one/two/three"])
def test_the_tightest_group_counts_wherever_it_is(tight: str, proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one/two/three\n")
    for path in ("", "one", "one/two", "one/two/three"):
        v2(groups / path, str((100 if path == tight else 400) * MIB), 50 * MIB)
    assert mib(proc, groups) == (100, 50)


@pytest.mark.usefixtures("machine")
def test_the_least_total_and_the_least_available_may_be_of_different_groups(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one/two\n")
    v2(groups / "one/two", str(100 * MIB), 10 * MIB)
    v2(groups / "one", str(400 * MIB), 380 * MIB)
    assert mib(proc, groups) == (100, 20)


@pytest.mark.usefixtures("machine")
def test_a_sibling_s_limit_does_not_count(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("0::/one\n")
    v2(groups / "one", "max", 0)
    v2(groups / "other", str(MIB), 0)
    assert mib(proc, groups) == (1000, 600)


@pytest.mark.usefixtures("machine")
def test_nested_groups_of_version_1(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("9:hugetlb,memory:/one/two\n")
    v1(groups / "memory/one/two", 9223372036854771712, 10 * MIB)
    v1(groups / "memory/one", 200 * MIB, 150 * MIB)
    assert mib(proc, groups) == (200, 50)


@pytest.mark.usefixtures("machine")
def test_only_the_memory_controller_of_version_1_counts(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("4:cpu,cpuacct:/one\n1:name=systemd:/one\n")
    v1(groups / "memory/one", MIB, 0)
    assert mib(proc, groups) == (1000, 600)


@pytest.mark.usefixtures("machine")
def test_a_group_of_version_1_that_is_not_visible_is_taken_for_the_root(proc: Path, groups: Path) -> None:
    (proc / "self/cgroup").write_text("4:memory:/docker/0123\n")
    v1(groups / "memory", 50 * MIB, 20 * MIB)
    assert mib(proc, groups) == (50, 30)


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("file", ["memory.max", "memory.stat", "memory.current"])
def test_a_file_that_cannot_be_read_stops_nothing(file: str, proc: Path, groups: Path) -> None:
    """A limit that cannot be read is no limit, and its ancestors' limits still count."""
    (proc / "self/cgroup").write_text("0::/one/two\n")
    v2(groups / "one/two", str(100 * MIB), 50 * MIB, 10 * MIB)
    v2(groups / "one", str(300 * MIB), 260 * MIB)
    unreadable(groups / "one/two" / file)
    assert mib(proc, groups) == (300 if file == "memory.max" else 100, 40)


@pytest.mark.usefixtures("machine")
def test_nothing_readable_at_all_leaves_the_machine_s(proc: Path, groups: Path) -> None:
    unreadable(proc / "self/cgroup")
    unreadable(proc / "pressure/memory")
    assert mib(proc, groups) == (1000, 600)
    assert node.sample(proc, groups).stalled_share == 0


@pytest.mark.usefixtures("machine")
@pytest.mark.parametrize("usage", [0, 50, 100, 150])
@pytest.mark.parametrize("inactive", [0, 40, 200])
def test_available_is_never_negative_and_never_above_the_total(usage: int, inactive: int, proc: Path, groups: Path) -> None:
    """The kernel's figures are read one after the other, so they need not fit together."""
    (proc / "self/cgroup").write_text("0::/\n")
    v2(groups, str(100 * MIB), usage * MIB, inactive * MIB)
    sample = node.sample(proc, groups)
    assert 0 <= sample.available_bytes <= sample.total_bytes
    assert 0 <= sample.used_share <= 1


def test_a_kernel_that_does_not_measure_pressure_shows_no_stall(proc: Path, groups: Path) -> None:
    assert node.sample(proc, groups).stalled_share == 0
