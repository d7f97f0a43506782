"""Jobs of a real filesystem: asked for by an attribute, done on the workers, told of in `.gridfs/jobs`."""

from __future__ import annotations

import errno
import hashlib
import json
import os
from pathlib import Path

import pytest

from tests.mounted.conftest import SIZE
from tests.mounted.jobs import ATTRIBUTE, finished, left, submitted
from tests.suite.syscalls import fails
from tests.suite.testbed import Testbed, run


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


def test_a_copy_of_a_file_with_a_finished_job_has_none(bed: Testbed, root: Path, file: Path) -> None:
    finished(bed, submitted(file, b"sha256"))
    jobs = os.listdir(bed.mountpoint / ".gridfs/jobs")
    run("cp", "-a", file, root / "cp")
    run("rsync", "-aX", file, root / "rsync")
    assert os.listdir(bed.mountpoint / ".gridfs/jobs") == jobs
    for name in ("cp", "rsync"):
        with fails(errno.ENODATA):
            os.getxattr(root / name, ATTRIBUTE)


KIB = 1 << 10


@pytest.mark.parametrize(
    ("value", "code"),
    [
        (b"", errno.EINVAL),
        (b"\xff\xfe\0\1", errno.EINVAL),
        (b"wc\0", errno.EINVAL),
        (b"x" * (60 * KIB), errno.EINVAL),
        (b'{"run":' + b"[" * (60 * KIB), errno.EINVAL),
        (b'{"function": "wc"', errno.EINVAL),
        (b'{"function": "wc", "colour": 1}', errno.EINVAL),
        (b'{"function": "wc", "function": "md5"}', errno.EINVAL),
        (b'{"function": "wc", "timeout_s": NaN}', errno.EINVAL),
        (b'{"run": ["wc\\u0000"]}', errno.EINVAL),
        (b'{"run": "wc", "output": "../out"}', errno.EINVAL),
        (b'{"run": "wc", "output": "file", "overwrite": true}', errno.EINVAL),
        (b'{"run": "wc", "output": "away/out"}', errno.ELOOP),
        (b'{"run": "wc", "output": "away", "overwrite": true}', errno.EEXIST),
        (b'{"run": "wc", "output": "file/out"}', errno.ENOTDIR),
        (b'{"run": "wc", "output": "/.gridfs"}', errno.EPERM),
        (b'{"run": "wc", "output": "/.gridfs/jobs/out"}', errno.ENOENT),
    ],
    ids=lambda value: repr(value[:48]) if isinstance(value, bytes) else errno.errorcode[value],
)
def test_what_makes_no_sense_or_leads_out_is_refused_with_a_sentence(
    bed: Testbed, root: Path, file: Path, value: bytes, code: int
) -> None:
    (root / "away").symlink_to("/tmp")
    jobs = bed.mountpoint / ".gridfs/jobs"
    before = sorted(os.listdir(jobs))
    done = run("setfattr", "-n", ATTRIBUTE, "-v", f"0x{value.hex()}", file, check=False)
    assert (done.returncode, done.stderr) == (1, f"setfattr: {file}: {os.strerror(code)}\n")
    sentence = (jobs / "last-error").read_text()
    assert len(sentence.splitlines()) == 1
    assert len(sentence) < KIB
    assert sorted(os.listdir(jobs)) == before
    assert sorted(os.listdir(root)) == ["away", "file"]
