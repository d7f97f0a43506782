"""A file is handed to a job as it is: all that was written before, nothing that is written after, and by whom it may be."""

from __future__ import annotations

import errno
import json
import os
import stat
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.testing

from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.job import Input, Submitter
from gridfs.types import ChunkId
from gridfs.vfs import places
from gridfs.vfs.filesystem import Filesystem
from gridfs.vfs.places import Places
from mount.control import Control
from mount.offload import Offload
from tests.unit.fake_jobs import Scheduler, scheduler_and_client
from tests.vfs.cluster import USER, Cluster, running
from tests.vfs.faults import deadlines

REGULAR, DIRECTORY = 0o100644, 0o40755
SUBMITTER = Submitter(USER.uid, USER.gid)
STRANGER = Submitter(2000, 2000)
PID = 4711


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    with deadlines(), trio.fail_after(15):
        async with running(tmp_path, interposed=True) as cluster:
            yield cluster


class Mount:
    """A filesystem with a scheduler; `offload` answers for `user.offload`."""

    def __init__(self, filesystem: Filesystem, scheduler: Scheduler, offload: Offload) -> None:
        self.filesystem, self.scheduler, self.offload = filesystem, scheduler, offload
        self.submitted = scheduler.service.submitted

    async def make(self, name: bytes, mode: int = REGULAR, parent: int = ROOT_INO) -> int:
        """A new inode of USER."""
        return (await self.filesystem.make(USER, parent, name, mode)).ino

    async def refused(self, ino: int, value: bytes = b"sha256", submitter: Submitter = SUBMITTER) -> str:
        """The errno of a submission, whose sentence is told to the submitter, and to nobody else."""
        with pytest.raises(FilesystemError) as raised:
            await self.offload.set(ino, value, submitter, PID)
        refusal = self.offload.errors.get(submitter.uid)
        assert refusal is not None
        assert refusal.sentence == raised.value.strerror
        return errno.errorcode[raised.value.errno or 0]


@pytest.fixture
async def mount(filesystem: Filesystem) -> AsyncIterator[Mount]:
    async with scheduler_and_client() as (scheduler, client):
        await filesystem.change(ROOT_INO, mode=0o777)
        yield Mount(filesystem, scheduler, Offload(filesystem, client))


def source_of(mount: Mount, number: int = -1) -> Input:
    return Input.unpack(mount.submitted[number][2])


def held(cluster: Cluster, source: Input) -> bytes:
    """The bytes that the servers have of it now."""
    content = bytearray(source.size)
    for index, servers in source.chunks.items():
        chunks = cluster.node(servers[0]).service.chunks
        view, release = chunks.read(ChunkId(source.ino, index), 0, source.length(index))
        content[index * CHUNK_SIZE_BYTES : index * CHUNK_SIZE_BYTES + len(view)] = view
        if release is not None:
            release()
    return bytes(content)


# -- bytes -----------------------------------------------------------------------------------------------------------


async def test_all_that_was_written_before_is_with_the_servers_and_told_to_the_table(cluster: Cluster, mount: Mount) -> None:
    ino, vfs = await mount.make(b"file"), mount.filesystem
    fh = await vfs.open(ino, os.O_RDWR)
    content = os.urandom(CHUNK_SIZE_BYTES + MIB)
    for at in range(0, len(content), MIB):
        await vfs.data.write(fh, at, content[at : at + MIB])
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    source = source_of(mount)
    assert (source.ino, source.name, source.size) == (ino, "file", len(content))
    assert held(cluster, source) == content
    assert cluster.meta.engine.table.inode(ino).size == len(content)
    await vfs.data.write(fh, len(content), b"more")
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    assert source_of(mount).size == len(content) + 4


async def test_nobody_writes_or_cuts_while_a_job_is_being_submitted(cluster: Cluster, mount: Mount) -> None:
    ino, vfs = await mount.make(b"file"), mount.filesystem
    fh = await vfs.open(ino, os.O_RDWR)
    await vfs.data.write(fh, 0, b"before")
    mount.scheduler.service.stalled = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(mount.offload.set, ino, b"sha256", SUBMITTER, PID)
        with trio.fail_after(3):
            while not mount.scheduler.service.asked:
                await trio.sleep(0.01)
        nursery.start_soon(vfs.data.write, fh, 0, b"AFTER!")
        await trio.testing.wait_all_tasks_blocked(0.05)
        nursery.start_soon(vfs.data.truncate, ino, 3)
        await trio.testing.wait_all_tasks_blocked(0.05)
        assert bytes(await vfs.read(fh, 0, 9)) == b"before"
        mount.scheduler.service.stalled.set()
    assert bytes(await vfs.read(fh, 0, 9)) == b"AFT"
    assert source_of(mount).size == 6


async def test_holes_and_what_truncate_cut_are_no_chunks(cluster: Cluster, mount: Mount) -> None:
    ino, vfs = await mount.make(b"file"), mount.filesystem
    fh = await vfs.open(ino, os.O_RDWR)
    await vfs.data.write(fh, 2 * CHUNK_SIZE_BYTES, b"end")
    await vfs.data.write(fh, 5 * CHUNK_SIZE_BYTES, b"cut")
    await vfs.data.truncate(ino, 3 * CHUNK_SIZE_BYTES)
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    assert list(source_of(mount).chunks) == [2]
    assert source_of(mount).size == 3 * CHUNK_SIZE_BYTES
    await vfs.data.truncate(ino, 0)
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    assert (source_of(mount).size, source_of(mount).chunks) == (0, {})


@pytest.mark.expected_log("were lost")
async def test_bytes_that_are_lost_on_their_way_are_eio_and_no_job(cluster: Cluster, mount: Mount) -> None:
    ino, vfs = await mount.make(b"file"), mount.filesystem
    fh = await vfs.open(ino, os.O_RDWR)
    await vfs.data.write(fh, 0, b"x")
    await vfs.data.flush(fh)
    for node in cluster.nodes:
        cluster.kill(node.name)
    await vfs.data.write(fh, 0, b"y" * MIB)
    assert await mount.refused(ino) == "EIO"
    assert mount.submitted == []


# -- who, and where --------------------------------------------------------------------------------------------------


async def test_submitting_needs_the_right_to_read(mount: Mount) -> None:
    ino = await mount.make(b"file", stat.S_IFREG | 0o622)
    assert await mount.refused(ino, submitter=STRANGER) == "EACCES"
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    assert Submitter.unpack(mount.submitted[0][1]) == SUBMITTER
    await mount.offload.set(ino, b"sha256", Submitter(0, 0), PID)


async def test_only_regular_files_have_jobs(mount: Mount) -> None:
    for name, mode in ((b"d", DIRECTORY), (b"pipe", stat.S_IFIFO | 0o666)):
        assert await mount.refused(await mount.make(name, mode)) == "EINVAL"
    assert await mount.refused(ROOT_INO) == "EINVAL"
    assert await mount.refused(999) == "ENOENT"
    assert mount.submitted == []


async def test_a_file_without_a_name_is_enoent(mount: Mount) -> None:
    ino = await mount.make(b"file")
    await mount.filesystem.open(ino, os.O_RDONLY)
    await mount.filesystem.unlink(ROOT_INO, b"file")
    assert await mount.refused(ino) == "ENOENT"


async def test_an_output_is_found_beside_the_file_wherever_that_was_moved(mount: Mount) -> None:
    vfs, ino = mount.filesystem, await mount.make(b"file")
    directory = await mount.make(b"d", DIRECTORY)
    await vfs.lookup(ROOT_INO, b"file")
    await vfs.rename(ROOT_INO, b"file", directory, b"moved", 0)
    await mount.offload.set(ino, b'{"run": "cat", "output": "x"}', SUBMITTER, PID)
    output = mount.submitted[0][3]
    assert (output["parent"], output["name"], output["path"]) == (directory, b"x", "/d/x")
    assert source_of(mount).name == "moved"


async def test_an_output_that_may_not_be_made_refuses_the_job(mount: Mount) -> None:
    vfs, ino = mount.filesystem, await mount.make(b"file")
    await mount.make(b"there")
    await vfs.change(await mount.make(b"closed", DIRECTORY), uid=0)

    async def outcome(output: str, more: str = "") -> str:
        return await mount.refused(ino, f'{{"run": "cat", "output": "{output}"{more}}}'.encode())

    assert await outcome("there") == "EEXIST"
    assert await outcome("closed/x") == "EACCES"
    assert await outcome("../../x") == "EINVAL"
    assert await outcome("file", ', "overwrite": true') == "EINVAL"
    assert mount.submitted == []


async def test_a_name_that_is_no_text_is_shown_all_the_same(mount: Mount) -> None:
    await mount.offload.set(await mount.make(b"\xffname"), b"sha256", SUBMITTER, PID)
    assert source_of(mount).name == "\\xffname"


async def test_a_place_is_remembered_checked_and_else_searched_for(mount: Mount, monkeypatch: pytest.MonkeyPatch) -> None:
    vfs, known = mount.filesystem, Places()
    monkeypatch.setattr(places, "KEPT", 1)
    monkeypatch.setattr(places, "STEP", 2)
    directory = await mount.make(b"d", DIRECTORY)
    inos = [await mount.make(b"%d" % number, parent=directory) for number in range(5)]
    await vfs.link(inos[0], ROOT_INO, b"other")
    known.found(inos[0], ROOT_INO, b"other")
    assert await known.find(vfs.table, inos[0]) == (ROOT_INO, b"other")
    await vfs.unlink(ROOT_INO, b"other")
    assert await known.find(vfs.table, inos[0]) == (directory, b"0")
    known.found(inos[1], directory, b"1")
    assert [await known.find(vfs.table, ino) for ino in inos] == [(directory, b"%d" % number) for number in range(5)]


# -- the attribute ---------------------------------------------------------------------------------------------------


async def test_what_the_scheduler_refuses_keeps_its_errno_but_eagain_which_the_kernel_would_not_pass_on(mount: Mount) -> None:
    ino = await mount.make(b"file")
    for code, told in ((errno.EPERM, "EPERM"), (errno.EIO, "EIO"), (errno.EAGAIN, "EBUSY")):
        mount.scheduler.service.failure = FilesystemError(code, "as asked")
        assert await mount.refused(ino) == told
    assert await mount.refused(ino, b"frobnicate") == "EINVAL"
    assert mount.offload.errors.get(0) is None


async def test_without_a_scheduler_files_go_on(mount: Mount) -> None:
    ino = await mount.make(b"file")
    mount.scheduler.end()
    assert await mount.refused(ino) == "EBUSY"
    with pytest.raises(FilesystemError) as raised:
        await mount.offload.get(ino, SUBMITTER.uid, PID)
    assert raised.value.errno == errno.EIO
    fh = await mount.filesystem.open(ino, os.O_RDWR)
    await mount.filesystem.data.write(fh, 0, b"x")
    await mount.filesystem.data.fsync(fh)


async def test_the_attribute_tells_of_the_newest_job_that_the_reader_may_see(mount: Mount) -> None:
    ino = await mount.make(b"file")

    async def seen(uid: int, pid: int) -> int | None:
        try:
            status = json.loads(await mount.offload.get(ino, uid, pid))
        except FilesystemError as error:
            assert error.errno == errno.ENODATA
            return None
        return int(status["id"])

    assert await seen(0, 1) is None
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    await mount.offload.set(ino, b"sha256", Submitter(0, 0), PID + 1)
    assert await seen(0, 2) == 2
    assert await seen(SUBMITTER.uid, 3) == 1
    assert await seen(STRANGER.uid, 4) is None
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID + 2)
    assert await seen(SUBMITTER.uid, 5) == 3
    assert await seen(SUBMITTER.uid, PID) == 1, "who has submitted a job asks for that one"


async def test_the_size_and_the_value_of_one_getxattr_are_of_one_status(mount: Mount) -> None:
    ino = await mount.make(b"file")
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    size = len(await mount.offload.get(ino, SUBMITTER.uid, PID))
    mount.scheduler.service.jobs[1]["progress"] = 12345
    assert len(await mount.offload.get(ino, SUBMITTER.uid, PID)) == size
    assert b"12345" in await mount.offload.get(ino, SUBMITTER.uid, PID)


async def test_removing_the_attribute_cancels(mount: Mount) -> None:
    ino = await mount.make(b"file")
    await mount.offload.set(ino, b"sha256", SUBMITTER, PID)
    with pytest.raises(FilesystemError) as raised:
        await mount.offload.remove(ino, STRANGER.uid, PID)
    assert raised.value.errno == errno.ENODATA
    await mount.offload.remove(ino, SUBMITTER.uid, PID)
    assert json.loads(await mount.offload.get(ino, SUBMITTER.uid, PID))["state"] == "cancelled"
    with pytest.raises(FilesystemError):
        await mount.offload.remove(ino, SUBMITTER.uid, PID)


async def test_control_attributes_are_answered_and_never_listed(mount: Mount) -> None:
    ino, control = await mount.make(b"file"), Control(mount.filesystem, mount.offload)
    offload, layout, unknown = (control.find(name) for name in (b"user.offload", b"user.gridfs.layout", b"user.gridfs.x"))
    assert control.find(b"user.gridfs.replicas") is None
    assert control.find(b"user.offloading") is None
    assert offload is not None
    assert layout is not None
    assert unknown is not None
    await offload.set(ino, b"sha256", SUBMITTER, PID)
    assert await mount.filesystem.list_xattrs(ino) == []
    assert json.loads(await layout.get(ino, 0, PID))["size"] == 0
    for attribute, code in ((layout, errno.EPERM), (unknown, errno.EOPNOTSUPP)):
        for change in (attribute.set(ino, b"", SUBMITTER, PID), attribute.remove(ino, 0, PID)):
            with pytest.raises(FilesystemError) as raised:
                await change
            assert raised.value.errno == code
