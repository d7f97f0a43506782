"""Who may read a file, and where a result may go: as the kernel decides for a program of that user."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gridfs.errors import FilesystemError
from gridfs.meta import acl
from gridfs.meta.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Entry
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.access import EXECUTE, READ, WRITE, may, path_of, resolve_output
from gridfs.offload.job import Output, Submitter
from tests.suite.syscalls import in_child
from tests.unit.tables import DIRECTORY, FIFO, FILE, GID, SYMLINK, UID, Steps

OWNER, OTHER_UID, GROUP_GID, NAMED_GID = 34567, 34568, 45678, 45679
IDS = st.sampled_from([OWNER, OTHER_UID])
GIDS = st.sampled_from([GROUP_GID, NAMED_GID, 4])
USER_ = Submitter(UID, GID)
ROOT = Submitter(0, 0)
STRANGER = Submitter(OTHER_UID, OTHER_UID)
_digit = st.integers(0, 7)


@pytest.fixture
def steps() -> Steps:
    return Steps()


# -- permissions -----------------------------------------------------------------------------------------------------


@st.composite
def acls(draw: st.DrawFn) -> acl.Acl:
    """Any ACL that names some of the users and groups there are."""
    users = sorted(draw(st.sets(IDS, max_size=2)))
    groups = sorted(draw(st.sets(GIDS, max_size=2)))
    named = [Entry(USER, draw(_digit), uid) for uid in users]
    grouped = [Entry(GROUP, draw(_digit), gid) for gid in groups]
    return (
        Entry(USER_OBJ, draw(_digit)),
        *named,
        Entry(GROUP_OBJ, draw(_digit)),
        *grouped,
        Entry(MASK, draw(_digit)),
        Entry(OTHER, draw(_digit)),
    )


@pytest.fixture(scope="module")
def kernel_says() -> Iterator[Path]:
    """A directory on a tmpfs, which every user may pass through."""
    if os.geteuid() != 0:
        pytest.skip("only root can become other users")
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        os.chmod(directory, 0o755)
        yield Path(directory)


def asked(path: Path, submitter: Submitter) -> list[int]:
    """The masks that the kernel allows the submitter."""

    def become_and_ask() -> list[int]:
        os.setgroups(submitter.groups)
        os.setresgid(submitter.gid, submitter.gid, submitter.gid)
        os.setresuid(submitter.uid, submitter.uid, submitter.uid)
        return [mask for mask in range(1, 8) if os.access(path, mask)]

    found: list[int] = in_child(become_and_ask)
    return found


_submitters = st.builds(Submitter, st.sampled_from([0, OWNER, OTHER_UID]), GIDS, st.lists(GIDS, max_size=2).map(tuple))


@settings(max_examples=150, deadline=None)
@given(mode=st.integers(0, 0o777), entries=st.none() | acls(), directory=st.booleans(), submitter=_submitters)
@example(
    mode=0,
    entries=(Entry(USER_OBJ, 7), Entry(USER, 7, OTHER_UID), Entry(GROUP_OBJ, 7), Entry(MASK, 0), Entry(OTHER, 7)),
    directory=False,
    submitter=Submitter(OTHER_UID, 4),
)
@example(
    mode=0,
    entries=(Entry(USER_OBJ, 0), Entry(GROUP_OBJ, 4), Entry(GROUP, 2, NAMED_GID), Entry(MASK, 7), Entry(OTHER, 7)),
    directory=False,
    submitter=Submitter(OTHER_UID, GROUP_GID, (NAMED_GID,)),
)
def test_the_kernel_decides_the_same(
    kernel_says: Path, mode: int, entries: acl.Acl | None, directory: bool, submitter: Submitter
) -> None:
    with tempfile.TemporaryDirectory(dir=kernel_says) as top:
        os.chmod(top, 0o755)
        path = Path(top) / "x"
        path.mkdir() if directory else path.touch()
        os.chown(path, OWNER, GROUP_GID)
        path.chmod(mode)
        steps = Steps()
        ino = steps.make(b"x", mode=(stat.S_IFDIR if directory else stat.S_IFREG) | mode, uid=OWNER, gid=GROUP_GID)
        if entries is not None:
            os.setxattr(path, acl.ACCESS, acl.pack(entries))
            steps.do("set_xattr", ino, acl.ACCESS, acl.pack(entries))
        assert stat.S_IMODE(steps.inode(ino).mode) == stat.S_IMODE(path.stat().st_mode)
        assert [mask for mask in range(1, 8) if may(steps.table, ino, submitter, mask)] == asked(path, submitter)


def test_an_inode_that_is_gone_is_enoent(steps: Steps) -> None:
    with pytest.raises(FilesystemError) as raised:
        may(steps.table, 999, ROOT, READ)
    assert raised.value.errno == errno.ENOENT


# -- where a result goes ---------------------------------------------------------------------------------------------


def refused(
    steps: Steps, path: str, submitter: Submitter = USER_, directory: int = ROOT_INO, *, overwrite: bool = False
) -> str:
    with pytest.raises(FilesystemError) as raised:
        resolve_output(steps.table, directory, path, submitter, overwrite=overwrite)
    assert raised.value.strerror
    return errno.errorcode[raised.value.errno or 0]


def test_an_output_is_found_from_the_file_s_directory_or_from_the_root(steps: Steps) -> None:
    a = steps.mkdir(b"a")
    b = steps.mkdir(b"b", a)
    assert resolve_output(steps.table, a, "x", USER_) == Output(a, b"x", "/a/x")
    assert resolve_output(steps.table, a, "./b//x", USER_) == Output(b, b"x", "/a/b/x")
    assert resolve_output(steps.table, b, "/x", USER_) == Output(ROOT_INO, b"x", "/x")
    assert resolve_output(steps.table, b, "/a/b/é", USER_, overwrite=True) == Output(b, "é".encode(), "/a/b/é", overwrite=True)


@pytest.mark.parametrize(
    ("path", "code"),
    [
        ("..", "EISDIR"),
        ("../x", "EINVAL"),
        ("d/../x", "EINVAL"),
        ("/../../etc/passwd", "EINVAL"),
        ("d/..", "EISDIR"),
        ("", "EISDIR"),
        ("/", "EISDIR"),
        (".", "EISDIR"),
        ("d/", "EISDIR"),
        ("d", "EISDIR"),
        ("new/", "EISDIR"),
        ("absent/x", "ENOENT"),
        ("file/x", "ENOTDIR"),
        ("link/x", "ELOOP"),
        ("d/out/x", "ELOOP"),
        ("x" * 256, "ENAMETOOLONG"),
        ("x" * 256 + "/x", "ENAMETOOLONG"),
        ("file", "EEXIST"),
        ("link", "EEXIST"),
        (".gridfs", "EPERM"),
        (".gridfs/jobs/x", "ENOENT"),
        ("theirs/x", "EACCES"),
        ("closed/d/x", "EACCES"),
    ],
)
def test_a_path_that_leads_nowhere_or_out_is_refused(steps: Steps, path: str, code: str) -> None:
    d = steps.mkdir(b"d")
    steps.make(b"file")
    steps.make(b"link", mode=SYMLINK, target=b"d")
    steps.make(b"out", d, SYMLINK, target=b"/")
    steps.make(b"theirs", mode=DIRECTORY, uid=0, gid=0)
    steps.mkdir(b"d", steps.make(b"closed", mode=stat.S_IFDIR | 0o700, uid=0, gid=0))
    assert refused(steps, path) == code


def test_a_file_is_replaced_only_if_asked_for_and_only_a_file(steps: Steps) -> None:
    steps.make(b"file")
    steps.make(b"pipe", mode=FIFO)
    steps.make(b"link", mode=SYMLINK, target=b"file")
    assert refused(steps, "file") == "EEXIST"
    assert resolve_output(steps.table, ROOT_INO, "file", USER_, overwrite=True).overwrite
    for name in ("pipe", "link"):
        assert refused(steps, name, overwrite=True) == "EEXIST"


def test_in_a_sticky_directory_only_one_s_own_file_is_replaced(steps: Steps) -> None:
    sticky = steps.make(b"tmp", mode=stat.S_IFDIR | 0o1777, uid=0, gid=0)
    steps.make(b"mine", sticky)
    assert refused(steps, "mine", STRANGER, sticky, overwrite=True) == "EPERM"
    for submitter in (USER_, ROOT):
        assert resolve_output(steps.table, sticky, "mine", submitter, overwrite=True)
    assert resolve_output(steps.table, sticky, "new", STRANGER)


def test_writing_needs_write_and_search_on_the_last_directory_alone(steps: Steps) -> None:
    passed = steps.make(b"passed", mode=stat.S_IFDIR | 0o711, uid=0, gid=0)
    steps.make(b"open", passed, stat.S_IFDIR | 0o733, uid=0, gid=0)
    steps.make(b"no-search", passed, stat.S_IFDIR | 0o732, uid=0, gid=0)
    assert resolve_output(steps.table, ROOT_INO, "passed/open/x", STRANGER)
    assert refused(steps, "passed/no-search/x", STRANGER) == "EACCES"
    assert refused(steps, "passed/x", STRANGER) == "EACCES"
    assert resolve_output(steps.table, ROOT_INO, "passed/no-search/x", ROOT)


def test_a_directory_that_has_been_removed_takes_nothing(steps: Steps) -> None:
    gone = steps.mkdir(b"gone")
    steps.do("rmdir", ROOT_INO, b"gone")
    assert refused(steps, "x", ROOT, gone) == "ENOENT"


def test_a_path_leads_back_to_its_directory(steps: Steps) -> None:
    deep = steps.mkdir(b"b", steps.mkdir(b"a"))
    assert path_of(steps.table, ROOT_INO) == b"/"
    assert path_of(steps.table, deep) == b"/a/b"


def test_masks_are_those_of_access(steps: Steps) -> None:
    ino = steps.make(b"x", mode=FILE & ~0o777 | 0o750)
    assert may(steps.table, ino, USER_, READ | WRITE | EXECUTE)
    assert may(steps.table, ino, Submitter(OTHER_UID, GID), READ | EXECUTE)
    assert not may(steps.table, ino, Submitter(OTHER_UID, GID), WRITE)
    assert may(steps.table, ino, Submitter(OTHER_UID, 1, (7, GID)), READ)
    assert not may(steps.table, ino, STRANGER, READ)
