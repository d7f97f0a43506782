"""Modes, owners and times."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.syscalls import let_the_clock_tick, opened, write

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
    "read": (lambda path: path.read_bytes(), ""),
    "stat": (lambda path: path.stat(), ""),
}


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
