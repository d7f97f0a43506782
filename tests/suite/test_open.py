"""Opening: flags, handles side by side, files without a name."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.suite.syscalls import fails, in_child, opened, syncfs, write

MIB = 1 << 20
WRITERS = 4
RECORDS = 100
RECORD_BYTES = 100


def test_o_excl_makes_the_file_or_fails(root: Path) -> None:
    """O_CREAT | O_EXCL succeeds once, and follows no symlink."""
    with opened(root / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY):
        pass
    with fails(errno.EEXIST):
        os.open(root / "file", os.O_CREAT | os.O_EXCL | os.O_WRONLY)
    (root / "dangling").symlink_to("nowhere")
    with fails(errno.EEXIST):
        os.open(root / "dangling", os.O_CREAT | os.O_EXCL | os.O_WRONLY)


def test_o_append_writes_at_the_end_whatever_the_offset(root: Path) -> None:
    """An appending handle ignores its position; another handle's growth moves its end."""
    path = write(root / "log", b"one,")
    with opened(path, os.O_WRONLY | os.O_APPEND) as appender, opened(path, os.O_WRONLY) as other:
        os.lseek(appender, 0, os.SEEK_SET)
        os.write(appender, b"two,")
        os.pwrite(other, b"three,", 8)
        os.write(appender, b"four")
    assert path.read_bytes() == b"one,two,three,four"


def test_appends_of_several_processes_are_whole(root: Path) -> None:
    """Records that processes append at the same time all arrive, none torn."""
    path = root / "log"
    path.touch()
    children = []
    for writer in range(WRITERS):
        child = os.fork()
        if child == 0:
            try:
                with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
                    for number in range(RECORDS):
                        os.write(fd, f"{writer}:{number}:".ljust(RECORD_BYTES - 1, "x").encode() + b"\n")
            finally:
                os._exit(0)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    records = path.read_bytes().splitlines()
    wanted = {f"{writer}:{number}:".ljust(RECORD_BYTES - 1, "x") for writer in range(WRITERS) for number in range(RECORDS)}
    assert len(records) == WRITERS * RECORDS
    assert {record.decode() for record in records} == wanted


def test_o_direct_reads_and_writes_the_same_bytes(root: Path) -> None:
    """O_DIRECT goes past the cache and agrees with a handle that does not."""
    path = root / "file"
    content = random.Random(4).randbytes(2 * MIB)
    with mmap.mmap(-1, len(content)) as aligned:
        aligned[:] = content
        with opened(path, os.O_CREAT | os.O_RDWR | os.O_DIRECT) as direct:
            assert os.pwritev(direct, [aligned], 0) == len(content)
            assert path.read_bytes() == content
            with opened(path, os.O_WRONLY) as buffered:
                os.pwrite(buffered, b"changed", 4096)
                os.fsync(buffered)
            aligned[:] = bytes(len(content))
            assert os.preadv(direct, [aligned], 0) == len(content)
            assert aligned[:] == content[:4096] + b"changed" + content[4103:]


def test_a_handle_survives_rename_and_chmod(root: Path) -> None:
    """Rights are checked at open: later changes of name or mode do not touch the handle."""
    path = write(root / "file", b"abc")
    with opened(path, os.O_RDWR) as fd:
        path.chmod(0)
        path.rename(root / "other")
        os.pwrite(fd, b"X", 1)
        assert os.pread(fd, 10, 0) == b"aXc"
    assert (root / "other").read_bytes() == b"aXc"


@pytest.mark.parametrize(("flags", "action"), [
    (os.O_WRONLY, lambda fd: os.read(fd, 1)),
    (os.O_RDONLY, lambda fd: os.write(fd, b"x")),
    (os.O_PATH, lambda fd: os.read(fd, 1)),
])  # fmt: skip
def test_a_handle_does_only_what_it_was_opened_for(root: Path, flags: int, action: object) -> None:
    """EBADF for reading a write-only handle and for writing a read-only one."""
    assert callable(action)
    with opened(write(root / "file", b"abc"), flags) as fd, fails(errno.EBADF):
        action(fd)


def test_fsync_fdatasync_and_syncfs_succeed_on_files_and_directories(root: Path) -> None:
    """Durability can be asked for everywhere, with nothing to write too."""
    with opened(write(root / "file", b"abc"), os.O_RDWR) as fd:
        os.fsync(fd)
        os.write(fd, b"more")
        os.fdatasync(fd)
        os.fsync(fd)
        syncfs(fd)
    with opened(root, os.O_RDONLY | os.O_DIRECTORY) as fd:
        os.fsync(fd)


def test_o_sync_writes_succeed(root: Path) -> None:
    """O_SYNC and O_DSYNC handles write as others do."""
    for flag in (os.O_SYNC, os.O_DSYNC):
        with opened(root / "file", os.O_CREAT | os.O_RDWR | flag) as fd:
            os.pwrite(fd, b"synced", 0)
            assert os.pread(fd, 10, 0) == b"synced"


def test_the_handle_of_a_child_is_the_handle_of_its_parent(root: Path) -> None:
    """A file descriptor inherited by fork(2) shares its offset and its file."""
    with opened(root / "file", os.O_CREAT | os.O_RDWR) as fd:
        os.write(fd, b"parent,")
        in_child(lambda: os.write(fd, b"child,"))
        os.write(fd, b"parent")
        assert os.pread(fd, 100, 0) == b"parent,child,parent"
