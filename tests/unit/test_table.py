"""POSIX's rules about names, as the inode table keeps them. A failure never changes anything."""

from __future__ import annotations

import stat
from errno import EEXIST, EINVAL, EISDIR, EMLINK, ENAMETOOLONG, ENOENT, ENOTDIR, ENOTEMPTY, EPERM

import pytest

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.table import LINKS_MAX, RENAME_EXCHANGE, RENAME_NOREPLACE, Table
from tests.unit.tables import DIRECTORY, FIFO, FILE, GID, SYMLINK, UID, Steps, changed, dump

NEW = 99
"""An inode number that is free."""


@pytest.fixture
def steps() -> Steps:
    return Steps()


# -- make ------------------------------------------------------------------------------------------------------------


def test_the_root_is_an_empty_directory_of_its_maker(steps: Steps) -> None:
    root = steps.inode()
    assert (root.mode, root.uid, root.gid, root.nlink, root.entries) == (DIRECTORY, UID, GID, 2, {})


@pytest.mark.parametrize(("mode", "nlink", "size"), [(FILE, 1, 0), (FIFO, 1, 0), (SYMLINK, 1, 6), (DIRECTORY, 2, 0)])
def test_a_new_inode_has_its_makers_identity_and_the_time(steps: Steps, mode: int, nlink: int, size: int) -> None:
    ino = steps.make(b"new", mode=mode)
    inode = steps.inode(ino)
    assert (inode.mode, inode.uid, inode.gid, inode.nlink, inode.size) == (mode, UID, GID, nlink, size)
    assert steps.times(ino) == (steps.now_ns,) * 3
    assert steps.table.lookup(ROOT_INO, b"new") is inode


def test_a_new_name_moves_its_directorys_mtime_and_ctime_but_not_atime(steps: Steps) -> None:
    atime_ns = steps.inode().atime_ns
    steps.make(b"new")
    assert steps.times(ROOT_INO) == (atime_ns, steps.now_ns, steps.now_ns)


def test_a_subdirectory_is_a_link_to_its_parent_until_it_is_removed(steps: Steps) -> None:
    steps.make(b"file")
    steps.mkdir(b"one")
    steps.mkdir(b"two")
    assert steps.inode().nlink == 4
    steps.do("rmdir", ROOT_INO, b"one")
    assert steps.inode().nlink == 3


@pytest.mark.parametrize(("mode", "inherited"), [(FILE, FILE), (DIRECTORY, DIRECTORY | stat.S_ISGID)])
def test_a_setgid_directory_hands_down_its_group_and_to_directories_the_bit(steps: Steps, mode: int, inherited: int) -> None:
    parent = steps.make(b"shared", mode=DIRECTORY | stat.S_ISGID, gid=7)
    inode = steps.inode(steps.make(b"new", parent, mode, gid=8))
    assert (inode.gid, inode.mode) == (7, inherited)


@pytest.mark.parametrize(
    ("code", "parent", "name"),
    [
        (EEXIST, "root", b"file"),
        (EEXIST, "root", b"."),
        (EEXIST, "root", b".."),
        (EINVAL, "root", b""),
        (EINVAL, "root", b"a/b"),
        (EINVAL, "root", b"a\0b"),
        (ENAMETOOLONG, "root", b"n" * 256),
        (ENOTDIR, "file", b"new"),
        (ENOENT, "removed", b"new"),
        (ENOENT, "nowhere", b"new"),
    ],
)
@pytest.mark.parametrize("kind", ["make", "link", "rename"])
def test_a_name_that_cannot_be_made(steps: Steps, kind: str, code: int, parent: str, name: bytes) -> None:
    file, removed = steps.make(b"file"), steps.mkdir(b"removed")
    other = steps.make(b"other")
    steps.do("rmdir", ROOT_INO, b"removed")
    where = {"root": ROOT_INO, "file": file, "removed": removed, "nowhere": 1234}[parent]
    if kind == "make":
        steps.fails(code, "make", NEW, where, name, FILE, UID, GID)
    elif kind == "link":
        steps.fails(code, "link", other, where, name)
    elif (code, name) != (EEXIST, b"file"):  # rename replaces it
        steps.fails(code, "rename", ROOT_INO, b"other", where, name)


def test_a_name_may_be_of_any_255_bytes_but_slash_and_nul(steps: Steps) -> None:
    for name in (b"n" * 255, b"\xff\xfe", b" ", b"...", b"\n"):
        ino = steps.make(name)
        assert steps.names()[name] == ino


@pytest.mark.parametrize(("code", "target"), [(ENOENT, b""), (ENAMETOOLONG, b"t" * 4096)])
def test_a_symlinks_target_is_neither_empty_nor_longer_than_a_path(steps: Steps, code: int, target: bytes) -> None:
    steps.fails(code, "make", NEW, ROOT_INO, b"new", SYMLINK, UID, GID, 0, target)
    assert steps.inode(steps.make(b"longest", mode=SYMLINK, target=b"t" * 4095)).size == 4095


def test_a_symlinks_target_is_judged_before_its_name(steps: Steps) -> None:
    steps.make(b"file")
    steps.fails(ENOENT, "make", NEW, ROOT_INO, b"file", SYMLINK, UID, GID, 0, b"")


# -- nlink -----------------------------------------------------------------------------------------------------------


def test_a_file_has_no_more_than_links_max_names(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.inode(ino).nlink = LINKS_MAX - 1
    steps.table.apply(steps.op("link", ino, ROOT_INO, b"last"))
    steps.fails(EMLINK, "link", ino, ROOT_INO, b"too-many")
    steps.fails(EEXIST, "link", ino, ROOT_INO, b"last")


def test_a_directory_has_no_more_than_links_max_links_by_mkdir_and_rename(steps: Steps) -> None:
    full, inner = steps.mkdir(b"full"), steps.mkdir(b"inner")
    steps.make(b"file", full)
    inside = steps.mkdir(b"inside", full)
    steps.inode(full).nlink = LINKS_MAX
    steps.fails(EMLINK, "make", NEW, full, b"new", DIRECTORY, UID, GID)
    steps.fails(EMLINK, "rename", ROOT_INO, b"inner", full, b"new")
    steps.fails(EMLINK, "rename", ROOT_INO, b"inner", full, b"file", RENAME_EXCHANGE)
    steps.fails(EMLINK, "rename", full, b"file", ROOT_INO, b"inner", RENAME_EXCHANGE)
    for op in (
        ("make", NEW, full, b"new", FILE, UID, GID),
        ("rename", full, b"inside", full, b"renamed"),
        ("rename", full, b"renamed", full, b"file", RENAME_EXCHANGE),
        ("rename", ROOT_INO, b"inner", full, b"file"),
    ):
        steps.table.apply(steps.op(*op))
    assert (steps.names(full), steps.inode(full).nlink) == ({b"new": NEW, b"renamed": 4, b"file": inner}, LINKS_MAX)
    assert steps.table.orphans == {inside}


# -- lookup ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "parent", "name"),
    [(ENOENT, ROOT_INO, b"no"), (ENAMETOOLONG, ROOT_INO, b"n" * 256), (ENOENT, 77, b"x"), (ENOTDIR, 2, b"x")],
)
def test_a_lookup_that_fails(steps: Steps, code: int, parent: int, name: bytes) -> None:
    assert steps.make(b"file") == 2
    with pytest.raises(FilesystemError) as raised:
        steps.table.lookup(parent, name)
    assert raised.value.errno == code


# -- link and unlink -------------------------------------------------------------------------------------------------


def test_a_link_is_the_same_inode_and_counts(steps: Steps) -> None:
    ino = steps.make(b"one")
    mtime_ns = steps.inode(ino).mtime_ns
    assert steps.do("link", ino, ROOT_INO, b"two").nlink == 2
    assert steps.names() == {b"one": ino, b"two": ino}
    assert steps.times(ino)[1:] == (mtime_ns, steps.now_ns)


def test_a_directory_cannot_be_linked(steps: Steps) -> None:
    steps.fails(EPERM, "link", steps.mkdir(b"dir"), ROOT_INO, b"other")


def test_a_symlink_can_be_linked(steps: Steps) -> None:
    assert steps.do("link", steps.make(b"one", mode=SYMLINK), ROOT_INO, b"two").nlink == 2


def test_an_orphan_and_what_does_not_exist_cannot_be_linked(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("unlink", ROOT_INO, b"file")
    steps.fails(ENOENT, "link", ino, ROOT_INO, b"again")
    steps.fails(ENOENT, "link", 1234, ROOT_INO, b"again")


def test_unlink_takes_one_name_and_the_last_makes_an_orphan(steps: Steps) -> None:
    ino = steps.make(b"one")
    steps.do("link", ino, ROOT_INO, b"two")
    assert steps.do("unlink", ROOT_INO, b"one").nlink == 1
    assert steps.inode(ino).ctime_ns == steps.now_ns
    assert steps.inode().mtime_ns == steps.now_ns
    assert not steps.table.orphans
    steps.do("unlink", ROOT_INO, b"two")
    assert steps.table.orphans == {ino}


@pytest.mark.parametrize(
    ("code", "kind", "name"),
    [(EISDIR, "unlink", b"dir"), (ENOENT, "unlink", b"no"), (ENOTDIR, "rmdir", b"file"), (ENOENT, "rmdir", b"no")],
)
def test_unlink_is_for_files_and_rmdir_for_directories(steps: Steps, code: int, kind: str, name: bytes) -> None:
    steps.make(b"file")
    steps.mkdir(b"dir")
    steps.fails(code, kind, ROOT_INO, name)


def test_rmdir_wants_an_empty_directory(steps: Steps) -> None:
    directory = steps.mkdir(b"dir")
    steps.make(b"file", directory)
    steps.fails(ENOTEMPTY, "rmdir", ROOT_INO, b"dir")
    steps.do("unlink", directory, b"file")
    assert steps.do("rmdir", ROOT_INO, b"dir").nlink == 0
    assert directory in steps.table.orphans


# -- orphans ---------------------------------------------------------------------------------------------------------


def test_an_orphan_goes_on_until_it_is_reaped_and_then_its_chunks_are_told(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("place", ino, 0, ("a",))
    steps.do("place", ino, 3, ["a", "b"])
    steps.do("unlink", ROOT_INO, b"file")
    steps.do("extend", steps.now_ns, ino, 100)
    steps.do("change", ino, 0o600)
    assert steps.do("reap", ino) == [(0, ("a",)), (3, ("a", "b"))]
    assert ino not in steps.table.inodes
    assert len(steps.table.directory) == 0


def test_only_an_orphan_is_reaped_and_only_once(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.fails(EINVAL, "reap", ino)
    steps.do("unlink", ROOT_INO, b"file")
    steps.do("reap", ino)
    steps.fails(EINVAL, "reap", ino)


def test_the_number_of_a_reaped_inode_is_not_used_again(steps: Steps) -> None:
    ino = steps.make(b"file")
    steps.do("unlink", ROOT_INO, b"file")
    steps.do("reap", ino)
    assert steps.table.next_ino > ino


# -- rename ----------------------------------------------------------------------------------------------------------


def test_rename_moves_a_name_and_leaves_the_files_mtime(steps: Steps) -> None:
    directory, ino = steps.mkdir(b"dir"), steps.make(b"old")
    mtime_ns = steps.inode(ino).mtime_ns
    assert steps.do("rename", ROOT_INO, b"old", directory, b"new") is None
    assert (steps.names(), steps.names(directory)) == ({b"dir": directory}, {b"new": ino})
    assert steps.times(ino)[1:] == (mtime_ns, steps.now_ns)
    assert steps.inode().mtime_ns == steps.inode(directory).mtime_ns == steps.now_ns


def test_rename_moves_a_directory_with_all_in_it(steps: Steps) -> None:
    one, two = steps.mkdir(b"one"), steps.mkdir(b"two")
    inner = steps.mkdir(b"inner", one)
    file = steps.make(b"file", inner)
    steps.do("rename", one, b"inner", two, b"moved")
    assert (steps.inode(one).nlink, steps.inode(two).nlink, steps.inode(inner).parent) == (2, 3, two)
    assert steps.names(inner) == {b"file": file}


def test_rename_replaces_and_tells_who_lost_its_name(steps: Steps) -> None:
    one, two = steps.make(b"one"), steps.make(b"two")
    assert steps.do("rename", ROOT_INO, b"one", ROOT_INO, b"two") is steps.inode(two)
    assert steps.names() == {b"two": one}
    assert steps.table.orphans == {two}
    assert steps.inode(two).ctime_ns == steps.now_ns


def test_rename_to_another_link_of_the_same_inode_does_nothing(steps: Steps) -> None:
    ino = steps.make(b"one")
    steps.do("link", ino, ROOT_INO, b"two")
    before = dump(steps.table)
    steps.do("rename", ROOT_INO, b"one", ROOT_INO, b"two")
    steps.do("rename", ROOT_INO, b"one", ROOT_INO, b"one")
    assert dump(steps.table) == before


def test_rename_moves_the_ctime_of_both_and_the_times_of_both_parents(steps: Steps) -> None:
    one, two = steps.mkdir(b"one"), steps.mkdir(b"two")
    moved, replaced = steps.make(b"moved", one), steps.make(b"replaced", two)
    steps.do("link", replaced, ROOT_INO, b"kept")
    steps.do("rename", one, b"moved", two, b"replaced")
    assert steps.inode(moved).ctime_ns == steps.inode(replaced).ctime_ns == steps.now_ns
    assert steps.times(one)[1:] == steps.times(two)[1:] == (steps.now_ns, steps.now_ns)


def test_an_exchange_moves_the_ctime_of_both_and_the_times_of_both_parents(steps: Steps) -> None:
    one, two = steps.mkdir(b"one"), steps.mkdir(b"two")
    inner, file = steps.mkdir(b"inner", one), steps.make(b"file", two)
    before = steps.times(inner), steps.times(file)
    steps.do("rename", one, b"inner", two, b"file", RENAME_EXCHANGE)
    assert [steps.times(ino) for ino in (inner, file)] == [(*times[:2], steps.now_ns) for times in before]
    assert steps.times(one)[1:] == steps.times(two)[1:] == (steps.now_ns, steps.now_ns)


def test_a_directory_that_is_removed_moves_its_own_ctime_and_its_parents_times(steps: Steps) -> None:
    directory = steps.mkdir(b"dir")
    atime_ns, mtime_ns, _ = steps.times(directory)
    steps.do("rmdir", ROOT_INO, b"dir")
    assert steps.times(directory) == (atime_ns, mtime_ns, steps.now_ns)
    assert steps.times(ROOT_INO)[1:] == (steps.now_ns, steps.now_ns)


def test_rename_replaces_an_empty_directory(steps: Steps) -> None:
    one, two = steps.mkdir(b"one"), steps.mkdir(b"two")
    steps.do("rename", ROOT_INO, b"one", ROOT_INO, b"two")
    assert steps.names() == {b"two": one}
    assert (steps.inode().nlink, steps.table.orphans) == (3, {two})


@pytest.mark.parametrize(
    ("code", "name", "new_parent", "new_name", "flags"),
    [
        (ENOENT, b"no", b"", b"new", 0),
        (ENOTDIR, b"dir", b"", b"file", 0),
        (EISDIR, b"file", b"", b"empty", 0),
        (ENOTEMPTY, b"empty", b"", b"dir", 0),
        (EINVAL, b"dir", b"dir", b"self", 0),
        (EINVAL, b"dir", b"inner", b"below", 0),
        (EEXIST, b"file", b"", b"other", RENAME_NOREPLACE),
        (EEXIST, b"file", b"", b"file", RENAME_NOREPLACE),
        (ENOENT, b"file", b"", b"new", RENAME_EXCHANGE),
        (EINVAL, b"dir", b"dir", b"inner", RENAME_EXCHANGE),
        (EINVAL, b"file", b"", b"new", 4),
        (EINVAL, b"file", b"", b"new", RENAME_NOREPLACE | RENAME_EXCHANGE),
        (ENOTDIR, b"file", b"file", b"new", 0),
        (EINVAL, b"no", b"", b"new", 4),
        (ENOENT, b"no", b"", b"n" * 256, 0),
        (ENOENT, b"no", b"", b"file", RENAME_NOREPLACE),
        (ENAMETOOLONG, b"n" * 256, b"", b"new", 0),
        (ENAMETOOLONG, b"file", b"", b"n" * 256, 0),
        (EINVAL, b"dir", b"dir", b"inner", 0),
    ],
)
def test_a_rename_that_fails(steps: Steps, code: int, name: bytes, new_parent: bytes, new_name: bytes, flags: int) -> None:
    places = {b"": ROOT_INO, b"file": steps.make(b"file"), b"dir": steps.mkdir(b"dir")}
    places[b"inner"] = steps.mkdir(b"inner", places[b"dir"])
    steps.make(b"other")
    steps.mkdir(b"empty")
    steps.fails(code, "rename", ROOT_INO, name, places[new_parent], new_name, flags)


def test_exchanging_a_directory_with_its_own_parent_fails(steps: Steps) -> None:
    outer = steps.mkdir(b"outer")
    steps.mkdir(b"inner", outer)
    steps.fails(EINVAL, "rename", outer, b"inner", ROOT_INO, b"outer", RENAME_EXCHANGE)


def test_noreplace_moves_to_a_free_name(steps: Steps) -> None:
    ino = steps.make(b"one")
    steps.do("rename", ROOT_INO, b"one", ROOT_INO, b"two", RENAME_NOREPLACE)
    assert steps.names() == {b"two": ino}


def test_exchange_swaps_a_file_and_a_directory(steps: Steps) -> None:
    one, file = steps.mkdir(b"one"), steps.make(b"file")
    inner = steps.mkdir(b"inner", one)
    assert steps.do("rename", one, b"inner", ROOT_INO, b"file", RENAME_EXCHANGE) is None
    assert (steps.names()[b"file"], steps.names(one)) == (inner, {b"inner": file})
    assert (steps.inode().nlink, steps.inode(one).nlink, steps.inode(inner).parent) == (4, 2, ROOT_INO)


# -- chunks, and equal tables ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", [DIRECTORY, SYMLINK, FIFO])
def test_only_regular_files_have_chunks(steps: Steps, mode: int) -> None:
    steps.fails(EINVAL, "place", steps.make(b"new", mode=mode), 0, ("a",))


def test_equal_tables_stay_equal_under_equal_ops() -> None:
    steps, other = Steps(), Table()
    apply, history = steps.table.apply, [("format", 10, UID, GID)]
    other.apply(history[0])
    for op in (
        ("make", 1, 2, 1, b"d", DIRECTORY, 0, 0),
        ("make", 2, 3, 2, b"f", FILE, 0, 0),
        ("place", 3, 0, ("a",)),
        ("rename", 3, 2, b"f", 1, b"g"),
        ("unlink", 4, 1, b"g"),
    ):
        apply(op)
        other.apply(op)
    assert (dump(other), changed(other)) == (dump(steps.table), changed(steps.table))
