"""`.gridfs` of a mount: what it shows, to whom, and that nothing in it can be changed."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import AsyncIterator, Awaitable, Callable
from types import SimpleNamespace
from typing import Any

import pyfuse3
import pytest
import trio
import trio.testing

from gridfs.config import XATTR_SIZE_MAX_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from mount import tree, virtual
from mount.offload import shortened
from mount.operations import Operations
from mount.recent import KEPT, Recent, Refusal
from mount.tree import FIRST, Place, Tree, place_of
from mount.virtual import Virtual
from tests.unit.fake_jobs import Scheduler, scheduler_and_client, status_of

UID, OTHER = 1000, 1001
READ_ONLY = os.O_RDONLY


class Shown:
    """The tree, and the scheduler behind it; job 17 is UID's, job 18 root's."""

    def __init__(self, scheduler: Scheduler, shown: Tree, errors: Recent[Refusal]) -> None:
        self.scheduler, self.tree, self.errors = scheduler, shown, errors
        self.jobs = scheduler.service.jobs

    async def find(self, path: str, uid: int = UID) -> int:
        """The inode that the path leads to."""
        ino = ROOT_INO
        for name in path.split("/"):
            ino = (await self.tree.lookup(ino, name.encode(), uid)).ino
        return ino

    async def read(self, path: str, uid: int = UID) -> bytes:
        """What cat(1) prints."""
        fh = await self.tree.open(await self.find(path, uid), READ_ONLY, uid)
        content = b""
        while piece := self.tree.read(fh, len(content), 7):
            content += piece
        self.tree.release(fh)
        return content

    async def list(self, path: str, uid: int = UID) -> list[str]:
        """What ls(1) prints."""
        fh = await self.tree.opendir(await self.find(path, uid), uid)
        names = [name.decode() for _, name, _ in self.tree.names(fh, 0)]
        self.tree.release(fh)
        assert names[:2] == [".", ".."]
        return names[2:]


@pytest.fixture
async def shown() -> AsyncIterator[Shown]:
    errors = Recent[Refusal]()
    with trio.fail_after(20):
        async with scheduler_and_client() as (scheduler, client):
            shown = Shown(scheduler, Tree(client, errors), errors)
            shown.jobs[17] = status_of(17, uid=UID, started=2e9)
            shown.jobs[18] = status_of(18, uid=0)
            yield shown


async def refused(call: Callable[..., Awaitable[Any]], *arguments: Any) -> str:
    with pytest.raises(FilesystemError) as raised:
        await call(*arguments)
    return errno.errorcode[raised.value.errno or 0]


# -- what it shows ---------------------------------------------------------------------------------------------------


async def test_jobs_are_listed_to_who_submitted_them_and_to_root(shown: Shown) -> None:
    assert await shown.list(".gridfs") == ["jobs"]
    assert await shown.list(".gridfs/jobs") == ["last-error", "17"]
    assert await shown.list(".gridfs/jobs", OTHER) == ["last-error"]
    assert await shown.list(".gridfs/jobs", 0) == ["last-error", "18", "17"]
    assert await shown.list(".gridfs/jobs/17") == ["status", "result", "stdout", "stderr"]


async def test_the_files_of_a_job_say_what_the_scheduler_says(shown: Shown) -> None:
    shown.scheduler.service.left = {"stdout": b"out\n" * 100, "stderr": b"\xff", "result": b'{"lines": 3}'}
    assert json.loads(await shown.read(".gridfs/jobs/17/status"))["id"] == 17
    for what, content in shown.scheduler.service.left.items():
        assert await shown.read(f".gridfs/jobs/17/{what}") == content


async def test_a_job_of_somebody_else_is_not_there(shown: Shown) -> None:
    for path in (".gridfs/jobs/18", ".gridfs/jobs/18/status"):
        assert await refused(shown.find, path) == "ENOENT"
    assert await refused(shown.tree.open, await shown.find(".gridfs/jobs/18/stdout", 0), READ_ONLY, OTHER) == "ENOENT"
    assert await shown.find(".gridfs/jobs/17", 0) == await shown.find(".gridfs/jobs/17", UID)


@pytest.mark.parametrize("name", ["0", "017", "99", "-1", "1e1", "9" * 30, "17 ", "x", "status", "jobs", "\u0661", ".gridfs"])
async def test_any_other_name_is_enoent(shown: Shown, name: str) -> None:
    assert await refused(shown.find, f".gridfs/jobs/{name}") == "ENOENT"


@pytest.mark.parametrize(
    ("path", "code"),
    [
        (".gridfs/x", "ENOENT"),
        (".gridfs/jobs/17/x", "ENOENT"),
        (".gridfs/jobs/17/status/x", "ENOTDIR"),
        (".gridfs/17", "ENOENT"),
    ],
)
async def test_a_wrong_path_fails_as_any_other(shown: Shown, path: str, code: str) -> None:
    assert await refused(shown.find, path) == code


async def test_only_the_submitter_gets_by_the_modes(shown: Shown) -> None:
    async def mode(path: str) -> tuple[str, int]:
        attributes = await shown.tree.attributes(await shown.find(path), UID)
        return stat.filemode(attributes.mode), attributes.uid

    assert await mode(".gridfs") == await mode(".gridfs/jobs") == ("dr-xr-xr-x", 0)
    assert await mode(".gridfs/jobs/last-error") == ("-r--r--r--", 0)
    assert await mode(".gridfs/jobs/17") == ("drwx------", UID)
    for what in ("status", "result", "stdout", "stderr"):
        assert await mode(f".gridfs/jobs/17/{what}") == ("-r--------", UID)


async def test_times_are_those_of_the_job_s_last_step(shown: Shown) -> None:
    ino = await shown.find(".gridfs/jobs/17")
    assert (await shown.tree.attributes(ino, UID)).mtime_ns == 2 * 10**18
    shown.jobs[17]["ended"] = 3e9
    assert (await shown.tree.attributes(ino, UID)).mtime_ns == 3 * 10**18


async def test_the_last_error_is_the_reader_s_own(shown: Shown) -> None:
    shown.errors.put(UID, Refusal("because", 5))
    assert await shown.read(".gridfs/jobs/last-error") == b"because\n"
    assert await shown.read(".gridfs/jobs/last-error", OTHER) == b""
    ino = await shown.find(".gridfs/jobs/last-error")
    assert [(await shown.tree.attributes(ino, uid)).mtime_ns for uid in (UID, OTHER)] == [5, 0]


async def test_a_file_keeps_the_content_that_it_had_when_it_was_opened(shown: Shown) -> None:
    shown.scheduler.service.left["stdout"] = b"before"
    fh = await shown.tree.open(await shown.find(".gridfs/jobs/17/stdout"), READ_ONLY, UID)
    shown.scheduler.service.left["stdout"] = b"after, and longer"
    assert shown.tree.read(fh, 0, 100) == b"before"
    assert shown.tree.read(fh, 100, 100) == b""


async def test_a_listing_goes_on_where_it_was_left(shown: Shown) -> None:
    fh = await shown.tree.opendir(await shown.find(".gridfs/jobs", 0), 0)
    first = list(shown.tree.names(fh, 0))
    shown.jobs.clear()
    for position, _, _ in first:
        assert [name for _, name, _ in shown.tree.names(fh, position)] == [name for _, name, _ in first[position:]]


async def test_an_inode_number_says_what_it_is(shown: Shown) -> None:
    for kind in range(8):
        for job in (0, 1, 17, 10**15):
            place = Place(kind, job)
            assert place_of(place.ino) == place
            assert FIRST <= place.ino < 1 << 64
    assert await refused(shown.tree.attributes, FIRST | 15, 0) == "ENOENT"
    assert place_of(await shown.find(".gridfs/jobs/17/status")).parent == await shown.find(".gridfs/jobs/17")
    assert place_of(await shown.find(".gridfs")).parent == ROOT_INO


async def test_handles_are_bounded_and_come_back(shown: Shown, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree, "HANDLES_MAX", 2)
    ino = await shown.find(".gridfs/jobs/last-error")
    fh = await shown.tree.open(ino, READ_ONLY, UID)
    await shown.tree.opendir(await shown.find(".gridfs"), UID)
    assert await refused(shown.tree.open, ino, READ_ONLY, UID) == "ENFILE"
    shown.tree.release(fh)
    again = await shown.tree.open(ino, READ_ONLY, UID)
    assert again >= FIRST
    assert again != fh
    with pytest.raises(FilesystemError):
        shown.tree.read(fh, 0, 1)


async def test_without_the_scheduler_what_it_knows_is_eio_and_the_rest_is_there(shown: Shown) -> None:
    await shown.find(".gridfs/jobs/17")
    shown.scheduler.end()
    assert await refused(shown.find, ".gridfs/jobs/17") == "EIO"
    assert await refused(shown.list, ".gridfs/jobs") == "EIO"
    shown.errors.put(UID, Refusal("why", 5))
    assert await shown.read(".gridfs/jobs/last-error") == b"why\n"


# -- what can be done ------------------------------------------------------------------------------------------------


async def test_a_job_is_cancelled_by_its_directory(shown: Shown) -> None:
    ino = await shown.find(".gridfs/jobs/17")
    assert await refused(shown.tree.cancel, await shown.find(".gridfs/jobs"), UID) == "ENODATA"
    assert await refused(shown.tree.cancel, ino, OTHER) == "ENOENT"
    await shown.tree.cancel(ino, UID)
    assert (await shown.tree.status(ino, UID))["state"] == "cancelled"
    assert await refused(shown.tree.cancel, ino, UID) == "ENODATA"


@pytest.mark.parametrize("flags", [os.O_WRONLY, os.O_RDWR, os.O_RDONLY | os.O_TRUNC, os.O_WRONLY | os.O_APPEND])
async def test_nothing_is_opened_for_writing(shown: Shown, flags: int) -> None:
    for path in (".gridfs/jobs/last-error", ".gridfs/jobs/17/status"):
        assert await refused(shown.tree.open, await shown.find(path), flags, UID) == "EPERM"


def requests(number: int, name: bytes) -> list[tuple[str, tuple[Any, ...]]]:
    """Every request that could change something about the inode, the name in it, or the handle of that number."""
    ctx, other = SimpleNamespace(uid=0, gid=0, pid=1, umask=0), (2, b"other")
    return [
        ("mknod", (number, name, 0o100644, 0, ctx)),
        ("mkdir", (number, name, 0o755, ctx)),
        ("create", (number, name, 0o644, os.O_RDWR, ctx)),
        ("symlink", (number, name, b"target", ctx)),
        ("link", (2, number, name, ctx)),
        ("unlink", (number, name, ctx)),
        ("rmdir", (number, name, ctx)),
        ("rename", (number, name, *other, 0, ctx)),
        ("rename", (*other, number, name, 0, ctx)),
    ]


@pytest.mark.parametrize(
    ("method", "arguments"),
    [
        *requests(ROOT_INO, b".gridfs"),
        *requests(Place(1).ino, b"99"),
        ("link", (Place(4, 17).ino, 2, b"name", None)),
        ("setattr", (Place(4, 17).ino, None, None, None, None)),
        ("setxattr", (Place(3, 17).ino, b"user.offload", b"sha256", None)),
        ("readlink", (Place(4, 17).ino, None)),
        ("write", (FIRST + 1, 0, b"x")),
    ],
)
async def test_every_change_is_eperm_and_reaches_no_file(shown: Shown, method: str, arguments: tuple[Any, ...]) -> None:
    class Untouchable:
        def __getattr__(self, name: str) -> Any:
            raise AssertionError(f"{name} was asked for")

    served = Operations(Untouchable(), shown.tree._jobs)  # type: ignore[arg-type]
    with pytest.raises(pyfuse3.FUSEError) as raised:
        await getattr(served, method)(*arguments)
    assert raised.value.errno == errno.EPERM


def test_what_concerns_the_tree_is_told_from_what_does_not() -> None:
    rename = virtual.places(Operations.rename)
    assert virtual.concerns(rename, (2, b"a", FIRST, b"b", 0, None))
    assert virtual.concerns(rename, (2, b"a", ROOT_INO, b".gridfs", 0, None))
    assert not virtual.concerns(rename, (2, b".gridfs", 3, b".gridfs", 0, None))
    assert not virtual.concerns(virtual.places(Operations.read), (1, 0, 5))
    assert virtual.concerns(virtual.places(Operations.read), (FIRST + 1, 0, 5))
    assert not virtual.concerns(virtual.places(Operations.forget), ([(FIRST, 1)],))
    assert not virtual.concerns(virtual.places(Operations.statfs), (None,))


async def test_the_kernel_is_told_to_keep_nothing(shown: Shown) -> None:
    answers = Virtual(shown.tree)
    ctx = SimpleNamespace(uid=UID)
    entry = await answers.answer("lookup", ROOT_INO, b".gridfs", ctx)
    assert (entry.entry_timeout, entry.attr_timeout) == (0, 0)
    assert stat.S_ISDIR(entry.st_mode)
    opened = await answers.answer("open", await shown.find(".gridfs/jobs/17/status"), READ_ONLY, ctx)
    assert opened.direct_io
    assert not opened.keep_cache
    assert await answers.answer("listxattr", Place(3, 17).ino, ctx) == []
    assert await refused(answers.answer, "getxattr", Place(3, 17).ino, b"system.posix_acl_access", ctx) == "ENODATA"
    assert json.loads(await answers.answer("getxattr", Place(3, 17).ino, b"user.offload", ctx))["id"] == 17


# -- what is kept for a moment ---------------------------------------------------------------------------------------


async def test_what_is_recent_is_bounded_and_ages(autojump_clock: trio.testing.MockClock) -> None:
    recent = Recent[int](age_s=5)
    for number in range(KEPT + 1):
        recent.put(number, number)
    assert recent.get(0) is None
    assert recent.get(1) == 1
    assert recent.take(2) == 2
    assert recent.get(2) is None
    await trio.sleep(6)
    assert recent.get(KEPT) is None


def test_a_status_is_cut_to_what_an_attribute_holds() -> None:
    status = status_of(1, result="r" * XATTR_SIZE_MAX_BYTES)
    short = json.loads(shortened(status))
    assert short == {**json.loads(json.dumps(status)), "result": None}
    status = status_of(1, request="é" * XATTR_SIZE_MAX_BYTES, decision="d" * XATTR_SIZE_MAX_BYTES, result=5)
    assert len(shortened(status)) <= XATTR_SIZE_MAX_BYTES
    assert json.loads(shortened(status_of(2, result=5)))["result"] == 5
