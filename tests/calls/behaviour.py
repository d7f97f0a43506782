"""What a filesystem does, case by case. `tests/vfs` runs each on the vfs object, `tests/suite` through the kernel.

A case is a function that is given the calls of an empty filesystem. What it leaves behind is removed by whoever runs it.
"""

from __future__ import annotations

import errno
import os
import random
import stat
from collections.abc import Callable
from functools import partial

import pytest
from _pytest.mark import ParameterSet

from tests.calls import FIRST, SECOND, Calls, errnos, get, put, times
from tests.suite.syscalls import eventually, fails

Case = Callable[[Calls], None]
CASES: dict[str, Case] = {**times.CASES, **errnos.CASES}
"""By name; those below come on top."""

MIB = 1 << 20
CHUNK_BYTES = 8 * MIB
TIB = 1 << 40


def parameters() -> list[ParameterSet]:
    """The cases for `parametrize`."""
    return [pytest.param(function, id=name) for name, function in CASES.items()]


def case(function: Case) -> Case:
    """Declare a case."""
    CASES[function.__name__] = function
    return function


# -- names -----------------------------------------------------------------------------------------------------------


@case
def a_new_directory_is_empty_and_a_removed_one_is_gone(calls: Calls) -> None:
    calls.mkdir("d", 0o750)
    assert stat.S_IMODE(calls.stat("d").mode) == 0o750
    assert calls.listdir("d") == []
    calls.rmdir("d")
    assert calls.listdir("") == []


@case
def nlink_of_a_directory_counts_its_subdirectories(calls: Calls) -> None:
    for path in ("one", "two", "one/a", "one/b"):
        calls.mkdir(path)
    put(calls, "one/file")
    assert calls.stat("one").nlink == 4
    calls.rename("one/a", "two/a")
    assert (calls.stat("one").nlink, calls.stat("two").nlink) == (3, 3)
    calls.rmdir("one/b")
    assert calls.stat("one").nlink == 2


@case
def hard_links_are_one_file(calls: Calls) -> None:
    """Names share inode, content, mode and nlink; the file goes with the last of them."""
    put(calls, "a", b"content")
    calls.mkdir("d")
    calls.link("a", "d/b")
    assert calls.stat("a") == calls.stat("d/b")
    assert calls.stat("a").nlink == 2
    put(calls, "d/b", b"other")
    calls.chmod("d/b", 0o600)
    assert get(calls, "a") == b"other"
    assert calls.stat("a").mode == stat.S_IFREG | 0o600
    calls.unlink("a")
    assert calls.stat("d/b").nlink == 1
    assert get(calls, "d/b") == b"other"


@case
def a_hard_link_to_a_symlink_links_the_symlink(calls: Calls) -> None:
    calls.symlink(b"nowhere", "s")
    calls.link("s", "t")
    assert calls.readlink("t") == b"nowhere"
    assert calls.stat("t").nlink == 2


@case
def symlinks_hold_any_target(calls: Calls) -> None:
    """Relative, absolute, dangling and long targets come back byte for byte; size is the target's length."""
    for number, target in enumerate([b"x", b"../up/and/down", b"/absolute", b"\xff\xfe not utf-8", b"n/" * 2047]):
        calls.symlink(target, f"link{number}")
        assert calls.readlink(f"link{number}") == target
        status = calls.stat(f"link{number}")
        assert (status.mode, status.size) == (stat.S_IFLNK | 0o777, len(target))


@case
def device_nodes_keep_their_numbers(calls: Calls) -> None:
    for name, kind, device in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("block", stat.S_IFBLK, os.makedev(7, 0)),
        ("large", stat.S_IFCHR, os.makedev(300, 70_000)),
    ):
        calls.mknod(name, kind | 0o600, device)
        assert (calls.stat(name).mode, calls.stat(name).rdev) == (kind | 0o600, device)


@case
def mknod_makes_a_regular_file(calls: Calls) -> None:
    calls.mknod("file", stat.S_IFREG | 0o604)
    status = calls.stat("file")
    assert (status.mode, status.size, status.nlink) == (stat.S_IFREG | 0o604, 0, 1)
    put(calls, "file", b"x")


@case
def a_handle_lists_again_after_rewinding(calls: Calls) -> None:
    calls.mkdir("d")
    calls.open(FIRST, "d", os.O_RDONLY | os.O_DIRECTORY)
    assert calls.entries(FIRST) == []
    put(calls, "d/later")
    assert calls.entries(FIRST) == ["later"]
    calls.close(FIRST)


# -- bytes -----------------------------------------------------------------------------------------------------------


@case
def a_read_across_the_end_is_short(calls: Calls) -> None:
    put(calls, "file", b"0123456789")
    calls.open(FIRST, "file", os.O_RDONLY)
    assert [calls.read(FIRST, offset, 100) for offset in (5, 10, TIB)] == [b"56789", b"", b""]
    calls.close(FIRST)


@case
def a_write_past_the_end_leaves_a_hole_of_zeros(calls: Calls) -> None:
    put(calls, "file", b"begin")
    calls.open(FIRST, "file", os.O_RDWR)
    calls.write(FIRST, 2 * CHUNK_BYTES + 5, b"end")
    calls.close(FIRST)
    assert get(calls, "file") == b"begin" + bytes(2 * CHUNK_BYTES) + b"end"


def what_truncate_cut_reads_as_zeros(size: int, calls: Calls) -> None:
    """Also once the file grows again."""
    content = random.Random(3).randbytes(CHUNK_BYTES + 5000)
    put(calls, "file", content)
    calls.open(FIRST, "file", os.O_RDWR)
    calls.truncate("file", size)
    assert calls.fstat(FIRST).size == size
    calls.ftruncate(FIRST, len(content))
    assert calls.stat("file").size == len(content)
    assert calls.read(FIRST, 0, len(content)) == content[:size] + bytes(len(content) - size)
    calls.close(FIRST)


for _size in (0, 1, 4096, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1):
    CASES[f"what_truncate_cut_reads_as_zeros-{_size}"] = partial(what_truncate_cut_reads_as_zeros, _size)


@case
def overwriting_in_the_middle_keeps_the_rest(calls: Calls) -> None:
    """A small write changes its own bytes only, also across a chunk boundary and after the file was closed."""
    content = bytearray(random.Random(1).randbytes(2 * CHUNK_BYTES + 1000))
    put(calls, "file", bytes(content))
    for offset in (0, 4095, CHUNK_BYTES - 3, 2 * CHUNK_BYTES - 1, len(content) - 6):
        calls.open(FIRST, "file", os.O_WRONLY)
        calls.write(FIRST, offset, b"change")
        calls.close(FIRST)
        content[offset : offset + 6] = b"change"
    assert get(calls, "file") == content


def what_changes_ahead_of_a_reader_is_seen(change: Callable[[Calls, bytearray], object], calls: Calls) -> None:
    """Who reads from the front has its bytes fetched ahead: they must not be the old ones."""
    content, step = bytearray(random.Random(6).randbytes(4 * MIB)), MIB // 8
    put(calls, "file", bytes(content))
    calls.open(FIRST, "file", os.O_RDWR)
    for offset in range(0, 4 * MIB, step):
        if offset == MIB:
            change(calls, content)
        assert calls.read(FIRST, offset, step) == content[offset : offset + step]
    calls.close(FIRST)


def _overwrite(calls: Calls, content: bytearray) -> None:
    calls.write(FIRST, MIB + 5, b"changed")
    content[MIB + 5 : MIB + 12] = b"changed"


def _cut_and_grow(calls: Calls, content: bytearray) -> None:
    calls.ftruncate(FIRST, MIB + 5)
    calls.ftruncate(FIRST, 4 * MIB)
    content[MIB + 5 :] = bytes(3 * MIB - 5)


CASES["what_is_overwritten_ahead_of_a_reader_is_seen"] = partial(what_changes_ahead_of_a_reader_is_seen, _overwrite)
CASES["what_is_cut_ahead_of_a_reader_is_seen"] = partial(what_changes_ahead_of_a_reader_is_seen, _cut_and_grow)


@case
def o_trunc_empties_the_file(calls: Calls) -> None:
    put(calls, "file", b"x" * (9 * MIB))
    calls.open(FIRST, "file", os.O_RDWR | os.O_TRUNC)
    assert calls.fstat(FIRST).size == 0
    calls.write(FIRST, 0, b"new")
    calls.close(FIRST)
    assert get(calls, "file") == b"new"


@case
def two_handles_on_one_file_are_coherent(calls: Calls) -> None:
    """What one handle writes, cuts or grows, the other sees at once."""
    calls.open(FIRST, "file", os.O_CREAT | os.O_RDWR)
    calls.open(SECOND, "file", os.O_RDWR)
    for number in range(50):
        calls.write(FIRST, number * 4096, b"%08d" % number)
        assert calls.read(SECOND, number * 4096, 8) == b"%08d" % number
        assert calls.fstat(SECOND).size == number * 4096 + 8
    calls.ftruncate(SECOND, 4)
    assert calls.fstat(FIRST).size == 4
    assert calls.read(FIRST, 0, 100) == b"0000"
    for handle in (FIRST, SECOND):
        calls.close(handle)


@case
def an_unlinked_open_file_stays_readable_and_writable(calls: Calls) -> None:
    """Without a name the file lives on until its last handle closes: nlink 0, content whole, growing still."""
    content = random.Random(5).randbytes(9 * MIB)
    put(calls, "file", content)
    calls.open(FIRST, "file", os.O_RDWR)
    calls.unlink("file")
    assert calls.listdir("") == []
    assert calls.fstat(FIRST).nlink == 0
    assert calls.read(FIRST, 0, len(content)) == content
    calls.write(FIRST, len(content), b"still")
    assert calls.read(FIRST, len(content) - 1, 10) == content[-1:] + b"still"
    calls.ftruncate(FIRST, 3)
    calls.fsync(FIRST)
    put(calls, "file", b"another file of that name")
    assert calls.read(FIRST, 0, 10) == content[:3]
    assert calls.fstat(FIRST).size == 3
    calls.close(FIRST)
    assert get(calls, "file") == b"another file of that name"


@case
def a_file_renamed_over_stays_readable_through_its_handle(calls: Calls) -> None:
    put(calls, "old", b"old")
    put(calls, "new", b"new")
    calls.open(FIRST, "old", os.O_RDONLY)
    calls.rename("new", "old")
    assert calls.read(FIRST, 0, 10) == b"old"
    assert calls.fstat(FIRST).nlink == 0
    calls.close(FIRST)
    assert get(calls, "old") == b"new"


@case
def fsync_succeeds_with_nothing_to_write_and_on_directories(calls: Calls) -> None:
    put(calls, "file", b"x")
    calls.mkdir("d")
    for path, flags in (("file", os.O_RDONLY), ("d", os.O_RDONLY | os.O_DIRECTORY)):
        calls.open(FIRST, path, flags)
        calls.fsync(FIRST)
        calls.close(FIRST)


# -- extended attributes ---------------------------------------------------------------------------------------------


@case
def xattrs_are_set_listed_replaced_and_removed(calls: Calls) -> None:
    """On files and directories, with empty and binary values."""
    calls.mkdir("d")
    put(calls, "file")
    for path in ("file", "d"):
        assert calls.listxattr(path) == []
        for name, value in (("user.one", b"1"), ("user.empty", b""), ("user.binary", bytes(range(256)))):
            calls.setxattr(path, name, value)
            assert calls.getxattr(path, name) == value
        calls.setxattr(path, "user.one", b"another")
        assert calls.getxattr(path, "user.one") == b"another"
        calls.removexattr(path, "user.one")
        assert calls.listxattr(path) == ["user.binary", "user.empty"]


@case
def missing_xattrs_are_enodata(calls: Calls) -> None:
    put(calls, "file")
    with fails(errno.ENODATA):
        calls.getxattr("file", "user.none")
    with fails(errno.ENODATA):
        calls.removexattr("file", "user.none")


@case
def a_hundred_xattrs_are_all_listed(calls: Calls) -> None:
    put(calls, "file")
    wanted = {f"user.number-{number}": f"value-{number}".encode() for number in range(100)}
    for name, value in wanted.items():
        calls.setxattr("file", name, value)
    assert {name: calls.getxattr("file", name) for name in calls.listxattr("file")} == wanted


@case
def xattrs_belong_to_the_inode(calls: Calls) -> None:
    """They stay through rename and are seen through every hard link; a new file of the old name has none."""
    put(calls, "file")
    calls.setxattr("file", "user.a", b"1")
    calls.link("file", "link")
    calls.rename("file", "moved")
    assert calls.getxattr("moved", "user.a") == calls.getxattr("link", "user.a") == b"1"
    put(calls, "file")
    assert calls.listxattr("file") == []


# -- space -----------------------------------------------------------------------------------------------------------


@case
def statfs_follows_writes_and_unlinks(calls: Calls) -> None:
    """Bytes written are missing from the free space; after unlink they are back, in the background."""
    size, slack = 96 * MIB, 32 * MIB
    capacity, before = calls.statfs()
    assert 0 < before <= capacity
    block = random.Random(9).randbytes(MIB)
    calls.open(FIRST, "file", os.O_CREAT | os.O_RDWR)
    for number in range(size // MIB):
        calls.write(FIRST, number * MIB, block)
    calls.close(FIRST)
    eventually(lambda: abs(before - calls.statfs()[1] - size) < slack, "statfs counts what was written")
    calls.unlink("file")
    eventually(lambda: abs(before - calls.statfs()[1]) < slack, "statfs has the space back")
