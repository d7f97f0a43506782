"""What is there after the mount daemon is killed, and what a mount tells of itself."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import random
import signal
import subprocess
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from tests.suite.testbed import Testbed, run

MIB = 1 << 20
WAIT_S = 30.0


def until(condition: Callable[[], bool]) -> None:
    """Wait for a condition. Raises AssertionError when it does not come true."""
    deadline_s = time.monotonic() + WAIT_S
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.1)


def daemon_pid(bed: Testbed) -> int:
    """The process that serves the testbed's mount."""
    home = Path(json.loads(Path("/run/gridfs-testbed.json").read_text())["home"])
    (pid_file,) = (home / "mounts").glob("*.pid")
    pid = int(pid_file.read_text())
    assert str(bed.mountpoint.name).encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
    return pid


def remount(bed: Testbed) -> None:
    """Take the dead mount away and mount again, as a person does."""
    run("umount", "-l", bed.mountpoint)
    bed.gridfs("mount", bed.mountpoint)


def test_what_was_closed_or_fsynced_survives_kill_9_of_the_mount(bed: Testbed, root: Path) -> None:
    """Byte for byte, while other writes were under way; and the mount works as before."""
    dice = random.Random(21)
    kept = {f"closed{number}": dice.randbytes(dice.choice((1, 5000, 3 * MIB, 20 * MIB))) for number in range(12)}
    for name, content in kept.items():
        (root / name).write_bytes(content)
    (root / "new").write_bytes(kept["closed1"])
    (root / "new").rename(root / "closed0")
    kept["closed0"] = kept["closed1"]
    os.truncate(root / "closed2", 1)
    kept["closed2"] = kept["closed2"][:1]
    directory = os.open(root, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    appended = os.open(root / "appended", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(appended, b"fsynced")
    os.fsync(appended)
    with subprocess.Popen(["dd", "if=/dev/zero", f"of={root}/unfinished", "bs=1M"], stderr=subprocess.DEVNULL) as writer:
        until(lambda: (root / "unfinished").exists() and (root / "unfinished").stat().st_size > 10 * MIB)
        (root / "last").write_bytes(b"closed just before")
        os.kill(daemon_pid(bed), signal.SIGKILL)
        writer.wait(WAIT_S)
    with pytest.raises(OSError, match="not connected"):
        os.listdir(root)
    with suppress(OSError):  # close(2) of a file on a dead mount reports that, and closes it all the same
        os.close(appended)
    remount(bed)
    assert {*kept, "last", "appended"} <= set(os.listdir(root))
    for name, content in kept.items():
        assert hashlib.sha256((root / name).read_bytes()).digest() == hashlib.sha256(content).digest(), name
    assert (root / "last").read_bytes() == b"closed just before"
    assert (root / "appended").read_bytes() == b"fsynced"
    (root / "after").write_bytes(b"it works")
    assert (root / "after").read_bytes() == b"it works"


def test_a_clean_unmount_keeps_everything(bed: Testbed, root: Path) -> None:
    (root / "file").write_bytes(bytes(5 * MIB) + b"end")
    os.setxattr(root / "file", "user.colour", b"blue")
    os.utime(root / "file", ns=(10**18 + 1, 10**18 + 2))
    (root / "link").symlink_to("file")
    os.link(root / "file", root / "hard")
    before = os.lstat(root / "file")
    bed.gridfs("umount", bed.mountpoint)
    bed.gridfs("mount", bed.mountpoint)
    after = os.lstat(root / "hard")
    assert (after.st_mtime_ns, after.st_size, after.st_nlink, after.st_mode) == (10**18 + 2, 5 * MIB + 3, 2, before.st_mode)
    assert os.getxattr(root / "file", "user.colour") == b"blue"
    assert (root / "link").read_bytes() == bytes(5 * MIB) + b"end"


def test_the_layout_names_the_workers_that_hold_the_chunks(bed: Testbed, root: Path) -> None:
    (root / "file").write_bytes(bytes(100 * MIB))
    layout = json.loads(run("getfattr", "--only-values", "-n", "user.gridfs.layout", root / "file").stdout)
    assert layout["chunk_size"] == 8 * MIB
    assert layout["chunks"] == 13 == sum(layout["nodes"].values())
    assert set(layout["nodes"]) <= {"gpu1", "gpu2"}
    assert os.listxattr(root / "file") == []
    for name in ("user.gridfs.layout", "user.offload"):
        with pytest.raises(OSError) as caught:
            os.setxattr(root / "file", name, b"{}")
        assert caught.value.errno in (errno.EPERM, errno.EOPNOTSUPP)


def test_the_master_holds_no_chunk(bed: Testbed, root: Path) -> None:
    (root / "file").write_bytes(bytes(100 * MIB))
    nodes = {node["host"]: node for node in bed.status()["nodes"]}
    assert nodes["gpu-master"]["chunks"] == 0
    until(lambda: sum(node["chunks"] for node in bed.status()["nodes"]) >= 13)


def test_full_workers_are_enospc_from_write_and_unlink_gives_space_back(bed: Testbed, root: Path) -> None:
    block, digest, written = random.Random(22).randbytes(8 * MIB), hashlib.sha256(), 0
    descriptor = os.open(root / "big", os.O_WRONLY | os.O_CREAT)
    with pytest.raises(OSError) as caught:
        while True:
            count = os.write(descriptor, block)
            digest.update(block[:count])
            written += count
    os.close(descriptor)
    assert caught.value.errno == errno.ENOSPC
    status = os.statvfs(root)
    assert status.f_bavail < 0.05 * status.f_blocks
    assert run("sha256sum", root / "big", timeout_s=180).stdout.split()[0] == digest.hexdigest()
    assert (root / "big").stat().st_size == written
    (root / "big").unlink()
    until(lambda: os.statvfs(root).f_bavail > 0.9 * status.f_blocks)
    (root / "again").write_bytes(block)
    assert (root / "again").read_bytes() == block
