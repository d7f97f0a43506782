"""Jobs outlive the scheduler: what was said of one is there after a kill, and its number is never used again."""

from __future__ import annotations

import errno
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload.job import Input, Output
from scheduler.jobs.store import JobStore
from tests.unit.jobs import ALICE, BOB, job, request, source


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


def reopened(path: Path, filesystem: str = "one") -> JobStore:
    """What a scheduler finds whose predecessor was killed: nobody has closed that one's store."""
    return JobStore(path, filesystem)


def test_a_living_job_is_found_as_it_was(path: Path) -> None:
    asked = request("zstd -3 {}", "command", arguments=("zstd", "-3", "{}"), timeout_s=5.0)
    output = Output(1, b"big\xff.zst", "/big.zst", True, 0o600)
    waiting = job(4, request=asked, output=output, file=source(["a-1", "b-1"], None, ["b-1"]))
    store = JobStore(path, "one")
    store.save(waiting)
    assert reopened(path).living() == [waiting]
    running = waiting.with_changes(state="running", started_ns=5, nodes=("a",), attempts=2, decision="since", network_bytes=3)
    store.save(running)
    assert reopened(path).living() == [running]


def test_an_ended_job_keeps_what_it_has_left_and_not_the_places_of_its_chunks(path: Path) -> None:
    store = JobStore(path, "one")
    for state in ("queued", "running"):
        store.save(job(4, state=state))
    left: dict[str, Any] = {
        "result": {"lines": 1 << 70},
        "stdout": b"\0\xff",
        "stderr": b"oh",
        "exit_code": 3,
        "error": "it failed",
    }
    ended = job(4, state="failed", ended_ns=9, **left)
    store.save(ended)
    store = reopened(path)
    assert store.living() == []
    assert store.load(4) == ended.with_changes(input=Input(7, "file.log", ended.input.size))
    assert store.load(5) is None
    with sqlite3.connect(path) as database:
        assert database.execute("SELECT count(*) FROM places").fetchone() == (0,)


def test_numbers_are_never_used_again(path: Path) -> None:
    assert [JobStore(path, "one").take_id() for _ in range(3)] == [1, 2, 3]
    assert reopened(path, "another").take_id() == 4


def test_jobs_of_another_filesystem_are_forgotten(path: Path) -> None:
    store = JobStore(path, "one")
    store.save(job(1))
    store.save(job(2, state="done", ended_ns=1))
    store = reopened(path, "another")
    assert (store.living(), list(store.listed(None, 9)), store.newest(7, None), store.load(2)) == ([], [], None, None)


def test_the_newest_job_of_a_file_and_the_list_are_those_of_a_user_or_of_all(path: Path) -> None:
    store = JobStore(path, "one")
    for number, uid, ino in ((1, ALICE, 7), (2, BOB, 7), (3, ALICE, 8)):
        store.save(job(number, uid, source(["a-1"], ino=ino)))
    assert [store.newest(7, uid) for uid in (None, ALICE, BOB)] == [2, 1, 2]
    assert store.newest(9, None) is None
    assert [found.id for found in store.listed(None, 2)] == [3, 2]
    assert [found.id for found in store.listed(ALICE, 9)] == [3, 1]


def test_what_was_removed_leaves_nothing(path: Path) -> None:
    store = JobStore(path, "one")
    for number, ended_ns in ((1, 30), (2, 20), (3, 0)):
        store.save(job(number, state="done" if ended_ns else "queued", ended_ns=ended_ns, stdout=b"x" * 5000))
    assert [found.id for found in store.ended()] == [2, 1]
    assert all(found.size_bytes > 5000 for found in store.ended())
    store.remove([1, 2])
    assert store.ended() == []
    with sqlite3.connect(path) as database:
        counts = [database.execute(f"SELECT count(*) FROM {table}").fetchone()[0] for table in ("jobs", "places", "outputs")]
    assert counts == [1, 1, 0]


def test_a_change_that_cannot_be_kept_is_told_and_has_not_happened(path: Path) -> None:
    store = JobStore(path, "one")
    store.save(job(1))
    store._database.execute("PRAGMA query_only = ON")
    with pytest.raises(FilesystemError, match="cannot be written") as raised:
        store.save(job(1, state="done", ended_ns=1))
    assert raised.value.errno == errno.EIO
    assert reopened(path).living() == [job(1)]


def test_only_the_owner_can_read_it(path: Path) -> None:
    JobStore(path, "one")
    assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("content", [b"no database at all, but long enough to be one" * 99, b"SQLite format 3\0 and no more"])
def test_a_file_that_is_no_store_is_refused_with_a_sentence(path: Path, content: bytes) -> None:
    path.write_bytes(content)
    with pytest.raises(GridfsError, match="is not a store of jobs"):
        JobStore(path, "one")


def test_a_store_of_another_format_is_refused(path: Path) -> None:
    JobStore(path, "one").set_fact("format", 99)
    with pytest.raises(GridfsError, match="is of format 99"):
        reopened(path)
