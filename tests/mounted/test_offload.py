"""Jobs of a real filesystem: asked for by an attribute, done on the workers, told of in `.gridfs/jobs`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path
from typing import Any

import pytest

from gridfs.offload.job import ENDED
from tests.suite.syscalls import as_user, eventually, fails, write
from tests.suite.testbed import Testbed, run

ATTRIBUTE = "user.offload"
SIZE = (3 << 23) + 12345
"""More than three chunks: several on each of the two workers, or most on one."""


@pytest.fixture
def file(root: Path) -> Path:
    return write(root / "file", os.urandom(SIZE))


def submitted(file: Path, request: bytes | dict[str, Any]) -> int:
    """The number of the job that is submitted."""
    os.setxattr(file, ATTRIBUTE, request if isinstance(request, bytes) else json.dumps(request).encode())
    job: int = json.loads(os.getxattr(file, ATTRIBUTE))["id"]
    return job


def finished(bed: Testbed, job: int, patience_s: float = 40.0) -> dict[str, Any]:
    """Its status, once it has ended."""
    directory = bed.mountpoint / ".gridfs/jobs" / str(job)
    status: dict[str, Any] = {}

    def has_ended() -> bool:
        try:
            status.update(json.loads((directory / "status").read_bytes()))
        except OSError as error:
            assert error.errno == errno.EIO, error  # the scheduler is being started again
        return status.get("state") in ENDED

    eventually(has_ended, f"job {job} ends", patience_s)
    return status


def left(bed: Testbed, job: int, what: str) -> bytes:
    return (bed.mountpoint / ".gridfs/jobs" / str(job) / what).read_bytes()


def test_a_function_is_done_on_the_file_as_it_was(bed: Testbed, file: Path) -> None:
    content = file.read_bytes()
    job = submitted(file, b"sha256")
    file.write_bytes(b"later")
    status = finished(bed, job)
    assert (status["state"], status["error"]) == ("done", "")
    assert hashlib.sha256(content).hexdigest() in left(bed, job, "result").decode()
    assert (status["size"], status["progress"]) == (SIZE, SIZE)
    assert status["bytes_local"] + status["bytes_network"] == SIZE
    assert status["decision"]


def test_a_command_reads_the_content_and_its_output_appears_when_it_is_complete(bed: Testbed, root: Path, file: Path) -> None:
    job = submitted(file, {"run": "sha256sum", "output": "sum"})
    assert finished(bed, job)["state"] == "done"
    assert (root / "sum").read_text().split()[0] == hashlib.sha256(file.read_bytes()).hexdigest()
    assert sorted(os.listdir(root)) == ["file", "sum"]
    with fails(errno.EEXIST):
        submitted(file, {"run": "sha256sum", "output": "sum"})


def test_a_command_that_fails_says_how(bed: Testbed, file: Path) -> None:
    job = submitted(file, {"run": ["sh", "-c", "echo out; echo why >&2; exit 3"]})
    status = finished(bed, job)
    assert (status["state"], status["exit_code"]) == ("failed", 3)
    assert (left(bed, job, "stdout"), left(bed, job, "stderr")) == (b"out\n", b"why\n")
    done = bed.gridfs("jobs", "wait", str(job), "--mountpoint", bed.mountpoint, check=False)
    assert (done.returncode, done.stdout) == (3, "out\n")
    assert done.stderr.startswith("why\n")


def test_a_command_is_ended_by_removing_the_attribute(bed: Testbed, file: Path) -> None:
    job = submitted(file, {"run": "sleep 1000"})
    os.removexattr(file, ATTRIBUTE)
    assert finished(bed, job)["state"] == "cancelled"
    with fails(errno.ENODATA):
        os.removexattr(file, ATTRIBUTE)


def test_the_command_line_waits_for_a_job_and_prints_what_it_left(bed: Testbed, file: Path) -> None:
    done = bed.gridfs("offload", file, "--wait", "--", "wc", "-c")
    assert done.stdout.split() == [str(SIZE)]
    listed = json.loads(bed.gridfs("jobs", "list", "--json", "--mountpoint", bed.mountpoint).stdout)
    assert listed[0]["request"] == "wc -c"


def test_who_is_not_allowed_is_told_so(bed: Testbed, file: Path) -> None:
    file.chmod(0o666)
    with fails(errno.EPERM):
        as_user(lambda: submitted(file, b"sha256"))
    assert as_user((bed.mountpoint / ".gridfs/jobs/last-error").read_text)


def test_a_copy_of_a_file_with_a_finished_job_has_none(bed: Testbed, root: Path, file: Path) -> None:
    finished(bed, submitted(file, b"sha256"))
    jobs = os.listdir(bed.mountpoint / ".gridfs/jobs")
    run("cp", "-a", file, root / "cp")
    run("rsync", "-aX", file, root / "rsync")
    assert os.listdir(bed.mountpoint / ".gridfs/jobs") == jobs
    for name in ("cp", "rsync"):
        with fails(errno.ENODATA):
            os.getxattr(root / name, ATTRIBUTE)
