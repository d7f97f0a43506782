"""The errno of every wrong call, and names of every kind."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.suite.syscalls import as_user, fails, in_child, opened, write

LONGEST_NAME_BYTES = 255


def scene(root: Path) -> None:
    """A file, a full directory, an empty one, and symlinks: the ground for the table below."""
    write(root / "file", b"content")
    (root / "full").mkdir()
    write(root / "full/inside", b"")
    (root / "empty").mkdir()
    (root / "loop").symlink_to("loop")
    (root / "to-file").symlink_to("file")


WRONG_CALLS: dict[str, tuple[Callable[[Path], object], int]] = {
    "open missing": (lambda r: os.open(r / "missing", os.O_RDONLY), errno.ENOENT),
    "open below missing": (lambda r: os.open(r / "missing/x", os.O_RDONLY), errno.ENOENT),
    "create below missing": (lambda r: write(r / "missing/x", b""), errno.ENOENT),
    "open below file": (lambda r: os.open(r / "file/x", os.O_RDONLY), errno.ENOTDIR),
    "create below file": (lambda r: write(r / "file/x", b""), errno.ENOTDIR),
    "open directory to write": (lambda r: os.open(r / "empty", os.O_WRONLY), errno.EISDIR),
    "open file as directory": (lambda r: os.open(r / "file", os.O_DIRECTORY), errno.ENOTDIR),
    "open symlink unfollowed": (lambda r: os.open(r / "to-file", os.O_NOFOLLOW), errno.ELOOP),
    "open loop": (lambda r: os.open(r / "loop", os.O_RDONLY), errno.ELOOP),
    "stat missing": (lambda r: os.stat(r / "missing"), errno.ENOENT),
    "unlink missing": (lambda r: os.unlink(r / "missing"), errno.ENOENT),
    "unlink directory": (lambda r: os.unlink(r / "empty"), errno.EISDIR),
    "rmdir missing": (lambda r: os.rmdir(r / "missing"), errno.ENOENT),
    "rmdir file": (lambda r: os.rmdir(r / "file"), errno.ENOTDIR),
    "rmdir symlink": (lambda r: os.rmdir(r / "to-file"), errno.ENOTDIR),
    "rmdir full": (lambda r: os.rmdir(r / "full"), errno.ENOTEMPTY),
    "rmdir dot": (lambda r: os.rmdir(f"{r}/empty/."), errno.EINVAL),
    "mkdir existing": (lambda r: os.mkdir(r / "empty"), errno.EEXIST),
    "mkdir over file": (lambda r: os.mkdir(r / "file"), errno.EEXIST),
    "mkdir below missing": (lambda r: os.mkdir(r / "missing/x"), errno.ENOENT),
    "mkdir below file": (lambda r: os.mkdir(r / "file/x"), errno.ENOTDIR),
    "symlink existing": (lambda r: os.symlink("x", r / "file"), errno.EEXIST),
    "mkfifo existing": (lambda r: os.mkfifo(r / "file"), errno.EEXIST),
    "link missing": (lambda r: os.link(r / "missing", r / "x"), errno.ENOENT),
    "rename missing": (lambda r: os.rename(r / "missing", r / "x"), errno.ENOENT),
    "rename below missing": (lambda r: os.rename(r / "file", r / "missing/x"), errno.ENOENT),
    "rename below file": (lambda r: os.rename(r / "empty", r / "file/x"), errno.ENOTDIR),
    "readlink of a file": (lambda r: os.readlink(r / "file"), errno.EINVAL),
    "list a file": (lambda r: os.listdir(r / "file"), errno.ENOTDIR),
    "truncate a directory": (lambda r: os.truncate(r / "empty", 0), errno.EISDIR),
    "truncate to less than nothing": (lambda r: os.truncate(r / "file", -1), errno.EINVAL),
    "chmod missing": (lambda r: os.chmod(r / "missing", 0), errno.ENOENT),
    "slash after a file": (lambda r: os.stat(f"{r}/file/"), errno.ENOTDIR),
    "name too long to open": (lambda r: os.open(r / ("n" * 256), os.O_RDONLY), errno.ENAMETOOLONG),
    "name too long to make": (lambda r: write(r / ("n" * 256), b""), errno.ENAMETOOLONG),
    "name too long for mkdir": (lambda r: os.mkdir(r / ("n" * 256)), errno.ENAMETOOLONG),
    "name too long for symlink": (lambda r: os.symlink("x", r / ("n" * 256)), errno.ENAMETOOLONG),
    "name too long for rename": (lambda r: os.rename(r / "file", r / ("n" * 256)), errno.ENAMETOOLONG),
    "name too long for link": (lambda r: os.link(r / "file", r / ("n" * 256)), errno.ENAMETOOLONG),
    "path of 4096 bytes": (lambda r: os.stat(path_of(r, 4096)), errno.ENAMETOOLONG),
    "name too long below missing": (lambda r: os.stat(r / "missing" / ("n" * 256)), errno.ENOENT),
    "name too long below file": (lambda r: os.stat(r / "file" / ("n" * 256)), errno.ENOTDIR),
    "empty path": (lambda r: os.stat(""), errno.ENOENT),
    "empty target": (lambda r: os.symlink("", r / "new"), errno.ENOENT),
    "target of 4096 bytes": (lambda r: os.symlink("t" * 4096, r / "new"), errno.ENAMETOOLONG),
    "rename dot": (lambda r: os.rename(f"{r}/empty/.", r / "new"), errno.EBUSY),
    "rename onto dot": (lambda r: os.rename(r / "full", f"{r}/empty/."), errno.EBUSY),
    "rename a file to a name with a slash": (lambda r: os.rename(r / "file", f"{r}/new/"), errno.ENOTDIR),
    "rename onto its parent": (lambda r: os.rename(r / "full/inside", r / "full"), errno.ENOTEMPTY),
    "rename to below itself": (lambda r: os.rename(r / "full", r / "full/new"), errno.EINVAL),
    "rename another kind": (lambda r: os.rename(r / "empty", r / "file"), errno.ENOTDIR),
    "rename over a directory": (lambda r: os.rename(r / "file", r / "empty"), errno.EISDIR),
    "rename over a full directory": (lambda r: os.rename(r / "empty", r / "full"), errno.ENOTEMPTY),
    "rename missing to below itself": (lambda r: os.rename(r / "missing", r / "missing/x"), errno.ENOENT),
    "rmdir dot dot": (lambda r: os.rmdir(f"{r}/empty/.."), errno.ENOTEMPTY),
    "mkdir dot": (lambda r: os.mkdir(f"{r}/empty/."), errno.EEXIST),
    "link from another filesystem": (lambda r: os.link("/proc/version", r / "new"), errno.EXDEV),
    "rename to another filesystem": (lambda r: os.rename(r / "file", "/proc/gridfs"), errno.EXDEV),
    "exclusive create": (lambda r: os.open(r / "file", os.O_CREAT | os.O_EXCL), errno.EEXIST),
    "exclusive create through a symlink": (lambda r: os.open(r / "loop", os.O_CREAT | os.O_EXCL), errno.EEXIST),
    "create a directory": (lambda r: os.open(r / "empty", os.O_CREAT | os.O_WRONLY), errno.EISDIR),
    "create with a slash": (lambda r: os.open(f"{r}/new/", os.O_CREAT | os.O_WRONLY), errno.EISDIR),
}


def path_of(directory: Path, size: int) -> str:
    """A path of that many bytes to the directory itself."""
    path = str(directory)
    return path + "/" * ((size - len(path)) % 2) + "/." * ((size - len(path)) // 2)


@pytest.mark.parametrize("name", WRONG_CALLS)
def test_a_wrong_call_fails_with_the_errno_of_posix(root: Path, name: str) -> None:
    """And changes nothing."""
    scene(root)
    call, code = WRONG_CALLS[name]
    before = snapshot(root)
    with fails(code):
        call(root)
    assert snapshot(root) == before
    assert (root / "file").read_bytes() == b"content"


def snapshot(root: Path) -> dict[str, tuple[int, ...]]:
    """Of the directory and all in it: what is there, and what would tell of a change."""
    found: dict[str, tuple[int, ...]] = {}
    for path in (root, *sorted(root.rglob("*"))):
        status = path.lstat()
        found[str(path)] = (status.st_ino, status.st_mode, status.st_nlink, status.st_mtime_ns, status.st_ctime_ns)
    return found


def test_a_path_of_4095_bytes_is_a_path(root: Path) -> None:
    """PATH_MAX counts the NUL at its end."""
    assert os.stat(path_of(root, 4095)).st_ino == root.stat().st_ino


def test_a_chain_of_more_than_40_symlinks_is_eloop(root: Path) -> None:
    """40 are followed, path_resolution(7)."""
    write(root / "0", b"content")
    for number in range(1, 42):
        (root / str(number)).symlink_to(str(number - 1))
    assert (root / "40").read_bytes() == b"content"
    with fails(errno.ELOOP):
        (root / "41").read_bytes()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become other users")
@pytest.mark.parametrize(
    ("call", "code"),
    [
        (lambda r: os.stat(r / "closed/missing"), errno.EACCES),
        (lambda r: os.stat(r / "closed" / ("n" * 256)), errno.EACCES),
        (lambda r: os.mkdir(r / "closed/inside"), errno.EACCES),
        (lambda r: os.mkdir(r / "full"), errno.EEXIST),
        (lambda r: os.mkdir(r / "new"), errno.EACCES),
        (lambda r: os.unlink(r / "missing"), errno.ENOENT),
        (lambda r: os.unlink(r / "empty"), errno.EACCES),
        (lambda r: os.rmdir(r / "full"), errno.EACCES),
        (lambda r: os.rmdir(r / "file"), errno.EACCES),
        (lambda r: os.rename(r / "missing", r / "new"), errno.ENOENT),
        (lambda r: os.rename(r / "empty", r / "full"), errno.EACCES),
        (lambda r: os.rename(r / "file", r / "empty"), errno.EACCES),
        (lambda r: os.rename(r / "full", r / "full/new"), errno.EINVAL),
        (lambda r: os.link(r / "file", r / "full"), errno.EEXIST),
        (lambda r: os.open(r / "empty", os.O_WRONLY), errno.EISDIR),
        (lambda r: os.open(r / "file", os.O_WRONLY | os.O_TRUNC), errno.EACCES),
        (lambda r: os.open(r / "file", os.O_CREAT | os.O_EXCL), errno.EEXIST),
    ],
)
def test_for_another_user_the_errors_come_in_this_order(root: Path, call: Callable[[Path], object], code: int) -> None:
    """A directory that may not be searched hides what is in it; a name that is taken, or missing, comes before write
    permission on its directory, and that before what the inode is.
    """
    scene(root)
    (root / "closed").mkdir(mode=0o700)
    write(root / "closed/inside", b"")
    before = snapshot(root)
    with fails(code):
        as_user(lambda: call(root))
    assert snapshot(root) == before


def test_a_program_that_runs_is_not_written_to_and_one_written_to_does_not_run(root: Path) -> None:
    """ETXTBSY, both ways."""
    program = write(root / "program", Path("/bin/sleep").read_bytes())
    program.chmod(0o755)
    running = subprocess.Popen([program, "60"])
    try:
        with fails(errno.ETXTBSY):
            os.open(program, os.O_WRONLY)
        with fails(errno.ETXTBSY):
            os.truncate(program, 0)
    finally:
        running.kill()
        running.wait()
    with opened(program, os.O_WRONLY), fails(errno.ETXTBSY):
        subprocess.run([program, "0"], check=True)
    subprocess.run([program, "0"], check=True)


def test_growing_beyond_the_limit_of_the_process_is_efbig(root: Path) -> None:
    """RLIMIT_FSIZE, for write and truncate; what fits is written."""
    path = write(root / "file", b"content")

    def grow() -> int:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10, 10))
        with fails(errno.EFBIG):
            os.truncate(path, 11)
        with opened(path, os.O_WRONLY | os.O_APPEND) as fd:
            written = os.write(fd, b"12345")
            with fails(errno.EFBIG):
                os.write(fd, b"6")
        return written

    assert in_child(grow) == 3
    assert path.read_bytes() == b"content123"


def test_no_file_is_longer_than_an_offset_can_tell(root: Path) -> None:
    """A truncation or a write beyond what the filesystem takes is EFBIG or EINVAL, and leaves the file."""
    path = write(root / "file", b"content")
    with opened(path, os.O_WRONLY) as fd:
        with fails(errno.EFBIG, errno.EINVAL):
            os.pwrite(fd, b"xx", 2**63 - 1)
        with fails(errno.EINVAL, errno.EFBIG):
            os.truncate(path, -1)
    assert path.read_bytes() == b"content"


def test_reading_a_directory_is_eisdir(root: Path) -> None:
    """read(2) is for files."""
    with opened(root, os.O_RDONLY) as fd, fails(errno.EISDIR):
        os.read(fd, 1)


def test_seeking_before_the_start_is_einval(root: Path) -> None:
    """lseek(2) to a negative offset, and pread at one."""
    with opened(write(root / "file", b"x"), os.O_RDONLY) as fd:
        with fails(errno.EINVAL):
            os.lseek(fd, -1, os.SEEK_SET)
        with fails(errno.EINVAL):
            os.pread(fd, 1, -1)


def test_names_of_255_bytes_are_names(root: Path) -> None:
    """The longest name works for files, directories, links and rename."""
    longest = [letter * LONGEST_NAME_BYTES for letter in "abcde"]
    write(root / longest[0], b"x")
    (root / longest[1]).mkdir()
    (root / longest[2]).symlink_to(longest[0])
    os.link(root / longest[0], root / longest[3])
    (root / longest[0]).rename(root / longest[1] / longest[4])
    assert sorted(os.listdir(root)) == longest[1:4]
    assert os.listdir(root / longest[1]) == [longest[4]]


def test_names_may_hold_any_byte(root: Path) -> None:
    """All but NUL and the slash: control characters, newlines, bytes that are not UTF-8, leading dots and dashes."""
    names = {bytes([byte]) for byte in range(1, 256)} - {b"/", b"."}
    names |= {b"..a", b"...", b"-rf", b" lead and trail ", b"new\nline", b"\xff\xfe\x80", "grüße-日本".encode()}
    top = os.fsencode(root)
    for name in names:
        with open(top + b"/" + name, "wb") as file:
            file.write(name)
    assert set(os.listdir(top)) == names
    for name in names:
        with open(top + b"/" + name, "rb") as file:
            assert file.read() == name
        os.unlink(top + b"/" + name)


def test_names_differ_by_case_and_by_composition(root: Path) -> None:
    """A name is its bytes: no folding, no normalisation."""
    for name in ("a", "A", "\u00e9", "e\u0301"):
        write(root / name, name.encode())
    assert len(os.listdir(root)) == 4
    assert (root / "\u00e9").read_bytes() == "\u00e9".encode()
