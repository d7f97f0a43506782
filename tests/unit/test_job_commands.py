"""`gridfs offload` and `gridfs jobs`: what they ask a mount for, what they print, and how they end."""

from __future__ import annotations

import errno
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from gridfs.cli import job_files, offload
from gridfs.cli.job_files import JobFiles
from gridfs.errors import GridfsError
from tests.unit.fake_jobs import status_of


class Mount:
    """A folder that plays a mount, with the files of its jobs."""

    def __init__(self, top: Path) -> None:
        self.top, self.jobs = top, top / ".gridfs/jobs"
        self.jobs.mkdir(parents=True)
        self.requests: list[dict[str, Any]] = []

    def put(self, job: int, stdout: bytes = b"", stderr: bytes = b"", **changes: Any) -> None:
        """The job has that status now, and has left that."""
        folder = self.jobs / str(job)
        folder.mkdir(exist_ok=True)
        (folder / "status").write_text(json.dumps(status_of(job, **changes)))
        (folder / "stdout").write_bytes(stdout)
        (folder / "stderr").write_bytes(stderr)


@pytest.fixture
def mount(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Mount:
    mount = Mount(tmp_path)

    def submit(files: JobFiles, path: str, request: dict[str, Any]) -> int:
        mount.requests.append(request)
        return 17

    monkeypatch.setattr(JobFiles, "of_file", lambda path: JobFiles(str(tmp_path)))
    monkeypatch.setattr(JobFiles, "of_machine", lambda mountpoint: JobFiles(str(tmp_path)))
    monkeypatch.setattr(JobFiles, "submit", submit)
    return mount


def run(*arguments: str) -> Result:
    command = {"offload": offload.offload, "jobs": offload.jobs}[arguments[0]]
    return CliRunner().invoke(command, arguments[1:], env={"COLUMNS": "200"})


@pytest.mark.parametrize(
    ("arguments", "request_"),
    [
        (("--", "zstd", "-3", "a b"), {"run": ["zstd", "-3", "a b"]}),
        (("--function", "grep -c X"), {"function": "grep -c X"}),
        (("--python", "m:f", "--args", "[3]"), {"python": "m:f", "args": [3]}),
        (("--python", "m:f", "--split"), {"python": "m:f", "split": True}),
        (("--shell", "wc | head"), {"run": "wc | head", "shell": True}),
        (("--output", "x", "--overwrite", "--", "ls"), {"run": ["ls"], "output": "x", "overwrite": True}),
        (("--timeout", "5", "--memory", "1MiB", "--", "ls"), {"run": ["ls"], "timeout_s": 5.0, "memory": 1 << 20}),
        (("--idempotent", "--", "ls"), {"run": ["ls"], "idempotent": True}),
    ],
)
def test_options_become_a_request(mount: Mount, arguments: tuple[str, ...], request_: dict[str, Any]) -> None:
    assert run("offload", "file", *arguments).output == "17\n"
    assert mount.requests == [request_]


def test_an_output_in_the_mount_is_named_from_its_root_and_one_elsewhere_is_refused(mount: Mount) -> None:
    run("offload", "file", "--output", str(mount.top / "d/x"), "--", "ls")
    assert mount.requests[0]["output"] == "/d/x"
    done = run("offload", "file", "--output", "/etc/x", "--", "ls")
    assert isinstance(done.exception, GridfsError)


@pytest.mark.parametrize("arguments", [(), ("--function", "a", "--", "ls"), ("--python", "m:f", "--args", "3]")])
def test_wrong_use_is_a_usage_error(mount: Mount, arguments: tuple[str, ...]) -> None:
    assert run("offload", "file", *arguments).exit_code == 2
    assert mount.requests == []


@pytest.mark.parametrize(
    ("changes", "code", "words"),
    [
        ({"state": "done"}, 0, ""),
        ({"state": "done", "exit_code": 0}, 0, ""),
        ({"state": "failed", "exit_code": 3}, 3, "its exit status is 3"),
        ({"state": "failed", "error": "out of memory"}, 1, "out of memory"),
        ({"state": "failed", "exit_code": 0, "error": "lost"}, 1, "lost"),
        ({"state": "cancelled"}, 130, "cancelled"),
    ],
)
def test_waiting_prints_what_the_job_left_and_ends_as_it_did(
    mount: Mount, changes: dict[str, Any], code: int, words: str
) -> None:
    mount.put(17, b"out\xff\n", b"said\n", **changes)
    for arguments in (("jobs", "wait", "17"), ("offload", "file", "--wait", "--", "ls")):
        done = run(*arguments)
        assert done.exit_code == code
        assert done.stdout_bytes == b"out\xff\n"
        assert done.stderr.startswith("said\n")
        assert words in done.stderr


@pytest.mark.parametrize(("result", "printed"), [({"lines": 3}, '{"lines": 3}\n'), (0, "0\n"), ("abc123", "abc123\n")])
def test_a_result_is_printed_as_json_and_text_as_it_is(mount: Mount, result: Any, printed: str) -> None:
    mount.put(17, state="done", result=result)
    assert run("jobs", "wait", "17").stdout == printed
    assert json.loads(run("jobs", "wait", "17", "--json").stdout)["result"] == result


def test_who_stops_waiting_is_told_that_the_job_goes_on(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*arguments: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(JobFiles, "wait", interrupted)
    assert "job 17 goes on" in run("jobs", "wait", "17").stderr


def test_waiting_goes_on_until_the_job_has_ended_also_without_the_scheduler(
    mount: Mount, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps: list[dict[str, Any] | None] = [
        {"state": "queued"},
        None,
        {"state": "running", "progress": 3},
        None,
        {"state": "done", "progress": 5},
    ]
    advanced = []

    def status(files: JobFiles, job: int) -> dict[str, Any]:
        step = steps.pop(0)
        if step is None:
            raise job_files.Silence("away")
        return status_of(job, **step)

    monkeypatch.setattr(JobFiles, "status", status)
    monkeypatch.setattr(job_files, "_POLL_S", 0.001)
    files = JobFiles(str(mount.top))
    assert files.wait(17, lambda done, total: advanced.append((done, total)))["state"] == "done"
    assert advanced == [(0, 5), (3, 5), (5, 5)]
    steps[:] = [None] * 2
    monkeypatch.setattr(job_files, "SILENCE_S", 0)
    with pytest.raises(GridfsError, match="away"):
        files.wait(17, lambda done, total: None)


def test_jobs_are_listed_newest_first(mount: Mount) -> None:
    for job in (2, 10, 9):
        mount.put(job)
    (mount.jobs / "last-error").touch()
    assert [status["id"] for status in json.loads(run("jobs", "list", "--json").stdout)] == [10, 9, 2]
    assert [status["id"] for status in json.loads(run("jobs", "list", "--json", "--limit", "1").stdout)] == [10]
    for arguments in (("jobs",), ("jobs", "list")):
        assert "sha256" in run(*arguments).stdout
        assert run(*arguments, "--json").stdout == run("jobs", "list", "--json").stdout
    assert run("jobs", "--json", "show", "2").exit_code == 2


def test_a_job_that_is_forgotten_meanwhile_is_not_listed(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    for job in (1, 3):
        mount.put(job)
    monkeypatch.setattr(JobFiles, "ids", lambda files: [3, 2, 1])
    assert [status["id"] for status in json.loads(run("jobs", "list", "--json", "--limit", "2").stdout)] == [3, 1]


def test_times_and_sizes_are_shown_for_people_and_told_to_programs(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(time, "localtime", time.gmtime)
    mount.put(17, submitted=1e9 + 0.5, started=1e9 + 7, size=3 << 20, progress=1 << 20, output="/o", output_bytes=5)
    shown = dict(line.split(":", 1) for line in run("jobs", "show", "17").stdout.splitlines())
    assert {key: shown[key].strip() for key in ("submitted", "started", "size", "progress", "output_bytes")} == {
        "submitted": "2001-09-09 01:46:40",
        "started": "2001-09-09 01:46:47",
        "size": "3.0 MiB",
        "progress": "1.0 MiB",
        "output_bytes": "5 B",
    }
    assert "ended" not in shown
    assert json.loads(run("jobs", "show", "17", "--json").stdout)["submitted"] == 1e9 + 0.5
    assert "1.0 MiB of 3.0 MiB" in run("jobs").stdout


def test_what_another_user_has_chosen_neither_moves_the_cursor_nor_makes_a_line(mount: Mount) -> None:
    mount.put(17, state="failed", file="a\x1b[2Jb\udc80é", request="x\nstate: done", error="\r\x07")
    for arguments in (("jobs", "show", "17"), ("jobs", "list")):
        shown = run(*arguments).stdout
        assert "a\\x1b[2Jb\\udc80é" in shown
        assert "x\\nstate: done" in shown
        assert not set(shown) & {"\x1b", "\r", "\x07"}
    assert "\\r\\x07" in run("jobs", "wait", "17").stderr


def test_a_job_is_shown_and_its_output_printed(mount: Mount) -> None:
    mount.put(17, b"out\n", b"err\n", error="[red]x")
    assert "[red]x" in run("jobs", "show", "17").stdout
    assert json.loads(run("jobs", "show", "17", "--json").stdout)["id"] == 17
    done = run("jobs", "logs", "17")
    assert (done.stdout, done.stderr) == ("out\n", "err\n")


def test_a_job_that_is_not_there_is_named(mount: Mount) -> None:
    with pytest.raises(GridfsError, match="no job 99"):
        JobFiles(str(mount.top)).status(99)


def test_cancelling_says_if_there_was_nothing_to_cancel(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    removed: list[tuple[str, str]] = []

    def remove(path: str, name: str) -> None:
        if removed:
            raise OSError(errno.ENODATA, "no such attribute")
        removed.append((path, name))

    monkeypatch.setattr(os, "removexattr", remove)
    assert run("jobs", "cancel", "17").exit_code == 0
    assert removed == [(str(mount.jobs / "17"), "user.offload")]
    assert "has ended" in str(run("jobs", "cancel", "17").exception)


def test_why_a_submission_was_refused_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount, file = Mount(tmp_path), tmp_path / "file"

    def refuse(*arguments: Any) -> None:
        (mount.jobs / "last-error").write_text("because of this\n")
        raise OSError(errno.EINVAL, "Invalid argument")

    def refuse_as_the_kernel(*arguments: Any) -> None:
        os.utime(mount.jobs / "last-error", ns=(1, 1))
        raise OSError(errno.EACCES, "Permission denied")

    for refusal, words in (
        (refuse, "because of this"),
        (refuse_as_the_kernel, "Permission denied, and a job needs the right to write"),
    ):
        monkeypatch.setattr(os, "setxattr", refusal)
        with pytest.raises(GridfsError, match=words):
            JobFiles(str(tmp_path)).submit(str(file), {"run": "ls"})


def test_a_file_elsewhere_is_in_no_filesystem_of_ours(tmp_path: Path) -> None:
    with pytest.raises(GridfsError, match="not in a gridfs filesystem"):
        JobFiles.of_file(str(tmp_path))
    with pytest.raises(GridfsError, match="No such file"):
        JobFiles.of_file(str(tmp_path / "absent"))
