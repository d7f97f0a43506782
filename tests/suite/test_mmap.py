"""Memory maps: private and shared, read and written."""

from __future__ import annotations

import faulthandler
import mmap
import os
import random
import shutil
import signal
import subprocess
from pathlib import Path

from tests.suite.syscalls import opened, write

MIB = 1 << 20


def test_a_map_shows_the_file(root: Path) -> None:
    """A read-only map has the file's bytes, across chunks."""
    content = random.Random(6).randbytes(17 * MIB)
    with opened(write(root / "file", content), os.O_RDONLY) as fd, mmap.mmap(fd, 0, prot=mmap.PROT_READ) as mapped:
        assert mapped[:] == content


def test_a_private_map_keeps_its_changes_to_itself(root: Path) -> None:
    """MAP_PRIVATE: writing to the map leaves the file alone."""
    path = write(root / "file", b"original" * 1000)
    with opened(path, os.O_RDONLY) as fd:
        mapped = mmap.mmap(fd, 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
        mapped[:8] = b"changed!"
        mapped.close()
    assert path.read_bytes() == b"original" * 1000


def test_a_shared_map_writes_the_file(root: Path) -> None:
    """MAP_SHARED: bytes put into the map are read from the file after msync, and after the map is gone."""
    content = bytearray(random.Random(7).randbytes(10 * MIB))
    path = write(root / "file", bytes(content))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        for offset in (0, 4090, 8 * MIB - 4, 10 * MIB - 7):
            mapped[offset : offset + 7] = content[offset : offset + 7] = b"shared!"
        mapped.flush()
        with opened(path, os.O_RDONLY) as other:
            assert os.pread(other, 7, 4090) == b"shared!"
        mapped[100:104] = content[100:104] = b"last"
    assert path.read_bytes() == content


def test_a_shared_map_sees_what_write_writes(root: Path) -> None:
    """write(2) and a shared map of the same file agree."""
    path = write(root / "file", bytes(8192))
    with opened(path, os.O_RDWR) as fd, mmap.mmap(fd, 0) as mapped:
        os.pwrite(fd, b"written", 4000)
        assert mapped[4000:4007] == b"written"


def test_a_map_in_a_hole_can_be_filled(root: Path) -> None:
    """A shared map over a file that is only a hole makes its bytes where they are written."""
    path = root / "file"
    with opened(path, os.O_CREAT | os.O_RDWR) as fd:
        os.ftruncate(fd, 9 * MIB)
        with mmap.mmap(fd, 0) as mapped:
            assert mapped[5 * MIB : 5 * MIB + 8] == bytes(8)
            mapped[-4:] = b"tail"
    content = path.read_bytes()
    assert content[-4:] == b"tail"
    assert not any(content[:-4])


def test_touching_a_map_beyond_the_end_is_a_bus_error(root: Path) -> None:
    """After the file is cut, a page of the map that lies beyond the end kills with SIGBUS, as POSIX has it."""
    path = write(root / "file", bytes(8192))
    child = os.fork()
    if child == 0:
        faulthandler.disable()
        with opened(path, os.O_RDWR) as fd:
            mapped = mmap.mmap(fd, 8192)
            os.ftruncate(fd, 0)
            os._exit(mapped[4096])
    _, status = os.waitpid(child, 0)
    assert os.WIFSIGNALED(status)
    assert os.WTERMSIG(status) == signal.SIGBUS


def test_a_program_on_the_filesystem_runs(root: Path) -> None:
    """execve(2) maps the file it runs."""
    program = root / "program"
    shutil.copy("/bin/echo", program)
    assert subprocess.run([program, "hello"], capture_output=True, text=True, check=True).stdout == "hello\n"
