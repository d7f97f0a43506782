"""The errno of every wrong call, and names of every kind."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.syscalls import fails, opened, write

LONGEST_NAME_BYTES = 255


def scene(root: Path) -> None:
    """A file, a full directory, an empty one, and symlinks: the ground for the table below."""
    write(root / "file", b"content")
    (root / "full").mkdir()
    write(root / "full/inside", b"")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("loop")
    (root / "to-file").symlink_to("file")


WRONG_CALLS: dict[str, tuple[Callable[[Path], object], int]] = {
    "open missing": (lambda r: os.open(r / "missing", os.O_RDONLY), errno.ENOENT),
    "open below missing": (lambda r: os.open(r / "missing/x", os.O_RDONLY), errno.ENOENT),
    "create below missing": (lambda r: write(r / "missing/x", b""), errno.ENOENT),
    "open below file": (lambda r: os.open(r / "file/x", os.O_RDONLY), errno.ENOTDIR),
    "create below file": (lambda r: write(r / "file/x", b""), errno.ENOTDIR),
    "open directory to write": (lambda r: os.open(r / "empty", os.O_WRONLY), errno.EISDIR),
    "open file as directory": (lambda r: os.open(r / "file", os.O_DIRECTORY), errno.ENOTDIR),
    "open symlink unfollowed": (lambda r: os.open(r / "to-file", os.O_NOFOLLOW), errno.ELOOP),
    "open loop": (lambda r: os.open(r / "loop", os.O_RDONLY), errno.ELOOP),
    "stat missing": (lambda r: os.stat(r / "missing"), errno.ENOENT),
    "unlink missing": (lambda r: os.unlink(r / "missing"), errno.ENOENT),
    "unlink directory": (lambda r: os.unlink(r / "empty"), errno.EISDIR),
    "rmdir missing": (lambda r: os.rmdir(r / "missing"), errno.ENOENT),
    "rmdir file": (lambda r: os.rmdir(r / "file"), errno.ENOTDIR),
    "rmdir symlink": (lambda r: os.rmdir(r / "to-file"), errno.ENOTDIR),
    "rmdir full": (lambda r: os.rmdir(r / "full"), errno.ENOTEMPTY),
    "rmdir dot": (lambda r: os.rmdir(f"{r}/empty/."), errno.EINVAL),
    "mkdir existing": (lambda r: os.mkdir(r / "empty"), errno.EEXIST),
    "mkdir over file": (lambda r: os.mkdir(r / "file"), errno.EEXIST),
    "mkdir below missing": (lambda r: os.mkdir(r / "missing/x"), errno.ENOENT),
    "mkdir below file": (lambda r: os.mkdir(r / "file/x"), errno.ENOTDIR),
    "symlink existing": (lambda r: os.symlink("x", r / "file"), errno.EEXIST),
    "mkfifo existing": (lambda r: os.mkfifo(r / "file"), errno.EEXIST),
    "link missing": (lambda r: os.link(r / "missing", r / "x"), errno.ENOENT),
    "rename missing": (lambda r: os.rename(r / "missing", r / "x"), errno.ENOENT),
    "rename below missing": (lambda r: os.rename(r / "file", r / "missing/x"), errno.ENOENT),
    "rename below file": (lambda r: os.rename(r / "empty", r / "file/x"), errno.ENOTDIR),
    "readlink of a file": (lambda r: os.readlink(r / "file"), errno.EINVAL),
    "list a file": (lambda r: os.listdir(r / "file"), errno.ENOTDIR),
    "truncate a directory": (lambda r: os.truncate(r / "empty", 0), errno.EISDIR),
    "truncate to less than nothing": (lambda r: os.truncate(r / "file", -1), errno.EINVAL),
    "chmod missing": (lambda r: os.chmod(r / "missing", 0), errno.ENOENT),
    "slash after a file": (lambda r: os.stat(f"{r}/file/"), errno.ENOTDIR),
    "name too long to open": (lambda r: os.open(r / ("n" * 256), os.O_RDONLY), errno.ENAMETOOLONG),
    "name too long to make": (lambda r: write(r / ("n" * 256), b""), errno.ENAMETOOLONG),
    "name too long for mkdir": (lambda r: os.mkdir(r / ("n" * 256)), errno.ENAMETOOLONG),
    "name too long for symlink": (lambda r: os.symlink("x", r / ("n" * 256)), errno.ENAMETOOLONG),
    "name too long for rename": (lambda r: os.rename(r / "file", r / ("n" * 256)), errno.ENAMETOOLONG),
    "name too long for link": (lambda r: os.link(r / "file", r / ("n" * 256)), errno.ENAMETOOLONG),
    "path too long": (lambda r: os.stat(f"{r}/" + "d/" * 2100), errno.ENAMETOOLONG),
}


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_fails_with_the_errno_of_posix(root: Path, name: str) -> None:
    """And changes nothing."""
    scene(root)
    call, code = WRONG_CALLS[name]
    before = sorted(os.listdir(root))
    with fails(code):
        call(root)
    assert sorted(os.listdir(root)) == before
    assert (root / "file").read_bytes() == b"content"


def test_reading_a_directory_is_eisdir(root: Path) -> None:
    """read(2) is for files."""
    with opened(root, os.O_RDONLY) as fd, fails(errno.EISDIR):
        os.read(fd, 1)


def test_seeking_before_the_start_is_einval(root: Path) -> None:
    """lseek(2) to a negative offset, and pread at one."""
    with opened(write(root / "file", b"x"), os.O_RDONLY) as fd:
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        with fails(errno.EINVAL):
            os.pread(fd, 1, -1)


def test_names_of_255_bytes_are_names(root: Path) -> None:
    """The longest name works for files, directories, links and rename."""
    longest = [letter * LONGEST_NAME_BYTES for letter in "abcde"]
    write(root / longest[0], b"x")
    (root / longest[1]).mkdir()
    (root / longest[2]).symlink_to(longest[0])
    os.link(root / longest[0], root / longest[3])
    (root / longest[0]).rename(root / longest[1] / longest[4])
    assert sorted(os.listdir(root)) == longest[1:4]
    assert os.listdir(root / longest[1]) == [longest[4]]


def test_names_may_hold_any_byte(root: Path) -> None:
    """All but NUL and the slash: control characters, newlines, bytes that are not UTF-8, leading dots and dashes."""
    names = {bytes([byte]) for byte in range(1, 256)} - {b"/", b"."}
    names |= {b"..a", b"...", b"-rf", b" lead and trail ", b"new\nline", b"\xff\xfe\x80", "grüße-日本".encode()}
    top = os.fsencode(root)
    for name in names:
        with open(top + b"/" + name, "wb") as file:
            file.write(name)
    assert set(os.listdir(top)) == names
    for name in names:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name
        os.unlink(top + b"/" + name)


def test_names_differ_by_case_and_by_composition(root: Path) -> None:
    """A name is its bytes: no folding, no normalisation."""
    for name in ("a", "A", "\u00e9", "e\u0301"):
        write(root / name, name.encode())
    assert len(os.listdir(root)) == 4
    assert (root / "\u00e9").read_bytes() == "\u00e9".encode()
