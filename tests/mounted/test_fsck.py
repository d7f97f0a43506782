"""`gridfs fsck`, `gridfs scrub` and `gridfs meta` in a person's hands, on a real local cluster that is broken on purpose."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio

from gridfs.meta.thin import ThinClient
from gridfs.stream.standing import standing
from gridfs.types import Address, Endpoints, PlacementNode
from tests.mounted.local_filesystem import LocalFilesystem, own_filesystem, refused

CONTENT = b"content" * 1000
ODD = b"odd\n\xff name"


@pytest.fixture(scope="module")
def local() -> Iterator[LocalFilesystem]:
    """One worker, shared by the tests of this file; taken away by force in the end."""
    with own_filesystem() as filesystem:
        filesystem.do("up", "--workers", "1", "--memory", "128MiB")
        filesystem.mount()
        yield filesystem


def put_stray(local: LocalFilesystem, ino: int, index: int) -> PlacementNode:
    """Write a chunk that the inode table knows nothing of, as somebody who holds the secret; returns where."""
    handoff = json.loads(next((local.home / "mounts").glob("*.json")).read_text())
    secret = bytes.fromhex(handoff["secret"])

    async def write() -> PlacementNode:
        async with ThinClient.connected(Endpoints(Address(*handoff["inode_table"]), secret)) as client:
            (node,) = (await client.placement()).nodes
        async with standing(node.address, secret, {"role": "client"}) as connection:
            assert await connection.call("write", ino, index, 0, 0, payload=b"stray") == ()
        return node

    return trio.run(write)


def test_without_a_filesystem_nothing_can_be_checked(tmp_path: Path) -> None:
    nowhere = LocalFilesystem(tmp_path / "home", tmp_path / "mnt")
    for command in ("fsck", "scrub"):
        refused(nowhere.gridfs(command), "no filesystem is up here", status=2)
    refused(nowhere.gridfs("meta", "dump", "-"), "no filesystem is up here")
    refused(nowhere.gridfs("meta", "load", tmp_path / "none"), "none cannot be read: No such file or directory")


def test_a_mounted_filesystem_is_checked_and_mended(local: LocalFilesystem) -> None:
    (local.mountpoint / "file").write_bytes(CONTENT)
    assert local.do("fsck") == "clean: 2 inodes, 1 chunks, 1 chunk servers\n"
    node = put_stray(local, (local.mountpoint / "file").stat().st_ino, 7)
    found = local.gridfs("fsck")
    assert (found.returncode, found.stderr) == (1, "")
    first, last = found.stdout.splitlines()
    assert first == f"orphaned: chunk 7 of inode 2, /file: 5 bytes on {node.host}, and the table has it nowhere"
    assert last == "1 faults, 1 left: 2 inodes, 1 chunks, 1 chunk servers"
    mended = local.do("fsck", "--repair")
    assert mended.splitlines()[1:] == [
        f"dropped chunk 7 of inode 2 from {node.host}",
        "1 faults, 0 left: 2 inodes, 1 chunks, 1 chunk servers",
    ]
    told = json.loads(local.do("fsck", "--json"))
    assert (told["clean"], told["faults"], told["mounts"], told["chunk_servers"]) == (True, [], 1, [node.server])
    assert (local.mountpoint / "file").read_bytes() == CONTENT


def test_a_mounted_filesystem_is_scrubbed(local: LocalFilesystem) -> None:
    (local.mountpoint / "file").write_bytes(CONTENT)
    assert local.do("scrub", "--rate", "1MiB") == "clean: 1 copies of chunks verified, 6.8 KiB, on 1 chunk servers\n"
    told = json.loads(local.do("scrub", "--json"))
    assert (told["clean"], told["verified"]) == (True, {"copies": 1, "bytes": len(CONTENT), "open_copies": 0})
    os.setxattr(local.mountpoint / "file", "user.gridfs.replicas", b"2")
    wanting = local.gridfs("scrub")
    assert (wanting.returncode, wanting.stderr) == (1, "")
    assert wanting.stdout.splitlines()[:2] == [
        "under-replicated: chunk 0 of inode 2, /file: it has 1 of 2 copies",
        "left chunk 0 of inode 2 to the mounts: they make copies where there is room",
    ]
    os.removexattr(local.mountpoint / "file", "user.gridfs.replicas")


def test_a_dump_is_loaded_into_the_emptied_filesystem(local: LocalFilesystem, tmp_path: Path) -> None:
    top = os.fsencode(local.mountpoint) + b"/"
    os.mkdir(top + ODD)
    os.symlink(b"\xfe", top + ODD + b"/link")
    os.setxattr(local.mountpoint / "file", "user.note", b"\x00\xff")
    dump = tmp_path / "table.jsonl"
    assert local.do("meta", "dump", dump) == ""
    assert stat.S_IMODE(dump.stat().st_mode) == 0o600
    assert [json.loads(line)["inodes"] for line in local.do("meta", "dump", "-").splitlines()[:1]] == [4]
    refused(local.gridfs("meta", "load", dump), "unmount it before you load a table")
    local.do("umount", local.mountpoint)
    refused(local.gridfs("meta", "load", dump), "has 3 inodes: a table is loaded into an empty one only")
    local.mount()
    os.unlink(top + ODD + b"/link")
    os.rmdir(top + ODD)
    os.unlink(top + b"file")
    local.do("umount", local.mountpoint)
    dump.with_suffix(".cut").write_bytes(dump.read_bytes()[:-70])
    refused(local.gridfs("meta", "load", dump.with_suffix(".cut")), "nothing was loaded")
    assert local.do("meta", "load", dump) == "loaded 4 inodes; gridfs fsck tells which files lack bytes\n"
    found = local.gridfs("fsck")
    assert found.returncode == 1
    assert found.stdout.startswith("missing: chunk 0 of inode 2, /file: the chunk server on worker1 does not have it")
    local.mount()
    assert sorted(os.listdir(top)) == [b"file", ODD]
    assert os.readlink(top + ODD + b"/link") == b"\xfe"
    assert os.getxattr(local.mountpoint / "file", "user.note") == b"\x00\xff"
    assert os.stat(local.mountpoint / "file").st_size == len(CONTENT)
    os.unlink(local.mountpoint / "file")
    assert local.do("fsck").startswith("clean: ")


def test_files_whose_bytes_died_with_a_worker_are_named_and_stay(local: LocalFilesystem) -> None:
    (local.mountpoint / "file").write_bytes(CONTENT)
    local.replace_actor("worker1", "ChunkServer")
    for arguments in (("fsck",), ("fsck", "--repair")):
        found = local.gridfs(*arguments)
        assert found.returncode == 1
        assert found.stdout.startswith("lost: chunk 0 of inode ")
        assert ", /file: the chunk server on worker1 is lost with it (remove the file, or copy it in again)" in found.stdout
    told = json.loads(local.gridfs("fsck", "--json").stdout)
    assert [(fault["kind"], fault["paths"], fault["mended"]) for fault in told["faults"]] == [("lost", ["/file"], False)]
    (local.mountpoint / "file").unlink()
    assert local.do("fsck").startswith("clean: ")
