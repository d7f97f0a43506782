"""Nobody has more done than the settings allow, and a bad file allows nothing new."""

from __future__ import annotations

import errno
import os
import pwd
from pathlib import Path
from typing import Any

import pytest

from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload.job import Request, Submitter
from scheduler.jobs.settings import Settings, SettingsFile, parse
from tests.unit.jobs import ALICE, BOB, request

MOUNTER = ALICE


def allows(settings: Settings, asked: Request | None = None, uid: int = MOUNTER, groups: tuple[int, ...] = ()) -> int:
    """The errno with which a request is refused, 0 if it is not."""
    try:
        settings.check(asked or request(), Submitter(uid, 100, groups), MOUNTER)
    except FilesystemError as error:
        assert error.strerror != os.strerror(error.errno or 0), "a refusal says why"
        return error.errno or 0
    return 0


def of(text: str) -> Settings:
    """The settings of a file with these lines in its table."""
    return parse(f"[offload]\n{text}\n".encode())


def command(*words: str, shell: bool = False) -> Request:
    return request(words[0], "command", arguments=words, shell=shell)


# -- who -------------------------------------------------------------------------------------------------------------


def test_by_default_root_and_who_has_mounted_may_submit() -> None:
    assert [allows(Settings(), uid=uid) for uid in (0, MOUNTER, BOB)] == [0, 0, errno.EPERM]


def test_users_and_groups_are_named_by_name_or_number() -> None:
    root = pwd.getpwuid(0).pw_name
    settings = of(f'users = ["{root}", {BOB}]\ngroups = [100, 7]')
    assert [allows(settings, uid=uid) for uid in (0, BOB)] == [0, 0]
    settings = of(f"users = [{BOB}]\ngroups = [7]")
    assert [allows(settings, uid=uid, groups=groups) for uid, groups in ((BOB, ()), (5, (7,)), (5, (8,)), (0, ()))] == [
        *(0, 0, errno.EPERM, errno.EPERM)
    ]


def test_all_can_be_switched_off() -> None:
    assert allows(of("enabled = false"), uid=0) == errno.EPERM


# -- what ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "asked", "expected"),
    [
        ("", command("zstd", "-3"), 0),
        ("commands = false", command("zstd"), errno.EPERM),
        ("commands = false", command("zstd", shell=True), errno.EPERM),
        ('commands = ["zstd"]', command("zstd", "-3"), 0),
        ('commands = ["zstd"]', command("/tmp/zstd"), errno.EPERM),
        ('commands = ["zstd"]', command("sh", "-c", "zstd"), errno.EPERM),
        ('commands = ["zstd"]', request("zstd", "command", arguments=()), errno.EPERM),
        ("", command("zstd | cat", shell=True), errno.EPERM),
        ("shell = true", command("zstd | cat", shell=True), 0),
        ("shell = true\ncommands = ['zstd']", command("zstd | cat", shell=True), errno.EPERM),
        ("shell = true\ncommands = ['zstd', 'sh']", command("zstd | cat", shell=True), 0),
        ("", request("mymod:score", "python"), errno.EPERM),
        ('python = ["mymod"]', request("mymod:score", "python"), 0),
        ('python = ["mymod"]', request("mymod.sub:score", "python"), errno.EPERM),
        ("", request(timeout_s=86401.0), errno.EINVAL),
        ("", request(timeout_s=0.0), errno.EINVAL),
        ("", request(timeout_s=float("nan")), errno.EINVAL),
        ("timeout_max_s = 10", request(timeout_s=11.0), errno.EINVAL),
        ('memory_max_bytes = "1GiB"', request(memory_bytes=1 << 31), errno.EINVAL),
        ('memory_max_bytes = "1GiB"', request(memory_bytes=1 << 30), 0),
    ],
)
def test_what_is_allowed(text: str, asked: Request, expected: int) -> None:
    assert allows(of(text), asked) == expected


def test_quotas_are_settings() -> None:
    quotas = of(
        "queue_max = 5\nqueued_per_user_max = 4\nrunning_max = 3\nrunning_per_user_max = 2\nrunning_per_node_max = 1"
    ).quotas
    assert (quotas.queue_max, quotas.queued_per_user_max, quotas.running_max) == (5, 4, 3)
    assert (quotas.running_per_user_max, quotas.running_per_node_max) == (2, 1)


# -- files -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"[offload", "no TOML"),
        (b"\xff", "no TOML"),
        (b"[ofload]\nshell = true", "one table"),
        (b"offload = 3", "one table"),
        (b"[offload]\nshel = true", "no setting 'shel'"),
        (b"[offload]\nshell = 1", "true or false"),
        (b"[offload]\nqueue_max = -1", "0 or more"),
        (b"[offload]\nqueue_max = true", "0 or more"),
        (b"[offload]\nkeep_s = 0", "above 0"),
        (b"[offload]\nkeep_s = inf", "above 0"),
        (b"[offload]\nmemory_max_bytes = 'much'", "is not a size"),
        (b"[offload]\nusers = ['nobody here']", "no user 'nobody here'"),
        (b"[offload]\nusers = [true]", "a list"),
        (b"[offload]\npython = 'mymod'", "a list"),
        (b"[offload]\ncommands = [1]", "a list"),
    ],
)
def test_a_bad_file_is_refused_with_a_sentence(content: bytes, reason: str) -> None:
    with pytest.raises(GridfsError, match=reason):
        parse(content)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "offload.toml"


def test_the_file_is_read_again_when_it_changes(path: Path) -> None:
    file = SettingsFile(path)
    assert file.settings == Settings()
    path.write_text("[offload]\nshell = true\n")
    assert (file.refresh(), file.settings.shell, file.refresh()) == (True, True, False)
    path.unlink()
    assert (file.refresh(), file.settings) == (True, Settings())


@pytest.mark.expected_log("is passed over")
def test_a_bad_file_leaves_what_was_allowed_before(path: Path) -> None:
    path.write_text("[offload]\nshell = true\n")
    file = SettingsFile(path)
    path.write_text("[offload]\nshell = maybe\n")
    assert not file.refresh()
    assert file.settings.shell


@pytest.mark.expected_log("is passed over")
@pytest.mark.parametrize("make", [lambda path: path.write_text("enabled = fals"), lambda path: path.mkdir()])
def test_a_scheduler_that_starts_with_a_bad_file_allows_nothing(path: Path, make: Any) -> None:
    make(path)
    file = SettingsFile(path)
    assert allows(file.settings, uid=0) == errno.EPERM
