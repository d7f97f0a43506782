"""The rules that tests/conftest.py makes for every test, tried on sessions of their own."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests import leftovers

PROJECT = Path(__file__).resolve().parents[2]

MOUNTINFO = """\
22 1 254:0 / / rw,relatime - ext4 /dev/vda rw
25 22 0:21 / /sys/fs/fuse/connections rw - fusectl fusectl rw
40 22 0:50 / /mnt/with\\040space rw,nosuid shared:3 - fuse.gridfs gridfs rw,user_id=0
41 22 0:51 / /mnt/plain rw - fuse other rw
42 22 0:52 / /fuse.d rw - tmpfs fuse.tmp rw
"""

LOGS = """
import logging, threading
import pytest
from gridfs import logs

def test_quiet():
    logging.getLogger("gridfs.x").info("a")
    logging.getLogger("other").warning("a")

def test_warns():
    logging.getLogger("mount.x").warning("a %d", 1)

def test_warns_in_a_thread_after_logs_start():
    logs.start("info")
    thread = threading.Thread(target=logging.getLogger("gridfs.x").error, args=("b",))
    thread.start()
    thread.join()

@pytest.mark.expected_log("a [0-9]")
def test_expects():
    logging.getLogger("scheduler").warning("a %d", 1)

@pytest.mark.expected_log("a [0-9]")
def test_expects_in_vain():
    pass

@pytest.mark.expected_log
def test_expects_anything():
    logging.getLogger("gridfs").error("whatever")

@pytest.mark.expected_log("a")
@pytest.mark.expected_log("b")
def test_expects_two_and_gets_three():
    for word in "abc":
        logging.getLogger("gridfs").warning(word)
"""

SLEEPER = """
import os
from tests import leftovers

def test_leaves_a_process():
    leftovers.SETTLE_S = 0.3
    print("pid:", os.posix_spawnp("sleep", ["sleep", "100"], os.environ))
"""

NEEDY = """
def test_runs():
    print("it ran")
"""

NOBODY = """
import os
os.geteuid = lambda: 1000
"""


class Project:
    """A small project with our conftest.py."""

    def __init__(self, root: Path) -> None:
        self.root = root
        names = ("conftest.py", "leftovers.py", "__init__.py", "suite/__init__.py", "suite/testbed.py")
        (root / "tests/suite").mkdir(parents=True)
        for name in ("pyproject.toml", *(f"tests/{name}" for name in names)):
            shutil.copy(PROJECT / name, root / name)
        (root / "nobody.py").write_text(NOBODY)

    def test(self, level: str, source: str, *options: str, **environment: str) -> subprocess.CompletedProcess[str]:
        """Run a test session over one file of this level."""
        (self.root / "tests" / level).mkdir(exist_ok=True)
        (self.root / "tests" / level / "test_it.py").write_text(source)
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *options, f"tests/{level}"]
        # In CI (CI or BUILD_NUMBER set) pytest prints its summary lines whole: every fault would be there twice.
        ours = ("GRIDFS_", "PYTEST_", "CI", "BUILD_NUMBER")
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
        return subprocess.run(
            command,
            cwd=self.root,
            env={**inherited, "PYTHONPATH": f"{self.root}:{PROJECT}", "PYTHONDONTWRITEBYTECODE": "1", **environment},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path)


def test_an_unexpected_warning_or_a_missing_expected_one_fails_a_test(project: Project) -> None:
    printed = project.test("unit", LOGS).stdout
    outcomes = re.findall(r"^(PASSED|ERROR) \S+::(test_\w+)", printed, re.MULTILINE)
    failed = {name for outcome, name in outcomes if outcome == "ERROR"}
    assert {name for _, name in outcomes} - failed == {"test_quiet", "test_expects", "test_expects_anything"}
    for fault in (
        "unexpected log: WARNING mount.x: a 1",
        "unexpected log: ERROR gridfs.x: b",
        "no log record matched 'a [0-9]'",
        "unexpected log: WARNING gridfs: c",
    ):
        assert printed.count(fault) == 1


def test_a_process_left_behind_fails_the_session(project: Project) -> None:
    done = project.test("unit", SLEEPER)
    match = re.search(r"pid: (\d+)", done.stdout)
    assert match is not None, done.stdout
    os.kill(int(match[1]), signal.SIGKILL)
    assert done.returncode == pytest.ExitCode.TESTS_FAILED
    assert "left behind by this session" in done.stdout
    assert f"process {match[1]}: sleep 100" in done.stdout
    assert "1 passed" in done.stdout


def test_a_session_that_needs_and_leaves_nothing_passes(project: Project) -> None:
    done = project.test("vfs", NEEDY, "-p", "nobody", GRIDFS_TEST_STRICT="1")
    assert (done.returncode, "left behind" in done.stdout) == (0, False)


@pytest.mark.parametrize(("strict", "outcome"), [("", "SKIPPED"), ("1", "ERROR")])
def test_what_a_level_needs_and_is_missing_is_told(project: Project, strict: str, outcome: str) -> None:
    done = project.test("cluster", NEEDY, "-p", "nobody", GRIDFS_TEST_STRICT=strict)
    assert re.search(rf"^{outcome} .*needs root$", done.stdout, re.MULTILINE)
    assert (done.returncode != 0) == bool(strict)


def test_a_test_in_no_levels_folder_is_refused(project: Project) -> None:
    done = project.test("stray", NEEDY)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert "is in no level's folder" in done.stderr


def test_fuse_mounts_are_told_from_the_rest() -> None:
    assert list(leftovers.fuse_mounts(MOUNTINFO)) == [
        "mount of type fuse.gridfs at /mnt/with\\040space",
        "mount of type fuse at /mnt/plain",
    ]


@pytest.mark.parametrize(
    ("environment", "levels", "is_left"),
    [
        ({}, {"cluster"}, True),
        ({}, {"mounted"}, True),
        ({}, {"unit", "vfs"}, False),
        ({leftovers.MARK: "another"}, {"cluster", "mounted"}, False),
    ],
)
def test_a_new_daemon_is_left_behind_unless_it_is_another_sessions(
    monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], levels: set[str], is_left: bool
) -> None:
    """Two sessions run side by side: tools/test."""
    monkeypatch.setenv(leftovers.MARK, os.environ[leftovers.MARK])  # so that this session has its own back
    monkeypatch.setattr(leftovers, "SETTLE_S", 0.0)
    before = leftovers.Leftovers()
    with subprocess.Popen(["raylet", "100"], executable=shutil.which("sleep"), env=environment) as daemon:
        left = before.find(levels)
        daemon.kill()
    assert (f"process {daemon.pid}: raylet 100" in left) == is_left
