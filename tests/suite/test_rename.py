"""rename(2) in all its forms."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from tests.suite.syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, fails, listing, renameat2, write


def test_rename_moves_a_file_within_and_between_directories(root: Path) -> None:
    """The inode keeps its number and content; only the name moves."""
    path = write(root / "a", b"content")
    ino = path.stat().st_ino
    (root / "d").mkdir()
    path.rename(root / "b")
    (root / "b").rename(root / "d" / "c")
    assert listing(root) == ["d"]
    assert (root / "d/c").stat().st_ino == ino
    assert (root / "d/c").read_bytes() == b"content"


def test_rename_replaces_a_file_at_once(root: Path) -> None:
    """The target's old content is gone, its other hard links are not."""
    old, new = write(root / "old", b"old"), write(root / "new", b"new")
    os.link(old, root / "kept")
    assert old.stat().st_nlink == 2
    new.rename(old)
    assert listing(root) == ["kept", "old"]
    assert old.read_bytes() == b"new"
    assert (root / "kept").read_bytes() == b"old"
    assert (root / "kept").stat().st_nlink == 1


def test_rename_moves_a_directory_with_all_it_holds(root: Path) -> None:
    """The tree below is found under the new name and not under the old."""
    (root / "d" / "sub").mkdir(parents=True)
    write(root / "d/sub/file", b"in there")
    (root / "other").mkdir()
    (root / "d").rename(root / "other" / "moved")
    assert (root / "other/moved/sub/file").read_bytes() == b"in there"
    with fails(errno.ENOENT):
        os.stat(root / "d/sub/file")


def test_rename_of_a_directory_replaces_an_empty_one_only(root: Path) -> None:
    """An empty directory gives way; one that holds something is ENOTEMPTY."""
    for name in ("source", "empty", "full"):
        (root / name).mkdir()
    write(root / "source/file", b"s")
    write(root / "full/file", b"f")
    with fails(errno.ENOTEMPTY, errno.EEXIST):
        (root / "source").rename(root / "full")
    (root / "source").rename(root / "empty")
    assert listing(root) == ["empty", "full"]
    assert (root / "empty/file").read_bytes() == b"s"


def test_rename_onto_another_link_of_the_same_file_does_nothing(root: Path) -> None:
    """POSIX: both names stay."""
    path = write(root / "a", b"x")
    os.link(path, root / "b")
    os.rename(path, root / "b")
    assert listing(root) == ["a", "b"]
    assert path.stat().st_nlink == 2


def test_rename_onto_itself_does_nothing(root: Path) -> None:
    """A name renamed to itself is still there."""
    path = write(root / "a", b"x")
    os.rename(path, path)
    assert path.read_bytes() == b"x"


def test_rename_of_a_directory_into_itself_is_invalid(root: Path) -> None:
    """EINVAL for a new name anywhere below the directory."""
    (root / "d" / "sub" / "subsub").mkdir(parents=True)
    for target in ("d/new", "d/sub/new", "d/sub/subsub/new"):
        with fails(errno.EINVAL):
            (root / "d").rename(root / target)
    with fails(errno.ENOTEMPTY):
        (root / "d" / "sub").rename(root / "d")
    assert (root / "d/sub/subsub").is_dir()


def test_rename_between_kinds_is_refused(root: Path) -> None:
    """A file does not replace a directory, nor a directory a file."""
    (root / "d").mkdir()
    write(root / "f", b"")
    with fails(errno.EISDIR):
        os.rename(root / "f", root / "d")
    with fails(errno.ENOTDIR):
        os.rename(root / "d", root / "f")


def test_noreplace_refuses_an_existing_name(root: Path) -> None:
    """RENAME_NOREPLACE: EEXIST and both files as they were, or a plain rename."""
    a, b = write(root / "a", b"a"), write(root / "b", b"b")
    with fails(errno.EEXIST):
        renameat2(a, b, RENAME_NOREPLACE)
    assert (a.read_bytes(), b.read_bytes()) == (b"a", b"b")
    renameat2(a, root / "c", RENAME_NOREPLACE)
    assert listing(root) == ["b", "c"]


def test_exchange_swaps_two_names(root: Path) -> None:
    """RENAME_EXCHANGE between files, and between a file and a directory with children, in different directories."""
    a, b = write(root / "a", b"a"), write(root / "b", b"b")
    renameat2(a, b, RENAME_EXCHANGE)
    assert (a.read_bytes(), b.read_bytes()) == (b"b", b"a")
    (root / "d" / "inner" / "leaf").mkdir(parents=True)
    assert (root.stat().st_nlink, (root / "d").stat().st_nlink) == (3, 3)
    renameat2(a, root / "d" / "inner", RENAME_EXCHANGE)
    assert (root / "d/inner").read_bytes() == b"b"
    assert listing(a) == ["leaf"]
    assert os.stat(f"{a}/..").st_ino == root.stat().st_ino
    assert (root.stat().st_nlink, (root / "d").stat().st_nlink) == (4, 2)


def test_exchange_needs_both_names(root: Path) -> None:
    """ENOENT without a partner; EINVAL when a directory would end below itself, or with NOREPLACE beside it."""
    a = write(root / "a", b"a")
    with fails(errno.ENOENT):
        renameat2(a, root / "missing", RENAME_EXCHANGE)
    (root / "d" / "sub").mkdir(parents=True)
    with fails(errno.EINVAL):
        renameat2(root / "d", root / "d" / "sub", RENAME_EXCHANGE)
    with fails(errno.EINVAL):
        renameat2(a, root / "d", RENAME_EXCHANGE | RENAME_NOREPLACE)
