"""Jobs of users who are not root, on a real filesystem: as whom they run, who sees them, and who may not have them."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import pytest

from tests.mounted.jobs import ATTRIBUTE, Request, Settings, finished, left, status, submitted
from tests.suite.syscalls import as_user, fails
from tests.suite.testbed import Testbed

T = TypeVar("T")
USER, GROUPS = 23456, (23457, 23458)
"""His own group has his number."""
OTHER = 23460
ALLOWED = f'users = ["root", {USER}]'


@pytest.fixture(scope="module")
def settings(bed: Testbed, suite_top: Path) -> Iterator[Settings]:
    probe = suite_top / "probe"
    probe.touch()
    settings = Settings(bed, probe)
    yield settings
    settings.remove()


@pytest.fixture
def shared(file: Path) -> Path:
    """A file that everybody may read and write."""
    file.chmod(0o666)
    return file


def as_his(action: Callable[[], T]) -> T:
    return as_user(action, USER, USER, GROUPS)


def as_other(action: Callable[[], T]) -> T:
    return as_user(action, OTHER, OTHER)


def refused(bed: Testbed, file: Path, request: Request, code: int) -> str:
    """What he is told of a job that he may not have."""
    with fails(code):
        as_his(lambda: submitted(file, request))
    return as_his((bed.mountpoint / ".gridfs/jobs/last-error").read_text)


def test_a_command_runs_as_its_user_and_its_output_is_his(bed: Testbed, settings: Settings, root: Path, shared: Path) -> None:
    settings.allow(ALLOWED)
    his = root / "his"
    his.mkdir(0o700)
    os.chown(his, USER, USER)
    command = ["sh", "-c", "id -u; id -G; cat /proc/self/status | grep -c 'CapEff:.*0000000000000000'; head -c 1 >/dev/null"]
    assert finished(bed, as_his(lambda: submitted(shared, {"run": command, "output": "his/out"})))["state"] == "done"
    assert (his / "out").read_text().splitlines() == [str(USER), f"{USER} {GROUPS[0]} {GROUPS[1]}", "1"]
    made = (his / "out").stat()
    assert (made.st_uid, made.st_gid, made.st_mode) == (USER, USER, 0o100644)


def test_a_job_is_there_for_its_user_and_for_root_alone(bed: Testbed, settings: Settings, shared: Path) -> None:
    settings.allow(ALLOWED)
    job = as_his(lambda: submitted(shared, {"run": ["sh", "-c", "echo secret; exec sleep 1000"]}))
    jobs = bed.mountpoint / ".gridfs/jobs"
    assert as_other(lambda: os.listdir(jobs)) == ["last-error"]
    for look in (lambda: left(bed, job, "status"), lambda: left(bed, job, "stdout"), lambda: os.listdir(jobs / str(job))):
        with fails(errno.ENOENT):
            as_other(look)
    for path, code in ((jobs / str(job), errno.ENOENT), (shared, errno.ENODATA)):
        with fails(code):
            as_other(partial(os.getxattr, path, ATTRIBUTE))
        with fails(code):
            as_other(partial(os.removexattr, path, ATTRIBUTE))
    assert str(job) in as_his(lambda: os.listdir(jobs))
    assert as_his(lambda: status(bed, job))["uid"] == USER
    assert str(job) in os.listdir(jobs)
    assert json.loads(os.getxattr(shared, ATTRIBUTE))["id"] == job
    as_his(lambda: os.removexattr(shared, ATTRIBUTE))
    assert finished(bed, job)["state"] == "cancelled"


def test_who_is_not_allowed_is_told_so(bed: Testbed, settings: Settings, shared: Path) -> None:
    settings.remove()
    assert refused(bed, shared, b"wc", errno.EPERM) == f"user {USER} may not submit jobs\n"
    assert as_other((bed.mountpoint / ".gridfs/jobs/last-error").read_text) == ""
    settings.allow(f'users = ["root"]\ngroups = [{GROUPS[1]}]')
    assert finished(bed, as_his(lambda: submitted(shared, b"wc")))["state"] == "done"
    with fails(errno.EPERM):
        as_other(lambda: submitted(shared, b"wc"))


def test_a_job_needs_the_rights_to_its_file_and_to_the_directory_of_its_output(
    bed: Testbed, settings: Settings, root: Path, shared: Path
) -> None:
    settings.allow(ALLOWED)
    assert "may not write to" in refused(bed, shared, {"run": "wc", "output": "out"}, errno.EACCES)
    (root / "closed").mkdir(0o700)
    assert "may not search" in refused(bed, shared, {"run": "wc", "output": "closed/d/out"}, errno.EACCES)
    shared.chmod(0o622)
    assert "may not read the file" in refused(bed, shared, b"wc", errno.EACCES)
    assert sorted(os.listdir(root)) == ["closed", "file"]


SHELL: dict[str, Any] = {"run": "wc -c | tr -d ' '", "shell": True}


def test_a_shell_runs_only_where_it_is_allowed(bed: Testbed, settings: Settings, shared: Path) -> None:
    settings.allow(ALLOWED)
    assert "shell" in refused(bed, shared, SHELL, errno.EPERM)
    settings.allow(f"{ALLOWED}\nshell = true")
    job = as_his(lambda: submitted(shared, SHELL))
    assert finished(bed, job)["state"] == "done"
    assert left(bed, job, "stdout") == b"%d\n" % shared.stat().st_size


def test_of_listed_commands_the_very_word_is_allowed_and_nothing_else(bed: Testbed, settings: Settings, shared: Path) -> None:
    settings.allow(f'{ALLOWED}\ncommands = ["wc"]')
    for command in ("cat", "/usr/bin/wc", "./wc", "env wc", "sh -c wc"):
        assert "is not one of those" in refused(bed, shared, {"run": command}, errno.EPERM)
    assert finished(bed, as_his(lambda: submitted(shared, {"run": "wc -c"})))["state"] == "done"


def test_without_commands_functions_are_still_done(bed: Testbed, settings: Settings, shared: Path) -> None:
    settings.allow(f"{ALLOWED}\ncommands = false")
    assert "switched off" in refused(bed, shared, {"run": "wc"}, errno.EPERM)
    assert finished(bed, as_his(lambda: submitted(shared, b"wc")))["state"] == "done"
