"""Hard links, symlinks, fifos, sockets and device nodes."""

from __future__ import annotations

import errno
import os
import socket
import stat
import threading
from pathlib import Path

from tests.suite.syscalls import fails, listing, opened, write


def test_hard_links_are_one_file(root: Path) -> None:
    """Names share inode, content, mode and nlink; the file goes with the last of them."""
    a = write(root / "a", b"content")
    (root / "d").mkdir()
    b = root / "d" / "b"
    os.link(a, b)
    assert a.stat().st_ino == b.stat().st_ino
    assert a.stat().st_nlink == b.stat().st_nlink == 2
    with opened(b, os.O_WRONLY | os.O_APPEND) as fd:
        os.write(fd, b", more")
    b.chmod(0o600)
    assert a.read_bytes() == b"content, more"
    assert stat.S_IMODE(a.stat().st_mode) == 0o600
    a.unlink()
    assert b.stat().st_nlink == 1
    assert b.read_bytes() == b"content, more"


def test_a_hard_link_to_a_symlink_links_the_symlink(root: Path) -> None:
    """link(2) does not follow."""
    (root / "s").symlink_to("nowhere")
    os.link(root / "s", root / "t", follow_symlinks=False)
    assert os.readlink(root / "t") == "nowhere"
    assert (root / "t").lstat().st_nlink == 2


def test_hard_links_are_refused_where_posix_refuses_them(root: Path) -> None:
    """EEXIST onto a name that is taken, EPERM for a directory."""
    a, b = write(root / "a", b""), write(root / "b", b"")
    with fails(errno.EEXIST):
        os.link(a, b)
    (root / "d").mkdir()
    with fails(errno.EPERM):
        os.link(root / "d", root / "e")


def test_symlinks_hold_any_target(root: Path) -> None:
    """Relative, absolute, dangling and long targets come back byte for byte; size is the target's length."""
    for number, target in enumerate([b"x", b"../up/and/down", b"/absolute", b"\xff\xfe not utf-8", b"n/" * 2047]):
        link = os.fsencode(root) + b"/link%d" % number
        os.symlink(target, link)
        assert os.readlink(link) == target
        status = os.lstat(link)
        assert stat.S_ISLNK(status.st_mode)
        assert status.st_size == len(target)


def test_symlinks_are_followed(root: Path) -> None:
    """To files, through directories, in chains; O_CREAT through a dangling link makes its target."""
    (root / "d").mkdir()
    write(root / "d/file", b"found")
    (root / "one").symlink_to("d")
    (root / "two").symlink_to("one/file")
    assert (root / "two").read_bytes() == b"found"
    (root / "dangling").symlink_to("made")
    write(root / "dangling", b"through the link")
    assert (root / "made").read_bytes() == b"through the link"


def test_a_symlink_replaced_leads_to_its_new_target(root: Path) -> None:
    """A renamed-over link is not remembered."""
    write(root / "old", b"old")
    write(root / "new", b"new")
    (root / "link").symlink_to("old")
    assert (root / "link").read_bytes() == b"old"
    (root / "next").symlink_to("new")
    (root / "next").rename(root / "link")
    assert (root / "link").read_bytes() == b"new"
    (root / "link").unlink()
    assert listing(root) == ["new", "old"]


def test_a_fifo_carries_bytes(root: Path) -> None:
    """mkfifo makes a pipe with a name."""
    fifo = root / "fifo"
    os.mkfifo(fifo, 0o640)
    assert stat.S_ISFIFO(fifo.stat().st_mode)
    assert stat.S_IMODE(fifo.stat().st_mode) == 0o640
    writer = threading.Thread(target=lambda: fifo.write_bytes(b"through the pipe"))
    writer.start()
    assert fifo.read_bytes() == b"through the pipe"
    writer.join()


def test_a_socket_can_be_bound_and_connected(root: Path) -> None:
    """A unix socket lives on the filesystem by name. The short path is for sun_path, which holds 108 bytes."""
    with opened(root, os.O_RDONLY | os.O_DIRECTORY) as directory:
        address = f"/proc/self/fd/{directory}/socket"
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind(address)
            assert stat.S_ISSOCK((root / "socket").stat().st_mode)
            server.listen()
            client.connect(address)
            accepted, _ = server.accept()
            with accepted:
                client.sendall(b"hello")
                assert accepted.recv(5) == b"hello"
    (root / "socket").unlink()


def test_device_nodes_keep_their_numbers(root: Path) -> None:
    """mknod stores type, major and minor, small and large."""
    for name, kind, device in (
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("block", stat.S_IFBLK, os.makedev(7, 0)),
        ("large", stat.S_IFCHR, os.makedev(300, 70_000)),
    ):
        os.mknod(root / name, kind | 0o600, device)
        status = (root / name).stat()
        assert stat.S_IFMT(status.st_mode) == kind
        assert (os.major(status.st_rdev), os.minor(status.st_rdev)) == (os.major(device), os.minor(device))


def test_mknod_makes_a_regular_file(root: Path) -> None:
    """S_IFREG gives an empty file with the mode asked for."""
    os.mknod(root / "file", stat.S_IFREG | 0o604)
    status = (root / "file").stat()
    assert stat.S_ISREG(status.st_mode)
    assert (stat.S_IMODE(status.st_mode), status.st_size, status.st_nlink) == (0o604, 0, 1)
    write(root / "file", b"x")
