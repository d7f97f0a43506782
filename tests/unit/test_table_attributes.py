"""POSIX's rules about attributes, as the inode table keeps them. A failure never changes anything."""

from __future__ import annotations

import stat
from errno import E2BIG, EEXIST, EFBIG, EINVAL, EISDIR, ENODATA, ENOENT, ENOSPC, EOPNOTSUPP, ERANGE

import pytest

from gridfs.config import CHUNK_SIZE_BYTES, FILE_SIZE_MAX_BYTES
from gridfs.meta.inode import ROOT_INO, moves_atime
from gridfs.meta.xattrs import REPLICAS, XATTR_CREATE, XATTR_REPLACE
from tests.unit.tables import DIRECTORY, FIFO, FILE, GID, SYMLINK, Steps


@pytest.fixture
def steps() -> Steps:
    return Steps()


# -- attributes ------------------------------------------------------------------------------------------------------


def test_chmod_changes_the_permissions_and_never_the_type(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("change", ino, stat.S_IFDIR | 0o4711)
    assert steps.inode(ino).mode == stat.S_IFREG | 0o4711
    assert steps.inode(ino).ctime_ns == steps.now_ns


def test_chown_and_utimens_leave_what_is_not_given(steps: Steps) -> None:
    ino = steps.make(b"file")
    made_ns = steps.now_ns
    steps.do("change", ino, None, 5, None, None, None, 77)
    inode = steps.inode(ino)
    assert (inode.uid, inode.gid, inode.mode) == (5, GID, FILE)
    assert steps.times(ino) == (made_ns, 77, steps.now_ns)
    steps.do("change", ino, None, 0, 0, None, 0, None)
    assert (inode.uid, inode.gid, *steps.times(ino)) == (0, 0, 0, 77, steps.now_ns)


@pytest.mark.parametrize(
    ("mode", "left"),
    [
        (stat.S_IFREG | 0o6755, 0o755),
        (stat.S_IFREG | 0o6745, 0o2745),  # setgid without execute by the group lends no rights
        (stat.S_IFREG | 0o1755, 0o1755),
        (stat.S_IFDIR | 0o6755, 0o6755),
    ],
)
@pytest.mark.parametrize("owner", [(5, None), (None, 5), (5, 5)])
def test_chown_clears_setuid_and_setgid_of_all_but_directories(
    steps: Steps, owner: tuple[int | None, int | None], mode: int, left: int
) -> None:
    ino = steps.make(b"new", mode=mode)
    steps.do("change", ino, None, *owner)
    assert steps.inode(ino).mode == stat.S_IFMT(mode) | left


def test_chown_with_a_mode_gives_that_mode_and_utimens_leaves_it(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("change", ino, 0o6755, 5, 5)
    steps.do("change", ino, None, None, None, None, 1, 1)
    assert stat.S_IMODE(steps.inode(ino).mode) == 0o6755


@pytest.mark.parametrize(
    ("size", "kept"),
    [
        (0, []),
        (1, [0]),
        (CHUNK_SIZE_BYTES, [0]),
        (CHUNK_SIZE_BYTES + 1, [0, 1]),
        (2 * CHUNK_SIZE_BYTES + 5, [0, 1, 2]),
        (10 * CHUNK_SIZE_BYTES, [0, 1, 2]),
    ],
)
def test_truncate_forgets_the_chunks_beyond_and_keeps_the_one_it_cuts(steps: Steps, size: int, kept: list[int]) -> None:
    ino = steps.make(b"file")
    steps.do("extend", steps.now_ns, ino, 3 * CHUNK_SIZE_BYTES)
    for index in range(3):
        steps.do("place", ino, index, ("a",))
    steps.do("change", ino, None, None, None, size)
    assert (steps.inode(ino).size, list(steps.table.directory.chunks(ino))) == (size, kept)
    assert steps.times(ino)[1:] == (steps.now_ns, steps.now_ns)


def test_a_write_never_shrinks_and_may_leave_the_time_alone(steps: Steps) -> None:
    ino = steps.make(b"file")
    made_ns = steps.now_ns
    assert steps.do("extend", None, ino, 100).size == 100
    assert steps.times(ino) == (made_ns,) * 3
    assert steps.do("extend", 5000, ino, 50).size == 100
    assert steps.times(ino) == (made_ns, 5000, 5000)


@pytest.mark.parametrize(
    ("code", "mode", "size"),
    [
        (EISDIR, DIRECTORY, 5),
        (EINVAL, SYMLINK, 5),
        (EINVAL, FIFO, 5),
        (EINVAL, FILE, -1),
        (EFBIG, FILE, FILE_SIZE_MAX_BYTES + 1),
    ],
)
def test_a_size_that_cannot_be(steps: Steps, code: int, mode: int, size: int) -> None:
    ino = steps.make(b"new", mode=mode)
    steps.fails(code, "change", ino, 0o600, 1, 1, size, 1, 1)
    steps.fails(code, "extend", steps.now_ns, ino, size)


def test_truncating_to_the_size_there_is_moves_mtime_and_ctime(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("change", ino, None, None, None, 0)
    assert steps.times(ino)[1:] == (steps.now_ns, steps.now_ns)


DAY_NS = 24 * 3600 * 10**9


@pytest.mark.parametrize(
    ("atime_ns", "mtime_ns", "ctime_ns", "age_ns", "moves"),
    [
        (10, 10, 10, 0, True),
        (10, 11, 9, 1, True),
        (10, 9, 11, 1, True),
        (10, 9, 9, DAY_NS, False),
        (10, 9, 9, DAY_NS + 1, True),
    ],
)
def test_relatime_moves_an_atime_that_is_not_newer_than_the_last_change_or_older_than_a_day(
    steps: Steps, atime_ns: int, mtime_ns: int, ctime_ns: int, age_ns: int, moves: bool
) -> None:
    inode = steps.inode(steps.make(b"file"))
    inode.atime_ns, inode.mtime_ns, inode.ctime_ns = atime_ns, mtime_ns, ctime_ns
    assert moves_atime(inode, atime_ns + age_ns) == moves


def test_reading_moves_atime_alone(steps: Steps) -> None:
    ino = steps.make(b"file")
    made_ns = steps.now_ns
    steps.do("touch", ino)
    assert steps.times(ino) == (steps.now_ns, made_ns, made_ns)


@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        *(("change", (0o600,)), ("touch", ()), ("set_xattr", (b"user.a", b"")), ("remove_xattr", (b"user.a",))),
        *(("place", (0, ("a",))), ("link", (ROOT_INO, b"new"))),
    ],
)
def test_nothing_can_be_done_to_an_inode_that_does_not_exist(steps: Steps, kind: str, arguments: tuple[object, ...]) -> None:
    steps.fails(ENOENT, kind, 1234, *arguments)


# -- extended attributes ---------------------------------------------------------------------------------------------


def test_an_xattr_is_set_replaced_and_removed(steps: Steps) -> None:
    ino = steps.make(b"file")
    mtime_ns = steps.inode(ino).mtime_ns
    steps.do("set_xattr", ino, b"user.a", b"1", XATTR_CREATE)
    steps.do("set_xattr", ino, b"user.a", b"2", XATTR_REPLACE)
    steps.do("set_xattr", ino, b"user.b", b"")
    assert steps.inode(ino).xattrs == {b"user.a": b"2", b"user.b": b""}
    assert steps.times(ino)[1:] == (mtime_ns, steps.now_ns)
    steps.do("remove_xattr", ino, b"user.a")
    steps.do("remove_xattr", ino, b"user.b")
    assert steps.inode(ino).xattrs is None


@pytest.mark.parametrize(
    ("code", "name", "value", "flags"),
    [
        (EEXIST, b"user.a", b"", XATTR_CREATE),
        (ENODATA, b"user.b", b"", XATTR_REPLACE),
        (E2BIG, b"user.a", bytes(65537), 0),
        (ERANGE, b"user." + b"n" * 251, b"", 0),
        (EOPNOTSUPP, b"system.other", b"", 0),
        (EOPNOTSUPP, b"nonsense", b"", 0),
    ],
)
def test_an_xattr_that_cannot_be_set(steps: Steps, code: int, name: bytes, value: bytes, flags: int) -> None:
    ino = steps.make(b"file")
    steps.do("set_xattr", ino, b"user.a", bytes(65536))
    steps.fails(code, "set_xattr", ino, name, value, flags)


def test_names_of_xattrs_that_would_not_fit_a_listing_are_refused(steps: Steps) -> None:
    ino = steps.make(b"file")
    for number in range(256):
        steps.do("set_xattr", ino, b"user.%250d" % number, b"")
    steps.fails(ENOSPC, "set_xattr", ino, b"user.x", b"")
    steps.do("set_xattr", ino, b"user.%250d" % 0, b"replaced")


def test_an_xattr_that_is_not_there_cannot_be_removed(steps: Steps) -> None:
    steps.fails(ENODATA, "remove_xattr", steps.make(b"file"), b"user.a")


def test_how_many_replicas_there_are_to_be_is_inherited_by_what_holds_bytes_and_by_directories(steps: Steps) -> None:
    before = steps.make(b"before")
    steps.do("set_xattr", ROOT_INO, REPLICAS, b"3")
    steps.do("set_xattr", ROOT_INO, b"user.other", b"")
    inner = steps.mkdir(b"inner")
    made = [inner, steps.make(b"file"), steps.make(b"deep", inner), steps.make(b"link", inner, SYMLINK, target=b"x")]
    assert [steps.inode(ino).xattrs for ino in (before, *made)] == [None, *[{REPLICAS: b"3"}] * 3, None]
