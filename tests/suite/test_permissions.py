"""Who may do what: enforced for every user but root. These tests give up root in a child process."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.syscalls import RENAME_EXCHANGE, STRANGER, as_user, fails, listing, opened, renameat2, write

OWNER = 34567
GROUP = 45678

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


@pytest.fixture
def shared(root: Path) -> Path:
    """A directory that everybody may write to."""
    root.chmod(0o777)
    return root


def owned(path: Path, mode: int, content: bytes = b"content") -> Path:
    """A file of OWNER and GROUP with that mode."""
    write(path, content)
    os.chown(path, OWNER, GROUP)
    path.chmod(mode)
    return path


def test_what_is_made_belongs_to_its_maker(shared: Path) -> None:
    """Owner and group are those of the process that creates."""

    def make() -> None:
        write(shared / "file", b"")
        (shared / "d").mkdir()
        (shared / "link").symlink_to("x")
        os.mkfifo(shared / "fifo")

    as_user(make, uid=OWNER, gid=GROUP)
    for name in listing(shared):
        status = (shared / name).lstat()
        assert (status.st_uid, status.st_gid) == (OWNER, GROUP), name


@pytest.mark.parametrize(
    ("mode", "uid", "gid", "groups", "allowed"),
    [
        (0o400, OWNER, STRANGER, [], True),
        (0o040, OWNER, GROUP, [], False),
        (0o040, STRANGER, GROUP, [], True),
        (0o040, STRANGER, STRANGER, [GROUP], True),
        (0o004, STRANGER, GROUP, [], False),
        (0o004, STRANGER, STRANGER, [], True),
        (0o440, STRANGER, STRANGER, [], False),
    ],
)
def test_reading_needs_the_bit_of_the_class_one_is_in(
    shared: Path, mode: int, uid: int, gid: int, groups: list[int], allowed: bool
) -> None:
    """Owner, group, supplementary group, others: the first class that fits decides."""
    path = owned(shared / "file", mode)
    if allowed:
        assert as_user(path.read_bytes, uid, gid, groups) == b"content"
    else:
        with fails(errno.EACCES):
            as_user(path.read_bytes, uid, gid, groups)


def test_writing_needs_the_write_bit(shared: Path) -> None:
    """Without it open for writing and truncate are EACCES, and the content stays."""
    path = owned(shared / "file", 0o644)
    with fails(errno.EACCES):
        as_user(lambda: os.open(path, os.O_WRONLY))
    with fails(errno.EACCES):
        as_user(lambda: os.truncate(path, 0))
    assert path.read_bytes() == b"content"


def test_names_need_rights_on_their_directory(root: Path) -> None:
    """Creating, removing and renaming need write on the directory, passing through needs search, listing needs read."""
    write(root / "file", b"x")
    for action in (
        lambda: write(root / "new", b""),
        lambda: (root / "new").mkdir(),
        lambda: (root / "file").unlink(),
        lambda: (root / "file").rename(root / "new"),
    ):
        with fails(errno.EACCES):
            as_user(action)
    root.chmod(0o744)
    with fails(errno.EACCES):
        as_user((root / "file").read_bytes)
    root.chmod(0o711)
    assert as_user((root / "file").read_bytes) == b"x"
    with fails(errno.EACCES):
        as_user(lambda: os.listdir(root))


def test_executing_needs_the_execute_bit(shared: Path) -> None:
    """access(2) and execve(2) agree."""
    program = owned(shared / "program", 0o644, Path("/bin/true").read_bytes())
    assert not as_user(lambda: os.access(program, os.X_OK))

    def execute() -> None:
        os.execv(program, ["program"])

    with fails(errno.EACCES):
        as_user(execute)
    program.chmod(0o755)
    assert as_user(lambda: os.access(program, os.X_OK))
    assert as_user(lambda: os.waitstatus_to_exitcode(os.system(str(program)))) == 0


def test_attributes_are_their_owners(shared: Path) -> None:
    """chmod, chown and utime of another's file are EPERM; the owner may chmod, and chgrp into a group of theirs."""
    path = owned(shared / "file", 0o666)
    for action in (
        lambda: path.chmod(0o777),
        lambda: os.chown(path, STRANGER, STRANGER),
        lambda: os.utime(path, ns=(1, 1)),
    ):
        with fails(errno.EPERM):
            as_user(action)
    with fails(errno.EPERM):
        as_user(lambda: os.chown(path, STRANGER, -1), uid=OWNER, gid=GROUP)
    as_user(lambda: path.chmod(0o600), uid=OWNER, gid=GROUP)
    as_user(lambda: os.chown(path, -1, STRANGER), uid=OWNER, gid=GROUP, groups=[STRANGER])
    status = path.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o600, OWNER, STRANGER)


def test_extended_attributes_follow_the_mode(shared: Path) -> None:
    """Reading one needs read, setting one needs write."""
    path = owned(shared / "file", 0o644)
    os.setxattr(path, "user.a", b"1")
    assert as_user(lambda: os.getxattr(path, "user.a")) == b"1"
    with fails(errno.EACCES, errno.EPERM):
        as_user(lambda: os.setxattr(path, "user.a", b"2"))
    path.chmod(0o600)
    with fails(errno.EACCES, errno.EPERM):
        as_user(lambda: os.getxattr(path, "user.a"))


def test_a_setgid_directory_hands_down_its_group(shared: Path) -> None:
    """New files take the directory's group; new directories take the group and the bit."""
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2777)

    def make() -> None:
        write(shared / "file", b"")
        (shared / "d").mkdir()
        (shared / "link").symlink_to("x")

    as_user(make)
    assert (shared / "file").stat().st_gid == GROUP
    assert (shared / "link").lstat().st_gid == GROUP
    assert (shared / "d").stat().st_gid == GROUP
    assert (shared / "d").stat().st_mode & stat.S_ISGID
    assert not (shared / "file").stat().st_mode & stat.S_ISGID


def test_a_sticky_directory_protects_its_names(shared: Path) -> None:
    """Only the file's owner, the directory's owner and root remove or rename what lies in it."""
    shared.chmod(0o1777)
    path = owned(shared / "file", 0o666)
    as_user(lambda: write(shared / "mine", b""))
    for action in (path.unlink, lambda: path.rename(shared / "b"), lambda: (shared / "mine").rename(path)):
        with fails(errno.EPERM, errno.EACCES):
            as_user(action)
    as_user(lambda: path.rename(shared / "renamed"), uid=OWNER, gid=GROUP)
    as_user((shared / "renamed").unlink, uid=OWNER, gid=GROUP)
    as_user((shared / "mine").unlink)
    assert listing(shared) == []


def test_a_sticky_directory_protects_directories(shared: Path) -> None:
    """rmdir and rename of one, and rename over one, are for its owner, the sticky directory's owner and root."""
    shared.chmod(0o1777)
    for name in ("theirs", "gone"):
        (shared / name).mkdir()
        os.chown(shared / name, OWNER, GROUP)
        (shared / name).chmod(0o777)
    as_user((shared / "mine").mkdir)
    for action in (
        (shared / "theirs").rmdir,
        lambda: (shared / "theirs").rename(shared / "b"),
        lambda: (shared / "mine").rename(shared / "theirs"),
        lambda: renameat2(shared / "mine", shared / "theirs", RENAME_EXCHANGE),
    ):
        with fails(errno.EPERM, errno.EACCES):
            as_user(action)
    as_user((shared / "gone").rmdir, uid=OWNER, gid=GROUP)
    as_user(lambda: (shared / "mine").rename(shared / "renamed"))
    (shared / "renamed").rename(shared / "theirs")
    assert listing(shared) == ["theirs"]


def test_moving_a_directory_elsewhere_needs_write_on_the_directory_itself(shared: Path) -> None:
    """Its `..` changes; a rename within one directory leaves it."""
    (shared / "d").mkdir(mode=0o755)
    (shared / "top").mkdir()
    (shared / "top").chmod(0o777)
    with fails(errno.EACCES):
        as_user(lambda: (shared / "d").rename(shared / "top" / "d"))
    as_user(lambda: (shared / "d").rename(shared / "renamed"))
    (shared / "renamed").chmod(0o777)
    as_user(lambda: (shared / "renamed").rename(shared / "top" / "d"))


def test_times_are_set_by_the_owner_and_touched_by_who_may_write(shared: Path) -> None:
    """utimensat(2): a time of one's choice is EPERM for all but the owner, now needs write (EACCES) or ownership."""
    path = owned(shared / "file", 0o606)

    def set_times() -> None:
        os.utime(path, ns=(1, 1))

    def touch() -> None:
        os.utime(path)

    as_user(touch)
    with fails(errno.EPERM):
        as_user(set_times)
    path.chmod(0o404)
    with fails(errno.EACCES):
        as_user(touch)
    as_user(touch, uid=OWNER, gid=STRANGER)
    as_user(set_times, uid=OWNER, gid=STRANGER)
    assert path.stat().st_mtime_ns == 1


@pytest.mark.parametrize(("gid", "groups", "kept"), [(STRANGER, [], False), (GROUP, [], True), (STRANGER, [GROUP], True)])
def test_chmod_by_a_non_member_of_the_group_clears_setgid(shared: Path, gid: int, groups: list[int], kept: bool) -> None:
    """The owner keeps it as a member, by primary or supplementary group; of a directory too."""
    (shared / "d").mkdir()
    os.chown(shared / "d", OWNER, GROUP)
    for path in (owned(shared / "file", 0o644), shared / "d"):
        as_user(lambda path=path: path.chmod(0o2755), uid=OWNER, gid=gid, groups=groups)  # type: ignore[misc]
        assert stat.S_IMODE(path.stat().st_mode) == (0o2755 if kept else 0o755), path.name


@pytest.mark.parametrize(("groups", "kept"), [([], False), ([GROUP], True)])
def test_a_new_file_of_a_setgid_directory_is_setgid_by_a_member_only(shared: Path, groups: list[int], kept: bool) -> None:
    """open(O_CREAT) with a setgid, group-executable mode: the group is the directory's, its rights are not to be had."""
    os.chown(shared, 0, GROUP)
    shared.chmod(0o2777)

    def create() -> None:
        os.umask(0)
        os.close(os.open(shared / "file", os.O_CREAT | os.O_WRONLY, 0o2775))

    as_user(create, groups=groups)
    status = (shared / "file").stat()
    assert (status.st_gid, stat.S_IMODE(status.st_mode)) == (GROUP, 0o2775 if kept else 0o775)


def test_device_nodes_are_for_root(shared: Path) -> None:
    """mknod(2): EPERM for character and block devices; fifos, sockets and files are for everybody."""
    for kind in (stat.S_IFCHR, stat.S_IFBLK):
        with fails(errno.EPERM):
            as_user(lambda kind=kind: os.mknod(shared / "node", kind | 0o600, os.makedev(1, 3)))  # type: ignore[misc]
    for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG):
        as_user(lambda kind=kind: os.mknod(shared / str(kind), kind | 0o600))  # type: ignore[misc]
    assert listing(shared) == sorted(str(kind) for kind in (stat.S_IFIFO, stat.S_IFSOCK, stat.S_IFREG))


WRITES: dict[str, Callable[[Path], object]] = {
    "write": lambda path: append(path, b"x"),
    "truncate": lambda path: os.truncate(path, 1),
    "grow": lambda path: os.truncate(path, 100),
    "open with O_TRUNC": lambda path: os.close(os.open(path, os.O_WRONLY | os.O_TRUNC)),
}


def append(path: Path, content: bytes) -> None:
    """Write at the end."""
    with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, content)


@pytest.mark.parametrize("name", WRITES)
def test_setuid_and_setgid_are_lost_when_another_writes(shared: Path, name: str) -> None:
    """Setgid is, where the group may execute; root's writes leave both."""
    for before, after in ((0o6777, 0o777), (0o4766, 0o766), (0o2777, 0o777)):
        path = owned(shared / "file", before)
        WRITES[name](path)
        assert stat.S_IMODE(path.stat().st_mode) == before
        as_user(lambda path=path: WRITES[name](path))  # type: ignore[misc]
        assert stat.S_IMODE(path.stat().st_mode) == after


@pytest.mark.parametrize(("uid", "gid"), [(STRANGER, STRANGER), (STRANGER, -1), (-1, STRANGER)])
def test_chown_clears_setuid_and_setgid(shared: Path, uid: int, gid: int) -> None:
    """Of files, by root too; setgid stays where the group may not execute, and both stay on directories."""
    for before, after in ((0o6755, 0o755), (0o6745, 0o2745)):
        path = owned(shared / "file", before)
        os.chown(path, uid, gid)
        assert stat.S_IMODE(path.stat().st_mode) == after
    (shared / "d").mkdir()
    (shared / "d").chmod(0o6755)
    os.chown(shared / "d", uid, gid)
    assert stat.S_IMODE((shared / "d").stat().st_mode) == 0o6755


def test_chown_by_the_owner_clears_setuid(shared: Path) -> None:
    """A change to a group of theirs."""
    path = owned(shared / "file", 0o6755)
    as_user(lambda: os.chown(path, -1, STRANGER), uid=OWNER, gid=GROUP, groups=[STRANGER])
    assert (stat.S_IMODE(path.stat().st_mode), path.stat().st_gid) == (0o755, STRANGER)


def test_root_may_do_all(shared: Path) -> None:
    """Mode 000 of another's file does not stop root."""
    path = owned(shared / "file", 0)
    assert path.read_bytes() == b"content"
    path.write_bytes(b"changed")
    path.unlink()
