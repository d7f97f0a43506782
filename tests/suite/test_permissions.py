"""Who may do what: enforced for every user but root. These tests give up root in a child process."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

import pytest

from tests.suite.syscalls import STRANGER, as_user, fails, listing, opened, write

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


def test_set_user_id_is_lost_when_another_writes(shared: Path) -> None:
    """Writing, truncating and changing the owner take the setuid bit away."""
    path = owned(shared / "file", 0o4777)

    def append() -> None:
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            os.write(fd, b"x")

    for action in (append, lambda: os.truncate(path, 1)):
        path.chmod(0o4777)
        as_user(action)
        assert stat.S_IMODE(path.stat().st_mode) == 0o777
    path.chmod(0o4777)
    os.chown(path, STRANGER, STRANGER)
    assert stat.S_IMODE(path.stat().st_mode) == 0o777


def test_root_may_do_all(shared: Path) -> None:
    """Mode 000 of another's file does not stop root."""
    path = owned(shared / "file", 0)
    assert path.read_bytes() == b"content"
    path.write_bytes(b"changed")
    path.unlink()
