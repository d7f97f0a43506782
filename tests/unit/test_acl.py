"""POSIX access control lists, acl(5): what is a valid one, what it says about the mode, and how new inodes come by theirs."""

from __future__ import annotations

import stat
import struct
from errno import E2BIG, EACCES, EINVAL, EOPNOTSUPP, errorcode

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.errors import FilesystemError
from gridfs.meta import acl
from gridfs.meta.acl import ACCESS, DEFAULT, GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl, Entry
from gridfs.meta.inode import ROOT_INO
from tests.unit.tables import DIRECTORY, FIFO, FILE, GID, SYMLINK, UID, Steps

NAMED = 1234
EMPTY = acl.pack(())


def minimal(mode: int) -> Acl:
    return Entry(USER_OBJ, mode >> 6 & 7), Entry(GROUP_OBJ, mode >> 3 & 7), Entry(OTHER, mode & 7)


def extended(user: int, named: int, group: int, mask: int, other: int) -> Acl:
    """An ACL in which one user is named."""
    owner, named_user = Entry(USER_OBJ, user), Entry(USER, named, NAMED)
    return owner, named_user, Entry(GROUP_OBJ, group), Entry(MASK, mask), Entry(OTHER, other)


def permissions() -> st.SearchStrategy[int]:
    return st.integers(0, 7)


@st.composite
def acls(draw: st.DrawFn) -> Acl:
    """Any valid ACL."""
    named = [Entry(tag, draw(permissions()), draw(st.integers(0, 2**32 - 2))) for tag in draw(_named_tags)]
    users, groups = [e for e in named if e.tag == USER], [e for e in named if e.tag == GROUP]
    has_mask = bool(named) or draw(_flags)
    mask = [Entry(MASK, draw(permissions()))] if has_mask else []
    owner, group, other = (Entry(tag, draw(permissions())) for tag in (USER_OBJ, GROUP_OBJ, OTHER))
    return (owner, *users, group, *groups, *mask, other)


_flags: st.SearchStrategy[bool] = st.booleans()
_named_tags: st.SearchStrategy[list[int]] = st.lists(st.sampled_from([USER, GROUP]), max_size=5)


@pytest.fixture
def steps() -> Steps:
    return Steps()


# -- the format ------------------------------------------------------------------------------------------------------


@given(acls())
def test_every_valid_acl_is_read_as_it_was_packed(entries: Acl) -> None:
    assert acl.parse(acl.pack(entries)) == entries


def test_the_format_is_that_of_the_kernel() -> None:
    """setfacl -m u:1234:rw on a file of mode 0640, as getfattr shows it on ext4."""
    packed = bytes.fromhex("02000000 01000600ffffffff 02000600d2040000 04000400ffffffff 10000600ffffffff 20000000ffffffff")
    assert acl.parse(packed) == extended(6, 6, 4, 6, 0)
    assert acl.pack(acl.parse(packed)) == packed


WRONG: dict[str, Acl] = {
    "no owner": (Entry(GROUP_OBJ, 7), Entry(OTHER, 7)),
    "no group": (Entry(USER_OBJ, 7), Entry(OTHER, 7)),
    "no others": (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 7)),
    "two owners": (Entry(USER_OBJ, 7), *minimal(0o777)),
    "two masks": (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 7), Entry(MASK, 7), Entry(MASK, 7), Entry(OTHER, 7)),
    "a named user without a mask": (Entry(USER_OBJ, 7), Entry(USER, 7, NAMED), Entry(GROUP_OBJ, 7), Entry(OTHER, 7)),
    "a named group without a mask": (Entry(USER_OBJ, 7), Entry(GROUP_OBJ, 7), Entry(GROUP, 7, NAMED), Entry(OTHER, 7)),
    "a named user who is nobody": (*extended(7, 7, 7, 7, 7)[:1], Entry(USER, 7), *extended(7, 7, 7, 7, 7)[2:]),
    "another order": tuple(reversed(minimal(0o777))),
    "a permission that is none": (Entry(USER_OBJ, 8), *minimal(0o777)[1:]),
    "a tag that is none": (Entry(3, 7), *minimal(0o777)[1:]),
    "a large tag that is none": (Entry(0x100, 7), *minimal(0o777)[1:]),
}


@pytest.mark.parametrize("name", WRONG)
def test_an_acl_that_is_not_valid_is_einval(steps: Steps, name: str) -> None:
    steps.fails(EINVAL, "set_xattr", steps.make(b"file"), ACCESS, acl.pack(WRONG[name]))


@pytest.mark.parametrize(
    ("code", "value"),
    [
        (EINVAL, b""),
        (EINVAL, EMPTY[:3]),
        (EINVAL, acl.pack(minimal(0o644))[:-1]),
        (EOPNOTSUPP, struct.pack("<I", 1)),
        (E2BIG, acl.pack(extended(7, 7, 7, 7, 7)[:1] + (Entry(USER, 7, NAMED),) * 508 + extended(7, 7, 7, 7, 7)[2:])),
    ],
)
def test_bytes_that_are_no_acl_are_refused(code: int, value: bytes) -> None:
    with pytest.raises(FilesystemError) as raised:
        acl.parse(value)
    assert errorcode[raised.value.errno or 0] == errorcode[code]


# -- the access ACL and the mode -------------------------------------------------------------------------------------


def test_an_access_acl_brings_the_mode_bits_and_its_mask_stands_for_the_group(steps: Steps) -> None:
    ino = steps.make(b"file", mode=stat.S_IFREG | stat.S_ISUID | 0o777)
    mtime_ns = steps.inode(ino).mtime_ns
    steps.do("set_xattr", ino, ACCESS, acl.pack(extended(6, 7, 4, 5, 0)))
    assert steps.inode(ino).mode == stat.S_IFREG | stat.S_ISUID | 0o650
    assert steps.inode(ino).xattrs == {ACCESS: acl.pack(extended(6, 7, 4, 5, 0))}
    assert steps.times(ino)[1:] == (mtime_ns, steps.now_ns)


def test_an_access_acl_that_says_no_more_than_the_mode_is_not_kept(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("set_xattr", ino, ACCESS, acl.pack(extended(6, 7, 4, 5, 0)))
    steps.do("set_xattr", ino, ACCESS, acl.pack(minimal(0o604)))
    assert (steps.inode(ino).mode, steps.inode(ino).xattrs) == (stat.S_IFREG | 0o604, None)


@pytest.mark.parametrize("how", ["remove_xattr", "an ACL without entries"])
def test_removing_an_access_acl_leaves_the_mode(steps: Steps, how: str) -> None:
    ino = steps.make(b"file")
    steps.do("set_xattr", ino, b"user.a", b"kept")
    steps.do("set_xattr", ino, ACCESS, acl.pack(extended(6, 7, 4, 5, 0)))
    steps.do("remove_xattr", ino, ACCESS) if how == "remove_xattr" else steps.do("set_xattr", ino, ACCESS, EMPTY)
    assert (steps.inode(ino).mode, steps.inode(ino).xattrs) == (stat.S_IFREG | 0o650, {b"user.a": b"kept"})


@pytest.mark.parametrize("name", [ACCESS, DEFAULT])
def test_an_acl_that_is_not_there_may_be_removed(steps: Steps, name: bytes) -> None:
    ino = steps.mkdir(b"dir")
    steps.do("remove_xattr", ino, name)
    assert steps.inode(ino).xattrs is None


def test_an_acl_set_by_one_who_is_not_in_the_group_clears_setgid(steps: Steps) -> None:
    ino = steps.make(b"file", mode=stat.S_IFREG | 0o6755)
    steps.do("set_xattr", ino, ACCESS, acl.pack(minimal(0o711)), 0, True)
    assert steps.inode(ino).mode == stat.S_IFREG | 0o4711


@pytest.mark.parametrize("entries", [extended(7, 7, 6, 5, 4), (*minimal(0o764)[:2], Entry(MASK, 5), Entry(OTHER, 4))])
def test_chmod_changes_owner_mask_and_others_of_the_acl_and_not_the_group(steps: Steps, entries: Acl) -> None:
    ino = steps.make(b"file")
    steps.do("set_xattr", ino, ACCESS, acl.pack(entries))
    steps.do("change", ino, 0o421)
    wanted = {USER_OBJ: 4, MASK: 2, OTHER: 1}
    expected = tuple(entry._replace(permissions=wanted.get(entry.tag, entry.permissions)) for entry in entries)
    assert acl.parse((steps.inode(ino).xattrs or {})[ACCESS]) == expected
    assert steps.inode(ino).mode == stat.S_IFREG | 0o421


@given(acls(), st.integers(0, 0o7777))
def test_after_chmod_the_acl_and_the_mode_say_the_same(entries: Acl, mode: int) -> None:
    changed = acl.with_mode(entries, mode)
    assert acl.mode_with(changed, mode) == mode
    assert [(entry.tag, entry.who) for entry in changed] == [(entry.tag, entry.who) for entry in entries]


@pytest.mark.parametrize(("code", "mode", "name"), [(EACCES, FILE, DEFAULT), (EOPNOTSUPP, SYMLINK, ACCESS)])
def test_a_default_acl_is_a_directorys_and_a_symlink_has_none(steps: Steps, code: int, mode: int, name: bytes) -> None:
    steps.fails(code, "set_xattr", steps.make(b"new", mode=mode), name, acl.pack(extended(7, 7, 7, 7, 7)))


# -- the default ACL and what is made --------------------------------------------------------------------------------


def default_directory(steps: Steps, entries: Acl) -> int:
    ino = steps.mkdir(b"dir")
    steps.do("set_xattr", ino, DEFAULT, acl.pack(entries))
    return ino


def make(steps: Steps, parent: int, mode: int, umask: int = 0o077) -> int:
    """What a process with that umask makes."""
    ino, target = steps.table.next_ino, b"target" if stat.S_ISLNK(mode) else None
    steps.do("make", ino, parent, b"new", mode, UID, GID, 0, target, umask)
    return ino


def test_a_default_acl_leaves_its_directorys_mode(steps: Steps) -> None:
    assert steps.inode(default_directory(steps, extended(7, 7, 7, 7, 7))).mode == DIRECTORY


def test_a_default_acl_is_kept_even_when_it_is_minimal(steps: Steps) -> None:
    ino = default_directory(steps, minimal(0o750))
    assert steps.inode(ino).xattrs == {DEFAULT: acl.pack(minimal(0o750))}


@pytest.mark.parametrize(("mode", "made"), [(FILE | 0o666, 0o640), (DIRECTORY | 0o777, 0o750), (SYMLINK, 0o777)])
def test_without_a_default_acl_the_umask_counts_but_for_symlinks(steps: Steps, mode: int, made: int) -> None:
    inode = steps.inode(make(steps, ROOT_INO, mode, 0o027))
    assert (stat.S_IMODE(inode.mode), inode.xattrs) == (made, None)


def test_a_file_inherits_the_default_acl_within_what_its_maker_asks_for_whatever_the_umask(steps: Steps) -> None:
    parent = default_directory(steps, extended(7, 7, 5, 7, 5))
    inode = steps.inode(make(steps, parent, stat.S_IFREG | 0o664))
    assert inode.mode == stat.S_IFREG | 0o664 & 0o775
    assert inode.xattrs == {ACCESS: acl.pack(extended(6, 7, 5, 6, 4))}


def test_a_directory_inherits_the_default_acl_as_its_own_default_too(steps: Steps) -> None:
    parent = default_directory(steps, extended(7, 7, 5, 7, 0))
    inode = steps.inode(make(steps, parent, stat.S_IFDIR | 0o755))
    packed = acl.pack(extended(7, 7, 5, 7, 0))
    assert inode.xattrs == {ACCESS: acl.pack(extended(7, 7, 5, 5, 0)), DEFAULT: packed}
    assert inode.mode == stat.S_IFDIR | 0o750


def test_an_inherited_acl_that_says_no_more_than_the_mode_is_not_kept(steps: Steps) -> None:
    inode = steps.inode(make(steps, default_directory(steps, minimal(0o750)), stat.S_IFREG | 0o666))
    assert (inode.mode, inode.xattrs) == (stat.S_IFREG | 0o640, None)


@pytest.mark.parametrize(("mode", "inherits"), [(FIFO, True), (stat.S_IFSOCK | 0o777, True), (SYMLINK, False)])
def test_all_kinds_but_symlinks_inherit(steps: Steps, mode: int, inherits: bool) -> None:
    inode = steps.inode(make(steps, default_directory(steps, extended(7, 7, 7, 7, 7)), mode))
    assert (inode.xattrs is not None) == inherits
    assert inode.mode == mode


def test_an_acl_and_setgid_are_both_inherited(steps: Steps) -> None:
    parent = default_directory(steps, extended(7, 7, 7, 7, 7))
    steps.do("change", parent, 0o2775, None, 7)
    inode = steps.inode(make(steps, parent, stat.S_IFDIR | 0o777))
    assert (inode.gid, inode.mode) == (7, stat.S_IFDIR | 0o2777)


@given(acls(), st.integers(0, 0o7777))
def test_what_is_made_has_no_more_than_was_asked_for_nor_than_the_default_acl_has(entries: Acl, mode: int) -> None:
    access, made = acl.inherit(entries, mode)
    assert made == mode & acl.mode_with(entries, 0o7777)
    assert acl.mode_with(access, made) == made
