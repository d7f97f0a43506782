"""`user.offload` and `.gridfs` as programs meet them, through the kernel; the scheduler behind them is played."""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridfs.errors import FilesystemError
from gridfs.offload.client import LIMIT_S
from tests.mounted.doors import Doors, doors
from tests.suite.syscalls import STRANGER, as_user, fails
from tests.suite.testbed import run

ATTRIBUTE = "user.offload"


@pytest.fixture(scope="module")
def mount() -> Iterator[Doors]:
    directory = Path(tempfile.mkdtemp(prefix="gridfs-doors-"))
    directory.chmod(0o755)
    try:
        with doors(directory) as mount:
            mount.top.chmod(0o777)
            yield mount
    finally:
        shutil.rmtree(directory)


@pytest.fixture
def file(mount: Doors) -> Iterator[Path]:
    """A file that everybody may read and write."""
    path = mount.top / "file"
    path.write_bytes(b"hello\n")
    path.chmod(0o666)
    yield path
    path.unlink()


def submitted(file: Path, value: bytes = b"sha256") -> int:
    """The number of the job that is submitted."""
    os.setxattr(file, ATTRIBUTE, value)
    job: int = json.loads(os.getxattr(file, ATTRIBUTE))["id"]
    return job


def status(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((path / "status").read_bytes())
    return found


def test_programs_submit_look_at_and_cancel_a_job(mount: Doors, file: Path) -> None:
    run("setfattr", "-n", ATTRIBUTE, "-v", "sha256", file)
    job = json.loads(run("getfattr", "--only-values", "-n", ATTRIBUTE, file).stdout)
    assert (job["state"], job["size"], job["uid"]) == ("queued", 5, 0)
    mount.service.left["stdout"] = os.urandom(3 << 20)
    assert (mount.jobs / str(job["id"]) / "stdout").read_bytes() == mount.service.left["stdout"]
    run("setfattr", "-x", ATTRIBUTE, file)
    assert json.loads(run("cat", mount.jobs / str(job["id"]) / "status").stdout)["state"] == "cancelled"
    with fails(errno.ENODATA):
        os.removexattr(file, ATTRIBUTE)


def test_another_user_s_job_is_his_with_all_his_groups(mount: Doors, file: Path) -> None:
    job = as_user(lambda: submitted(file), groups=[5, 6])
    assert mount.service.submitted[-1][1] == {"uid": STRANGER, "gid": STRANGER, "groups": (5, 6)}
    directory = mount.jobs / str(job)
    assert as_user(lambda: status(directory))["id"] == job
    for other in (lambda: status(directory), lambda: os.listdir(directory), lambda: os.removexattr(directory, ATTRIBUTE)):
        with fails(errno.ENOENT, errno.EACCES):
            as_user(other, uid=STRANGER + 1)
    assert str(job) in as_user(lambda: os.listdir(mount.jobs))
    assert as_user(lambda: os.listdir(mount.jobs), uid=STRANGER + 1) == ["last-error"]
    assert str(job) in os.listdir(mount.jobs)
    assert as_user(lambda: json.loads(os.getxattr(directory, ATTRIBUTE)))["id"] == job
    as_user(lambda: os.removexattr(directory, ATTRIBUTE))
    assert status(directory)["state"] == "cancelled"


def test_submitting_needs_the_rights_to_write_and_to_read(mount: Doors, file: Path) -> None:
    before = len(mount.service.submitted)
    for mode in (0o644, 0o622):
        file.chmod(mode)
        with fails(errno.EACCES, errno.EPERM):
            as_user(lambda: submitted(file))
    assert len(mount.service.submitted) == before


@pytest.mark.parametrize(
    ("value", "code"), [(b"frobnicate", errno.EINVAL), (b"\xff\0", errno.EINVAL), (b"{" * 60_000, errno.EINVAL)]
)
def test_what_is_refused_is_told_to_the_one_who_asked(mount: Doors, file: Path, value: bytes, code: int) -> None:
    with fails(code):
        as_user(lambda: os.setxattr(file, ATTRIBUTE, value))
    assert as_user((mount.jobs / "last-error").read_text).endswith("\n")
    assert as_user((mount.jobs / "last-error").read_text, uid=STRANGER + 1) == ""


def test_what_the_scheduler_refuses_is_told_with_its_reason(mount: Doors, file: Path) -> None:
    for code, told in ((errno.EPERM, errno.EPERM), (errno.EAGAIN, errno.EBUSY)):
        mount.service.failure = FilesystemError(code, "as asked")
        try:
            with fails(told):
                submitted(file)
        finally:
            mount.service.failure = None
        assert (mount.jobs / "last-error").read_text() == "as asked\n"


def test_copies_of_a_file_with_a_job_submit_nothing(mount: Doors, file: Path) -> None:
    submitted(file)
    os.setxattr(file, "user.kept", b"1")
    before = mount.service.asked
    assert os.listxattr(file) == ["user.kept"]
    copies = mount.top / "copies"
    copies.mkdir()
    run("cp", "-a", file, copies / "cp")
    run("rsync", "-aX", file, copies / "rsync")
    run("tar", "--xattrs", "-C", mount.top, "-cf", copies / "tar", "file")
    assert [os.listxattr(copies / name) for name in ("cp", "rsync")] == [["user.kept"]] * 2
    assert mount.service.asked == before
    shutil.rmtree(copies)


def test_the_root_does_not_list_it_and_every_change_to_it_is_eperm_also_for_root(mount: Doors, file: Path) -> None:
    job = mount.jobs / str(submitted(file))
    assert sorted(os.listdir(mount.top)) == ["file"]
    hidden, made = mount.top / ".gridfs", mount.top / "made"
    made.mkdir()
    for change in (
        hidden.rmdir,
        lambda: hidden.rename(mount.top / "x"),
        lambda: made.rename(hidden),
        lambda: file.rename(hidden / "file"),
        (hidden / "x").touch,
        (mount.jobs / "99").mkdir,
        (job / "status").unlink,
        lambda: (job / "status").write_bytes(b"x"),
        lambda: os.truncate(job / "stdout", 0),
        lambda: job.chmod(0o777),
        lambda: os.utime(job),
        lambda: os.link(mount.jobs / "last-error", mount.top / "l"),
        lambda: os.link(file, hidden / "l"),
        lambda: os.setxattr(job, "user.a", b"x"),
        lambda: os.setxattr(job, ATTRIBUTE, b"sha256"),
    ):
        with fails(errno.EPERM):
            change()
    with fails(errno.EEXIST):
        hidden.mkdir()
    made.rmdir()
    assert sorted(os.listdir(mount.top)) == ["file"]
    assert sorted(os.listdir(job)) == ["result", "status", "stderr", "stdout"]


def test_it_can_be_walked_as_any_directory(mount: Doors, file: Path) -> None:
    job = submitted(file)
    found = {os.path.relpath(line, mount.jobs) for line in run("find", mount.jobs / str(job)).stdout.splitlines()}
    assert found == {str(job), *(f"{job}/{name}" for name in ("status", "result", "stdout", "stderr"))}
    place = (mount.jobs / str(job)).stat()
    assert (stat.filemode(place.st_mode), place.st_uid) == ("drwx------", 0)
    assert place.st_ino >= 1 << 63
    assert run("sh", "-c", f"cd {mount.jobs}/{job} && cd ../../.. && pwd -P").stdout.strip() == str(mount.top)
    os.statvfs(mount.jobs)


@pytest.mark.expected_log("scheduler does not answer")
def test_a_dead_scheduler_ends_no_call_late_and_the_next_one_is_found(mount: Doors, file: Path) -> None:
    job = submitted(file)
    mount.end_scheduler()
    try:
        began_s = time.monotonic()
        with fails(errno.EBUSY):
            submitted(file)
        for read in (lambda: os.getxattr(file, ATTRIBUTE), lambda: status(mount.jobs / str(job))):
            with fails(errno.EIO):
                read()
        assert time.monotonic() - began_s < LIMIT_S
        file.write_bytes(b"goes on")
        assert file.read_bytes() == b"goes on"
    finally:
        mount.start_scheduler()
    assert status(mount.jobs / str(job))["id"] == job
