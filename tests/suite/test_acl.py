"""POSIX access control lists: kept, enforced, inherited, and carried by the programs that copy trees."""

from __future__ import annotations

import errno
import os
import shutil
import stat
from pathlib import Path

import pytest

from gridfs.meta import acl
from gridfs.meta.acl import GROUP, GROUP_OBJ, MASK, OTHER, USER, USER_OBJ, Acl, Entry
from tests.suite.syscalls import STRANGER, as_user, fails, let_the_clock_tick, opened, write
from tests.suite.testbed import run

OWNER = 34567
GROUP_ID = 45678
ACCESS, DEFAULT = acl.ACCESS.decode(), acl.DEFAULT.decode()

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")


def needs(*programs: str) -> pytest.MarkDecorator:
    """Skip a test on a machine that lacks one of the programs."""
    missing = [program for program in programs if shutil.which(program) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def entries(mode: int, *named: Entry, mask: int | None = None) -> Acl:
    """The ACL of a mode with entries for users or groups beside it; its mask is the mode's group unless given."""
    users, groups = [e for e in named if e.tag == USER], [e for e in named if e.tag == GROUP]
    middle = [Entry(MASK, mode >> 3 & 7 if mask is None else mask)] if named or mask is not None else []
    owner, group, other = Entry(USER_OBJ, mode >> 6), Entry(GROUP_OBJ, mode >> 3 & 7), Entry(OTHER, mode & 7)
    return (owner, *users, group, *groups, *middle, other)


def set_acl(path: Path, wanted: Acl, kind: str = ACCESS) -> None:
    """setfacl(1)."""
    os.setxattr(path, kind, acl.pack(wanted))


def get_acl(path: Path, kind: str = ACCESS) -> Acl | None:
    """getfacl(1); None when there is no ACL."""
    return acl.parse(os.getxattr(path, kind)) if kind in os.listxattr(path) else None


def mode_of(path: Path) -> int:
    """The permission bits."""
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def shared(root: Path) -> Path:
    """A directory that everybody may write to, as the umask of 0 lets new files be."""
    root.chmod(0o777)
    os.umask(0)
    return root


def owned(path: Path, mode: int, wanted: Acl | None = None) -> Path:
    """A file of OWNER with that mode, and an ACL."""
    write(path, b"content")
    os.chown(path, OWNER, OWNER)
    path.chmod(mode)
    if wanted is not None:
        set_acl(path, wanted)
    return path


# -- kept ------------------------------------------------------------------------------------------------------------


def test_an_acl_is_kept_and_the_mode_follows_it(root: Path) -> None:
    """The mask is the group's digit; the inode's ctime moves, and its mtime does not."""
    path = write(root / "file", b"")
    before = path.stat()
    let_the_clock_tick(root)
    wanted = entries(0o640, Entry(USER, 6, STRANGER), Entry(GROUP, 7, GROUP_ID), mask=7)
    set_acl(path, wanted)
    assert (get_acl(path), mode_of(path)) == (wanted, 0o670)
    assert path.stat().st_ctime_ns > before.st_ctime_ns
    assert path.stat().st_mtime_ns == before.st_mtime_ns


def test_an_acl_that_says_no_more_than_the_mode_is_a_chmod(root: Path) -> None:
    """Nothing is kept beside the mode."""
    path = write(root / "file", b"")
    set_acl(path, entries(0o640, Entry(USER, 6, STRANGER)))
    set_acl(path, entries(0o604))
    assert (get_acl(path), mode_of(path)) == (None, 0o604)


def test_chmod_changes_the_mask_of_an_acl(root: Path) -> None:
    """The group's digit is the mask's; the group's own entry stays."""
    path = write(root / "file", b"")
    set_acl(path, entries(0o640, Entry(USER, 6, STRANGER), mask=6))
    path.chmod(0o705)
    assert get_acl(path) == (
        *(Entry(USER_OBJ, 7), Entry(USER, 6, STRANGER), Entry(GROUP_OBJ, 4)),
        *(Entry(MASK, 0), Entry(OTHER, 5)),
    )


def test_removing_an_acl_leaves_the_mode(root: Path) -> None:
    """And what is not there may be removed."""
    path = write(root / "file", b"")
    set_acl(path, entries(0o640, Entry(USER, 6, STRANGER), mask=6))
    for _ in range(2):
        os.removexattr(path, ACCESS)
        assert (get_acl(path), mode_of(path)) == (None, 0o660)


def test_acls_that_cannot_be_are_refused(root: Path) -> None:
    """EINVAL for one that is not valid, EACCES for the default ACL of a file, EOPNOTSUPP for a symlink's."""
    path = write(root / "file", b"")
    (root / "link").symlink_to("file")
    with fails(errno.EINVAL):
        set_acl(path, (Entry(USER, 7, STRANGER), *entries(0o640)))
    with fails(errno.EACCES):
        set_acl(path, entries(0o640), DEFAULT)
    with fails(errno.EOPNOTSUPP):
        os.setxattr(root / "link", ACCESS, acl.pack(entries(0o640)), follow_symlinks=False)
    assert os.listxattr(path) == []


# -- enforced --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wanted", "groups", "allowed"),
    [
        (entries(0o600, Entry(USER, 4, STRANGER), mask=4), [], True),
        (entries(0o600, Entry(USER, 4, STRANGER + 1), mask=4), [], False),
        (entries(0o600, Entry(GROUP, 4, GROUP_ID), mask=4), [GROUP_ID], True),
        (entries(0o600, Entry(GROUP, 4, GROUP_ID), mask=4), [], False),
        (entries(0o600, Entry(USER, 7, STRANGER), mask=0), [], False),
        (entries(0o604, Entry(USER, 0, STRANGER), mask=7), [], False),
        (entries(0o604, Entry(GROUP, 0, GROUP_ID), mask=7), [GROUP_ID], False),
        (entries(0o604, Entry(USER, 0, STRANGER + 1), mask=7), [], True),
    ],
)
def test_the_entry_that_fits_decides_within_the_mask(shared: Path, wanted: Acl, groups: list[int], allowed: bool) -> None:
    """A named user or group comes before the others, for better and for worse."""
    path = owned(shared / "file", 0o600, wanted)
    if allowed:
        assert as_user(path.read_bytes, groups=groups) == b"content"
    else:
        with fails(errno.EACCES):
            as_user(path.read_bytes, groups=groups)


def test_an_acl_counts_from_the_moment_it_is_set(shared: Path) -> None:
    """What the kernel remembers of an inode's ACL is renewed: by setting, chmod and removing."""
    path = owned(shared / "file", 0o600)
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    set_acl(path, entries(0o600, Entry(USER, 4, STRANGER), mask=4))
    assert as_user(path.read_bytes) == b"content"
    path.chmod(0o600)
    with fails(errno.EACCES):
        as_user(path.read_bytes)
    path.chmod(0o640)
    assert as_user(path.read_bytes) == b"content"
    os.removexattr(path, ACCESS)
    with fails(errno.EACCES):
        as_user(path.read_bytes)


def test_a_named_user_may_change_a_directory(root: Path) -> None:
    """Write and search on the directory, as an entry gives them, let make and remove names."""
    root.chmod(0o711)
    (root / "d").mkdir(mode=0o700)
    set_acl(root / "d", entries(0o700, Entry(USER, 7, STRANGER), mask=7))
    as_user(lambda: write(root / "d/file", b""))
    as_user((root / "d/file").unlink)
    with fails(errno.EACCES):
        as_user(lambda: os.listdir(root / "d"), uid=OWNER)


def test_an_acl_is_its_owners_to_set(shared: Path) -> None:
    """EPERM for others, whatever they may do to the file's content."""
    path = owned(shared / "file", 0o666)
    with fails(errno.EPERM):
        as_user(lambda: set_acl(path, entries(0o666, Entry(USER, 7, STRANGER))))
    with fails(errno.EPERM):
        as_user(lambda: os.removexattr(path, ACCESS))
    as_user(lambda: set_acl(path, entries(0o600, Entry(USER, 4, STRANGER), mask=4)), uid=OWNER, gid=OWNER)
    assert as_user(path.read_bytes) == b"content"


@pytest.mark.parametrize(("gid", "groups", "kept"), [(OWNER, [], False), (GROUP_ID, [], True), (OWNER, [GROUP_ID], True)])
def test_an_acl_set_by_a_non_member_of_the_group_clears_setgid(shared: Path, gid: int, groups: list[int], kept: bool) -> None:
    """As chmod does."""
    path = owned(shared / "file", 0o600)
    os.chown(path, OWNER, GROUP_ID)
    path.chmod(0o2770)
    wanted = entries(0o770, Entry(USER, 4, STRANGER))
    as_user(lambda: set_acl(path, wanted), uid=OWNER, gid=gid, groups=groups)
    assert mode_of(path) == (0o2770 if kept else 0o770)
    assert get_acl(path) == wanted


# -- inherited -------------------------------------------------------------------------------------------------------


def test_what_is_made_inherits_the_default_acl(shared: Path) -> None:
    """Files, directories (which hand it on), fifos: within what the maker asks for. Symlinks have none."""
    default = entries(0o750, Entry(USER, 7, STRANGER), mask=7)
    set_acl(shared, default, DEFAULT)
    assert mode_of(shared) == 0o777
    with opened(shared / "file", os.O_CREAT | os.O_WRONLY, 0o664):
        pass
    (shared / "d").mkdir(mode=0o755)
    os.mkfifo(shared / "fifo", 0o600)
    (shared / "link").symlink_to("file")
    (shared / "d" / "below").mkdir(mode=0o777)
    assert get_acl(shared / "file") == entries(0o650, Entry(USER, 7, STRANGER), mask=6)
    assert get_acl(shared / "d") == entries(0o750, Entry(USER, 7, STRANGER), mask=5)
    assert get_acl(shared / "fifo") == entries(0o650, Entry(USER, 7, STRANGER), mask=0)
    assert get_acl(shared / "d/below") == default
    assert get_acl(shared / "d/below", DEFAULT) == get_acl(shared / "d", DEFAULT) == default
    assert get_acl(shared / "file", DEFAULT) is None
    assert [mode_of(shared / name) for name in ("file", "d", "fifo", "d/below")] == [0o660, 0o750, 0o600, 0o770]


def test_a_default_acl_counts_in_place_of_the_umask(root: Path) -> None:
    """umask(2): it is ignored where the directory has a default ACL, and counts where it has none."""
    os.umask(0o077)
    (root / "with").mkdir()
    (root / "without").mkdir()
    set_acl(root / "with", entries(0o775), DEFAULT)
    for directory in (root / "with", root / "without"):
        write(directory / "file", b"")
        (directory / "d").mkdir()
        os.mkfifo(directory / "fifo")
    assert [mode_of(root / "with" / name) for name in ("file", "d", "fifo")] == [0o664, 0o775, 0o664]
    assert [mode_of(root / "without" / name) for name in ("file", "d", "fifo")] == [0o600, 0o700, 0o600]


def test_removing_the_default_acl_ends_the_inheritance(shared: Path) -> None:
    """The umask counts again."""
    set_acl(shared, entries(0o777, Entry(USER, 7, STRANGER)), DEFAULT)
    os.removexattr(shared, DEFAULT)
    os.umask(0o022)
    path = write(shared / "file", b"")
    assert (get_acl(path), mode_of(path), os.listxattr(shared)) == (None, 0o644, [])


# -- programs --------------------------------------------------------------------------------------------------------


def facl(path: Path) -> list[str]:
    """The lines of getfacl(1) for a tree, path by path, with paths relative to it."""
    told = run("sh", "-c", f"cd '{path}' && getfacl --numeric --recursive .").stdout
    return "\n".join(sorted(told.split("\n\n"))).split("\n")


@needs("setfacl", "getfacl")
def test_setfacl_and_getfacl(root: Path) -> None:
    """Add, change, remove and drop entries and default entries, by name and recursively."""
    (root / "d").mkdir()
    write(root / "d/file", b"")
    run("setfacl", "-R", "-m", f"u:{STRANGER}:rwX,g:{GROUP_ID}:r", root / "d")
    run("setfacl", "-d", "-m", f"u:{STRANGER}:rwx", root / "d")
    lines = facl(root / "d")
    assert lines.count(f"user:{STRANGER}:rwx") == 1
    assert lines.count(f"user:{STRANGER}:rw-") == 1
    assert lines.count(f"group:{GROUP_ID}:r--") == 2
    assert f"default:user:{STRANGER}:rwx" in lines
    run("setfacl", "-x", f"g:{GROUP_ID}", root / "d")
    assert facl(root / "d").count(f"group:{GROUP_ID}:r--") == 1
    run("setfacl", "-R", "-b", root / "d")
    assert [line for line in facl(root / "d") if str(STRANGER) in line or line.startswith("default:")] == []
    assert os.listxattr(root / "d") == os.listxattr(root / "d/file") == []


COPIES = {
    "cp": "cp -a $FROM/tree $TO/copy",
    "rsync": "rsync -aA $FROM/tree/ $TO/copy/",
    "tar": "mkdir $TO/copy && tar --acls -C $FROM/tree -c . | tar --acls -C $TO/copy -xp",
    "mv": "mv $FROM/tree $TO/copy",
    "setfacl": "cp -r $FROM/tree $TO/copy; cd $FROM/tree && getfacl -nR . > $TO/acls; cd $TO/copy && setfacl --restore=../acls",
}


@needs("setfacl", "getfacl", "rsync", "tar")
@pytest.mark.parametrize("copy", COPIES)
@pytest.mark.parametrize("place", ["within", "into", "out of"])
def test_a_tree_is_copied_with_its_acls(root: Path, tmp_path: Path, copy: str, place: str) -> None:
    """Within the filesystem, into it from the machine's own, and out of it."""
    source, target = {"within": (root, root), "into": (tmp_path, root), "out of": (root, tmp_path)}[place]
    (source / "tree" / "inner").mkdir(parents=True)
    write(source / "tree/inner/file", b"content")
    write(source / "tree/plain", b"content")
    set_acl(source / "tree/inner/file", entries(0o640, Entry(USER, 6, STRANGER), Entry(GROUP, 5, GROUP_ID), mask=4))
    set_acl(source / "tree/inner", entries(0o750, Entry(USER, 7, STRANGER)))
    set_acl(source / "tree/inner", entries(0o770, Entry(GROUP, 7, GROUP_ID)), DEFAULT)
    expected = facl(source / "tree")
    run("env", f"FROM={source}", f"TO={target}", "sh", "-c", COPIES[copy])
    assert facl(target / "copy") == expected
