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


def test_symlinks_and_unknown_namespaces_have_none(root: Path) -> None:
    """Linux: no user attributes on symlinks (EPERM), and a namespace nobody serves is EOPNOTSUPP."""
    (root / "link").symlink_to("x")
    with fails(errno.EPERM):
        os.setxattr(root / "link", "user.a", b"1", follow_symlinks=False)
    with fails(errno.EOPNOTSUPP):
        os.setxattr(write(root / "file", b""), "nonsense.a", b"1")
