"""Extended attributes of the user namespace."""

from __future__ import annotations

import errno
import os
import random
from pathlib import Path

import pytest

from tests.suite.syscalls import fails, write

LARGEST_VALUE_BYTES = 65536
MANY = 100


def test_set_get_list_and_remove(root: Path) -> None:
    """On files and directories, with empty and binary values, replaced and removed again."""
    (root / "d").mkdir()
    for path in (write(root / "file", b""), root / "d"):
        assert os.listxattr(path) == []
        os.setxattr(path, "user.one", b"1")
        os.setxattr(path, "user.empty", b"")
        os.setxattr(path, "user.binary", bytes(range(256)))
        assert sorted(os.listxattr(path)) == ["user.binary", "user.empty", "user.one"]
        assert os.getxattr(path, "user.empty") == b""
        assert os.getxattr(path, "user.binary") == bytes(range(256))
        os.setxattr(path, "user.one", b"another")
        assert os.getxattr(path, "user.one") == b"another"
        os.removexattr(path, "user.one")
        assert sorted(os.listxattr(path)) == ["user.binary", "user.empty"]


def test_missing_attributes_are_enodata(root: Path) -> None:
    """Getting and removing what is not there."""
    path = write(root / "file", b"")
    with fails(errno.ENODATA):
        os.getxattr(path, "user.none")
    with fails(errno.ENODATA):
        os.removexattr(path, "user.none")


def test_create_and_replace_flags(root: Path) -> None:
    """XATTR_CREATE fails on one that exists, XATTR_REPLACE on one that does not; neither then changes anything."""
    path = write(root / "file", b"")
    with fails(errno.ENODATA):
        os.setxattr(path, "user.a", b"new", os.XATTR_REPLACE)
    os.setxattr(path, "user.a", b"first", os.XATTR_CREATE)
    with fails(errno.EEXIST):
        os.setxattr(path, "user.a", b"second", os.XATTR_CREATE)
    assert os.getxattr(path, "user.a") == b"first"
    os.setxattr(path, "user.a", b"third", os.XATTR_REPLACE)
    assert os.getxattr(path, "user.a") == b"third"


@pytest.mark.differs(ext4="all attributes of an inode share one block of 4 KiB")
def test_a_value_of_64_kib_is_kept(root: Path) -> None:
    """The kernel's largest value fits; one byte more is E2BIG."""
    path = write(root / "file", b"")
    value = random.Random(8).randbytes(LARGEST_VALUE_BYTES)
    os.setxattr(path, "user.large", value)
    assert os.getxattr(path, "user.large") == value
    with fails(errno.E2BIG):
        os.setxattr(path, "user.larger", value + b"x")


def test_names_of_the_longest_length(root: Path) -> None:
    """255 bytes with the namespace are a name; 256 are ERANGE."""
    path = write(root / "file", b"")
    name = "user." + "n" * 250
    os.setxattr(path, name, b"long")
    assert os.listxattr(path) == [name]
    with fails(errno.ERANGE):
        os.setxattr(path, name + "n", b"longer")


def test_many_attributes_are_all_listed(root: Path) -> None:
    """A hundred of them, each with its value."""
    path = write(root / "file", b"")
    wanted = {f"user.number-{number}": f"value-{number}".encode() for number in range(MANY)}
    for name, value in wanted.items():
        os.setxattr(path, name, value)
    assert {name: os.getxattr(path, name) for name in os.listxattr(path)} == wanted


def test_attributes_belong_to_the_inode(root: Path) -> None:
    """They stay through rename and are seen through every hard link; a new file of the old name has none."""
    path = write(root / "file", b"")
    os.setxattr(path, "user.a", b"1")
    os.link(path, root / "link")
    path.rename(root / "moved")
    assert os.getxattr(root / "moved", "user.a") == b"1"
    assert os.getxattr(root / "link", "user.a") == b"1"
    assert os.listxattr(write(root / "file", b"")) == []


def test_symlinks_and_unknown_namespaces_have_none(root: Path) -> None:
    """Linux: no user attributes on symlinks (EPERM), and a namespace nobody serves is EOPNOTSUPP."""
    (root / "link").symlink_to("x")
    with fails(errno.EPERM):
        os.setxattr(root / "link", "user.a", b"1", follow_symlinks=False)
    with fails(errno.EOPNOTSUPP):
        os.setxattr(write(root / "file", b""), "nonsense.a", b"1")
