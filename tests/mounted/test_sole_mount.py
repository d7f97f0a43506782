"""The only mount of a filesystem: what clients without a mount change under it, and what is left when everything is killed."""

from __future__ import annotations

import json
import os
import signal
import stat
import time
from collections.abc import Iterator
from typing import Any

import pytest
import trio

from gridfs.meta.table import Op
from gridfs.meta.thin import ThinClient
from gridfs.types import Address, Endpoints
from tests.mounted.local_filesystem import LocalFilesystem, forget_cached, own_filesystem, until


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFilesystem]:
    """One worker, shared by the tests of this file; taken away by force in the end."""
    with own_filesystem() as filesystem:
        filesystem.do("up", "--workers", "1", "--memory", "256MiB")
        filesystem.mount()
        yield filesystem


def execute(local: LocalFilesystem, *ops: Op) -> list[Any]:
    """Have ops executed, as a client without a mount."""
    handoff = json.loads(next((local.home / "mounts").glob("*.json")).read_text())
    endpoints = Endpoints(Address(*handoff["inode_table"]), bytes.fromhex(handoff["secret"]))

    async def ask() -> list[Any]:
        async with ThinClient.connected(endpoints) as client:
            return [await client.execute(op) for op in ops]

    return trio.run(ask)


def test_the_kernel_forgets_what_a_client_without_a_mount_changes(local: LocalFilesystem) -> None:
    """Attributes, names, missing names and directories, all of which it had been told for minutes."""
    top = local.mountpoint
    (top / "directory").mkdir()
    for name in ("changed", "removed", "moved"):
        (top / "directory" / name).write_text(name)
        (top / "directory" / name).stat()
    assert not (top / "directory" / "new").exists()
    directory, changed = (top / "directory").stat().st_ino, (top / "directory" / "changed").stat().st_ino
    now_ns = time.time_ns()
    execute(
        local,
        ("change", now_ns, changed, 0o600),
        ("unlink", now_ns, directory, b"removed"),
        ("make", now_ns, 0, directory, b"new", stat.S_IFDIR | 0o750, 12, 34),
        ("rename", now_ns, directory, b"moved", directory, b"renamed"),
    )
    assert (top / "directory" / "changed").stat().st_mode & 0o777 == 0o600
    assert sorted(os.listdir(top / "directory")) == ["changed", "new", "renamed"]
    assert not (top / "directory" / "removed").exists()
    assert not (top / "directory" / "moved").exists()
    assert (top / "directory" / "new").stat().st_uid == 12
    execute(local, ("rename", now_ns, 1, b"directory", 1, b"elsewhere"))
    assert not (top / "directory").exists()
    assert (top / "elsewhere" / "renamed").read_text() == "moved"


def test_a_mount_works_on_while_a_client_changes_the_same_directory(local: LocalFilesystem) -> None:
    """Neither waits for the other for long: the kernel holds the directory's lock while the mount waits to be answered."""
    top = local.mountpoint / "both"
    top.mkdir()
    ino = top.stat().st_ino
    for number in range(30):
        execute(local, ("make", time.time_ns(), 0, ino, b"client%d" % number, stat.S_IFREG | 0o644, 0, 0))
        (top / f"mount{number}").write_text("x")
        assert (top / f"client{number}").exists()
    assert len(os.listdir(top)) == 60


def test_what_was_fsynced_is_there_when_mount_and_inode_table_are_killed(local: LocalFilesystem) -> None:
    top, content = local.mountpoint, os.urandom(3_000_000)
    with (top / "fsynced").open("wb") as file:
        file.write(content)
        os.fsync(file.fileno())
    (top / "before").write_bytes(content)
    (top / "before").rename(top / "after")
    directory = os.open(top, os.O_RDONLY)
    os.fsync(directory)
    os.close(directory)
    (top / "perhaps").write_bytes(content)
    table, daemon = local.actor("master", "InodeTable"), int(next((local.home / "mounts").glob("*.pid")).read_text())
    assert table is not None
    os.kill(daemon, signal.SIGKILL)
    os.kill(table, signal.SIGKILL)
    until(lambda: local.actor("master", "InodeTable") not in (None, table))
    local.do("umount", local.mountpoint)
    local.do("mount", local.mountpoint)
    forget_cached(top / "fsynced")
    assert (top / "fsynced").read_bytes() == content
    assert (top / "after").read_bytes() == content
    assert not (top / "before").exists()
    if (top / "perhaps").exists():
        assert (top / "perhaps").read_bytes() in (content, b"")
    local.do("fsck")
