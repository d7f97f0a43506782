"""Opening: flags, handles side by side, files without a name."""

from __future__ import annotations

import errno
import mmap
import os
import random
from pathlib import Path

import pytest

from tests.suite.syscalls import fails, in_child, listing, opened, syncfs, write

MIB = 1 << 20
WRITERS = 4
RECORDS = 100
RECORD_BYTES = 100


def test_o_trunc_empties_the_file(root: Path) -> None:
    """O_TRUNC leaves nothing of what was there, also for the reader that comes after."""
    path = write(root / "file", b"x" * (9 * MIB))
    with opened(path, os.O_WRONLY | os.O_TRUNC) as fd:
        assert os.fstat(fd).st_size == 0
        os.write(fd, b"new")
    assert path.read_bytes() == b"new"


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


def test_two_handles_on_one_file_are_coherent(root: Path) -> None:
    """What one handle writes, cuts or grows, the other sees at once."""
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as first, opened(path, os.O_RDWR) as second:
        for number in range(50):
            os.pwrite(first, f"{number:08}".encode(), number * 4096)
            assert os.pread(second, 8, number * 4096) == f"{number:08}".encode()
            assert os.fstat(second).st_size == number * 4096 + 8
        os.ftruncate(second, 4)
        assert os.fstat(first).st_size == 4
        assert os.pread(first, 100, 0) == b"0000"
        assert in_child(path.read_bytes) == b"0000"


def test_an_unlinked_open_file_stays_readable_and_writable(root: Path) -> None:
    """Without a name the file lives on until its last handle closes: nlink 0, content whole, growing still."""
    content = random.Random(5).randbytes(9 * MIB)
    path = write(root / "file", content)
    with opened(path, os.O_RDWR) as fd:
        os.unlink(path)
        assert listing(root) == []
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, len(content), 0) == content
        os.pwrite(fd, b"still", len(content))
        assert os.pread(fd, 10, len(content) - 1) == content[-1:] + b"still"
        os.ftruncate(fd, 3)
        os.fsync(fd)
        assert os.pread(fd, 10, 0) == content[:3]
        write(path, b"another file of that name")
        assert os.fstat(fd).st_size == 3
    assert path.read_bytes() == b"another file of that name"


def test_a_file_renamed_over_stays_readable_through_its_handle(root: Path) -> None:
    """rename(2) over an open file is an unlink for it."""
    old = write(root / "old", b"old")
    new = write(root / "new", b"new")
    with opened(old, os.O_RDONLY) as fd:
        os.rename(new, old)
        assert os.pread(fd, 10, 0) == b"old"
        assert os.fstat(fd).st_nlink == 0
    assert old.read_bytes() == b"new"


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
