"""Two mounts on two hosts of one filesystem, and real programs on both."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from tests.suite.testbed import COMMAND_S, PROJECT, Testbed, run

GRIDFS = PROJECT / ".venv/bin/gridfs"
LEASE_S = 10.0


@pytest.fixture
def second(bed: Testbed) -> Iterator[Path]:
    """The mountpoint of another mount, from gpu1."""
    mountpoint = Path(tempfile.mkdtemp(prefix="gridfs-second-"))
    mountpoint.chmod(0o755)
    bed.on("gpu1", GRIDFS, "mount", mountpoint)
    yield mountpoint
    if f" {mountpoint} " in Path("/proc/mounts").read_text():
        bed.on("gpu1", GRIDFS, "umount", mountpoint)
    mountpoint.rmdir()


@pytest.fixture
def there(second: Path, root: Path, bed: Testbed) -> Path:
    """The test's directory, by way of the other mount."""
    return second / root.relative_to(bed.mountpoint)


def daemon_pid(mountpoint: Path) -> int:
    """The process that serves the mount."""
    home = Path(json.loads(Path("/run/gridfs-testbed.json").read_text())["home"])
    return int((home / "mounts" / f"{quote(str(mountpoint), safe='')}.pid").read_text())


def states(bed: Testbed) -> dict[str, str]:
    """What each mount may do, as `gridfs status` tells."""
    return {mount["mountpoint"]: mount["lease"] for mount in bed.status()["mounts"]}


def test_every_call_sees_what_returned_on_the_other_mount(root: Path, there: Path) -> None:
    for number in range(60):
        here, other = (root, there) if number % 2 else (there, root)
        path, seen = here / f"{number}", other / f"{number}"
        assert not seen.exists()
        path.mkdir()
        assert seen.is_dir()
        (seen / "file").write_text(f"{number}")
        assert (path / "file").read_text() == f"{number}"
        os.chmod(path / "file", 0o640)
        assert (seen / "file").stat().st_mode & 0o777 == 0o640
        os.rename(seen / "file", other / f"moved{number}")
        assert not (path / "file").exists()
        os.rmdir(path)
        assert not seen.exists()
        os.unlink(here / f"moved{number}")
        assert os.listdir(other) == []


def test_what_the_kernel_knew_from_before_the_other_mount_is_forgotten(bed: Testbed, root: Path) -> None:
    """Names, names that were not there, attributes and bytes, all of which the sole mount may keep for minutes."""
    (root / "directory").mkdir()
    (root / "directory" / "file").write_text("old")
    (root / "removed").write_text("")
    assert not (root / "directory" / "later").exists()
    for path in (root / "directory" / "file", root / "removed"):
        path.read_text()
        path.stat()
    mountpoint = Path(tempfile.mkdtemp(prefix="gridfs-second-"))
    bed.on("gpu1", GRIDFS, "mount", mountpoint)
    try:
        there = mountpoint / root.relative_to(bed.mountpoint)
        (there / "directory" / "later").write_text("made")
        (there / "directory" / "file").write_text("newer")
        os.chmod(there / "directory" / "file", 0o600)
        (there / "removed").unlink()
        (there / "directory").rename(there / "renamed")
        assert not (root / "directory").exists()
        assert (root / "renamed" / "later").read_text() == "made"
        assert (root / "renamed" / "file").read_text() == "newer"
        assert (root / "renamed" / "file").stat().st_mode & 0o777 == 0o600
        assert not (root / "removed").exists()
    finally:
        bed.on("gpu1", GRIDFS, "umount", mountpoint)
        mountpoint.rmdir()


def test_a_host_with_a_home_of_its_own_mounts_and_leaves_without_ending_anything(
    bed: Testbed, root: Path, tmp_path: Path
) -> None:
    state = json.loads(Path("/run/gridfs-testbed.json").read_text())
    address = json.loads((Path(state["home"]) / "cluster.json").read_text())["address"]
    home, mountpoint = tmp_path / "home", tmp_path / "mnt"
    mountpoint.mkdir()

    def gridfs(*words: str | Path, check: bool = True) -> subprocess.CompletedProcess[str]:
        token = Path(state["home"]) / "token"
        environment = ("env", f"GRIDFS_HOME={home}", f"RAY_AUTH_TOKEN_PATH={token}", "RAY_AUTH_MODE=token")
        return bed.on("gpu2", *environment, GRIDFS, *words, check=check)

    assert "no filesystem is up here" in gridfs("mount", mountpoint, check=False).stderr
    gridfs("mount", "--address", address, mountpoint)
    (root / "file").write_text("seen")
    assert (mountpoint / root.relative_to(bed.mountpoint) / "file").read_text() == "seen"
    assert "uses the filesystem at" in gridfs("mount", "--address", "10.77.0.9:6379", mountpoint, check=False).stderr
    assert "still mounted" in gridfs("down", check=False).stderr
    gridfs("umount", mountpoint)
    gridfs("down")
    assert not (home / "cluster.json").exists()
    assert (root / "file").read_text() == "seen"
    assert bed.status()["healthy"]


def test_git_on_one_mount_works_on_with_what_git_on_the_other_did(root: Path, there: Path) -> None:
    def git(directory: Path, *words: str) -> str:
        settings = ("-c", "user.name=n", "-c", "user.email=e", "-c", "safe.directory=*")
        return run("git", *settings, "-C", directory, *words).stdout

    (root / "repository").mkdir()
    git(root / "repository", "init", "-q")
    for number in range(4):
        here = (root, there)[number % 2] / "repository"
        (here / f"file{number}").write_text(f"{number}\n" * 1000)
        git(here, "add", ".")
        git(here, "commit", "-q", "-m", f"{number}")
    git(there / "repository", "fsck", "--strict")
    assert git(root / "repository", "log", "--format=%s").split() == ["3", "2", "1", "0"]
    assert git(root / "repository", "status", "--porcelain") == ""


def test_programs_on_both_mounts_at_once_lose_nothing(root: Path, there: Path) -> None:
    """Each makes, moves and removes files in one directory."""
    work = (
        "import os, sys\n"
        "top, who = sys.argv[1:]\n"
        "for number in range(150):\n"
        "    path = f'{top}/{who}{number}'\n"
        "    with open(path, 'w') as file:\n"
        "        file.write(path[-8:] * 500)\n"
        "    os.rename(path, f'{top}/{who}-{number}')\n"
        "    if number % 3 == 0:\n"
        "        os.unlink(f'{top}/{who}-{number}')\n"
    )
    workers = [subprocess.Popen([sys.executable, "-c", work, str(top), who]) for top, who in ((root, "one"), (there, "two"))]
    assert [worker.wait(COMMAND_S) for worker in workers] == [0, 0]
    expected = sorted(f"{who}-{number}" for who in ("one", "two") for number in range(150) if number % 3)
    assert sorted(os.listdir(root)) == sorted(os.listdir(there)) == expected
    for name in expected[::17]:
        assert (root / name).read_bytes() == (there / name).read_bytes() != b""


def test_the_lease_comes_back_to_a_sole_writer(bed: Testbed, root: Path, there: Path, second: Path) -> None:
    (there / "file").write_text("two")
    (root / "other").write_text("one")
    deadline_s = time.monotonic() + COMMAND_S
    while states(bed)[str(second)] != "lease":
        assert time.monotonic() < deadline_s
        (there / "file").write_text("again")
    assert states(bed)[str(bed.mountpoint)] == "dark"
    assert (root / "file").read_text() == "again"


def test_a_file_removed_on_one_mount_stays_readable_where_it_is_open(root: Path, there: Path) -> None:
    content = os.urandom(300_000)
    (root / "file").write_bytes(content)
    with open(there / "file", "rb") as file:
        (root / "file").unlink()
        assert not (there / "file").exists()
        time.sleep(1.0)
        assert file.read() == content


def test_the_other_mount_goes_on_when_one_is_killed(bed: Testbed, root: Path, there: Path, second: Path) -> None:
    with open(there / "fsynced", "w") as file:
        file.write("kept")
        file.flush()
        os.fsync(file.fileno())
    os.kill(daemon_pid(second), signal.SIGKILL)
    began_s = time.monotonic()
    (root / "after").write_text("made")
    assert time.monotonic() - began_s < LEASE_S
    assert (root / "fsynced").read_text() == "kept"
    bed.gridfs("umount", second)


def test_a_mount_that_is_stopped_is_fenced_and_finds_out(
    request: pytest.FixtureRequest, root: Path, there: Path, second: Path
) -> None:
    """What it had not told anybody never takes effect; it says EIO, also to who has the file open."""
    (there / "file").write_text("before")
    file = os.open(there / "file", os.O_WRONLY)
    request.addfinalizer(lambda: _close(file))
    os.write(file, b"UNTOLD")
    pid = daemon_pid(second)
    os.kill(pid, signal.SIGSTOP)
    try:
        began_s = time.monotonic()
        (root / "meanwhile").write_text("made")
        assert time.monotonic() - began_s < 2 * LEASE_S
        (root / "file").write_text("after")
    finally:
        os.kill(pid, signal.SIGCONT)
    with pytest.raises(OSError, match="Input/output error"):
        os.fsync(file)
    with pytest.raises(OSError, match="Input/output error"):
        (there / "meanwhile").read_text()
    with pytest.raises(OSError, match="Input/output error"):
        (there / "new").touch()
    assert (root / "file").read_text() == "after"
    assert not (root / "new").exists()


def _close(file: int) -> None:
    """Close a file of a mount that may be lost: close(2) says EIO then, and closes it all the same."""
    with contextlib.suppress(OSError):
        os.close(file)
