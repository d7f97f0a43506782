"""Hard links, symlinks, fifos, sockets and device nodes."""

from __future__ import annotations

import os
import socket
import stat
import threading
from pathlib import Path

from tests.suite.syscalls import listing, opened, write


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
