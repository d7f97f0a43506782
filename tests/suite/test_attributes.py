"""Modes, owners and times."""

from __future__ import annotations

import os
import stat
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.syscalls import RENAME_EXCHANGE, let_the_clock_tick, opened, renameat2, write

Action = Callable[[Path], object]


def mode_of(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


def test_chmod_keeps_every_bit(root: Path) -> None:
    """All twelve bits, on files and directories, by path and by handle."""
    path = write(root / "file", b"")
    for mode in (0o000, 0o421, 0o777, 0o4755, 0o2755, 0o1777, 0o7777):
        path.chmod(mode)
        assert mode_of(path) == mode
    with opened(path, os.O_RDONLY) as fd:
        os.fchmod(fd, 0o640)
    assert mode_of(path) == 0o640
    root.chmod(0o1777)
    assert mode_of(root) == 0o1777


def test_chown_sets_owner_and_group(root: Path) -> None:
    """Both, or one with -1 for the other; a symlink has its own."""
    path = write(root / "file", b"")
    os.chown(path, 1234, 5678)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 5678)
    os.chown(path, -1, 99)
    assert (path.stat().st_uid, path.stat().st_gid) == (1234, 99)
    os.chown(path, 4_000_000_000, -1)
    assert (path.stat().st_uid, path.stat().st_gid) == (4_000_000_000, 99)
    (root / "link").symlink_to("file")
    os.lchown(root / "link", 7, 8)
    assert ((root / "link").lstat().st_uid, path.stat().st_uid) == (7, 4_000_000_000)


@pytest.mark.parametrize(
    ("atime_ns", "mtime_ns"),
    [(1, 2), (1_700_000_000_123_456_789, 1_600_000_000_987_654_321), (2**33 * 10**9 + 7, 0), (-1_000_000_001, -5)],
)
def test_utimens_keeps_nanoseconds(root: Path, atime_ns: int, mtime_ns: int) -> None:
    """Times of any day, before 1970 and after 2106, come back to the nanosecond; on symlinks too."""
    path = write(root / "file", b"x")
    os.utime(path, ns=(atime_ns, mtime_ns))
    assert (path.stat().st_atime_ns, path.stat().st_mtime_ns) == (atime_ns, mtime_ns)
    (root / "link").symlink_to("file")
    os.utime(root / "link", ns=(5, 6), follow_symlinks=False)
    assert (root / "link").lstat().st_mtime_ns == 6
    assert path.stat().st_mtime_ns == mtime_ns


def test_utimens_survives_the_close_of_a_written_file(root: Path) -> None:
    """Times set while a handle is open, as cp -p does, are not overwritten when it closes."""
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_WRONLY) as fd:
        os.write(fd, b"x" * 100_000)
        os.utime(fd, ns=(10**18, 10**18))
    assert path.stat().st_mtime_ns == 10**18


def times(path: Path) -> tuple[int, int]:
    """mtime and ctime."""
    status = path.lstat()
    return status.st_mtime_ns, status.st_ctime_ns


FILE_ACTIONS: dict[str, tuple[Action, str]] = {
    "write": (lambda path: path.write_bytes(b"more than before"), "mtime ctime"),
    "truncate": (lambda path: os.truncate(path, 1), "mtime ctime"),
    "chmod": (lambda path: path.chmod(0o600), "ctime"),
    "chown": (lambda path: os.chown(path, 1, 1), "ctime"),
    "utime": (lambda path: os.utime(path, ns=(1, path.stat().st_mtime_ns)), "ctime"),
    "setxattr": (lambda path: os.setxattr(path, "user.note", b"x"), "ctime"),
    "link": (lambda path: os.link(path, path.with_name("another")), "ctime"),
    "truncate to the size there is": (lambda path: os.truncate(path, 7), "mtime ctime"),
    "open with O_TRUNC": (lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)), "mtime ctime"),
    "open with O_CREAT": (lambda path: os.close(os.open(path, os.O_WRONLY | os.O_CREAT)), ""),
    "write nothing": (lambda path: write_nothing(path), ""),
    "chmod to the mode there is": (lambda path: path.chmod(0o644), "ctime"),
    "touch": (lambda path: os.utime(path), "mtime ctime"),
    "rename": (lambda path: path.rename(path.with_name("renamed")).rename(path), "ctime"),
    "rename onto itself": (lambda path: path.rename(path), ""),
    "read": (lambda path: path.read_bytes(), ""),
    "stat": (lambda path: path.stat(), ""),
}


def write_nothing(path: Path) -> None:
    """write(2) of no bytes."""
    with opened(path, os.O_WRONLY) as fd:
        os.write(fd, b"")


@pytest.mark.parametrize("name", FILE_ACTIONS)
def test_times_of_a_file_move_with_what_is_done_to_it(root: Path, name: str) -> None:
    """Content moves mtime and ctime, attributes and links move ctime alone, reading moves neither."""
    action, moved = FILE_ACTIONS[name]
    path = write(root / "file", b"content")
    before = times(path)
    let_the_clock_tick(root)
    action(path)
    after = times(path)
    assert [new > old for old, new in zip(before, after, strict=True)] == ["mtime" in moved, "ctime" in moved]


PARENT_ACTIONS: dict[str, Action] = {
    "create": lambda top: write(top / "new", b""),
    "mkdir": lambda top: (top / "new").mkdir(),
    "symlink": lambda top: (top / "new").symlink_to("x"),
    "mknod": lambda top: os.mkfifo(top / "new"),
    "link": lambda top: os.link(top / "file", top / "new"),
    "unlink": lambda top: (top / "file").unlink(),
    "rmdir": lambda top: (top / "d").rmdir(),
    "rename": lambda top: (top / "file").rename(top / "new"),
    "rename away": lambda top: (top / "file").rename(top.parent / "new"),
    "rename in": lambda top: (top.parent / "outside").rename(top / "new"),
    "rename over": lambda top: (top.parent / "outside").rename(top / "file"),
    "exchange": lambda top: renameat2(top.parent / "outside", top / "file", RENAME_EXCHANGE),
}


@pytest.mark.parametrize("name", PARENT_ACTIONS)
def test_times_of_a_directory_move_with_its_names(root: Path, name: str) -> None:
    """Making, removing and renaming an entry moves the directory's mtime and ctime."""
    top = root / "top"
    top.mkdir()
    (top / "d").mkdir()
    write(top / "file", b"")
    write(root / "outside", b"")
    before = times(top)
    let_the_clock_tick(root)
    PARENT_ACTIONS[name](top)
    after = times(top)
    assert after[0] > before[0]
    assert after[1] > before[1]


def test_times_of_a_directory_stay_when_a_file_inside_changes(root: Path) -> None:
    """Writing to a file is no change of the directory that holds it."""
    path = write(root / "file", b"")
    let_the_clock_tick(root)
    before = times(root)
    path.write_bytes(b"more")
    path.chmod(0o600)
    assert times(root) == before


def test_losing_a_name_moves_ctime(root: Path) -> None:
    """unlink and rename change the inode that they name."""
    path = write(root / "file", b"")
    os.link(path, root / "kept")
    for change in (lambda: path.rename(root / "moved"), lambda: (root / "moved").unlink()):
        before = times(root / "kept")
        let_the_clock_tick(root)
        change()
        after = times(root / "kept")
        assert after[0] == before[0]
        assert after[1] > before[1]


def test_being_renamed_over_moves_the_ctime_of_what_lost_its_name(root: Path) -> None:
    """Seen through another link; its mtime and the new file's mtime stay."""
    path, other = write(root / "file", b""), write(root / "other", b"")
    os.link(path, root / "kept")
    before, other_before = times(path), times(other)
    let_the_clock_tick(root)
    other.rename(path)
    for after, earlier in ((times(root / "kept"), before), (times(path), other_before)):
        assert after[0] == earlier[0]
        assert after[1] > earlier[1]


def read_directory(path: Path) -> None:
    """List it."""
    os.listdir(path)


def read_file(path: Path) -> None:
    """Read it past the page cache, which would answer without the filesystem hearing of it."""
    with opened(path, os.O_RDONLY) as fd:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.read(fd, 1)


@pytest.mark.parametrize("read", [read_file, read_directory])
def test_atime_moves_as_relatime_says(root: Path, read: Action) -> None:
    """A read moves it when it is not newer than mtime or ctime, or older than a day; else it stays."""
    path = root / "new"
    path.mkdir() if read is read_directory else write(path, b"content")
    day_ns, now_ns = 24 * 3600 * 10**9, time.time_ns()
    os.utime(path, ns=(1, 2))
    read(path)
    first_ns = path.stat().st_atime_ns
    assert abs(first_ns - now_ns) < day_ns
    let_the_clock_tick(root)
    os.utime(path, ns=(now_ns + 3600 * 10**9, 2))  # newer than the ctime that this gives it
    read(path)
    assert path.stat().st_atime_ns == now_ns + 3600 * 10**9
    os.utime(path, ns=(now_ns - 2 * day_ns, now_ns - 3 * day_ns))
    read(path)
    assert path.stat().st_atime_ns > now_ns - day_ns


def test_statfs_counts_inodes(root: Path) -> None:
    """Each new file and directory is one more in use; files in use and free ones are all there are."""

    def used() -> int:
        counts = os.statvfs(root)
        return counts.f_files - counts.f_ffree

    before = used()
    for number in range(10):
        write(root / str(number), b"")
    (root / "d").mkdir()
    assert used() - before == 11
    assert os.statvfs(root).f_namemax == 255
    assert os.statvfs(root).f_favail <= os.statvfs(root).f_ffree <= os.statvfs(root).f_files
