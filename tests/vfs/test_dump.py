"""The inode table as text: what is dumped from one filesystem is what another one, or the same one, has after loading it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta.dump import dump, load
from gridfs.meta.engine import Engine
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.store import Store
from gridfs.meta.table import Table
from gridfs.vfs.filesystem import Filesystem
from tests.unit import tables
from tests.vfs.cluster import USER, Cluster, running

LIMIT_S = 30.0
FILE, DIRECTORY, SYMLINK, DEVICE, FIFO = (
    kind | 0o750 for kind in (stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR, stat.S_IFIFO)
)
ODD_NAMES = (
    b"plain",
    "grün ♞".encode(),
    b"\xff\xfe",
    b"new\nline",
    b'"quoted\\',
    b" ",
    b"\x01\x7f",
    b"x" * 255,
    b"\xed\xb3\xbf",
)


async def furnish(filesystem: Filesystem) -> None:
    """One of everything."""
    top = (await filesystem.make(USER, ROOT_INO, b"top", DIRECTORY)).ino
    for name in ODD_NAMES:
        await filesystem.make(USER, top, name, FILE)
    await filesystem.make(USER, top, b"link", SYMLINK, 0, b"to \xff nowhere")
    await filesystem.make(USER, top, b"device", DEVICE, os.makedev(1, 3))
    await filesystem.make(USER, top, b"fifo", FIFO)
    gone = (await filesystem.make(USER, top, b"gone", FILE)).ino
    await filesystem.unlink(top, b"gone")
    filesystem.forget(gone, 1)
    sparse = (await filesystem.make(USER, top, b"sparse", FILE)).ino
    fh = await filesystem.open(sparse, os.O_RDWR)
    await filesystem.data.write(fh, 3 * CHUNK_SIZE_BYTES + 7, b"far out")
    await filesystem.data.write(fh, 5, b"near")
    await filesystem.data.flush(fh)
    await filesystem.release(fh)
    await filesystem.link(sparse, ROOT_INO, b"hard link")
    await filesystem.change(sparse, mtime_ns=-5_000_000_001)
    await filesystem.set_xattr(sparse, b"user.bin\xff", bytes(range(256)))
    await filesystem.set_xattr(ROOT_INO, b"user.empty", b"")
    await filesystem.change(ROOT_INO, mode=0o1777)


async def dumped(cluster: Cluster) -> tuple[list[bytes], tables.Dump]:
    """The lines, and what the server's table holds."""
    async with cluster.client() as client:
        table = (await client.snapshot(lambda _: None)).table
    assert tables.dump(table) == tables.dump(cluster.meta.engine.table)
    return list(dump(table, 12345)), tables.dump(table)


async def load_into(cluster: Cluster, table: Table) -> None:
    async with cluster.client() as client:
        await client.load(table, lambda _: None)


async def test_a_dump_loads_as_what_it_was_with_its_files(tmp_path: Path) -> None:
    """Taken while it is mounted and loaded into the same cluster: a new store, and the chunks are where they were."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path / "one") as cluster:
            async with cluster.mounted() as filesystem:
                await furnish(filesystem)
                lines, before = await dumped(cluster)
                await filesystem.end()
            assert load(lines).check() == []
            assert tables.dump(load(lines)) == before
            cluster.meta.engine.table = Table()
            cluster.meta.engine.table.apply(("format", 1, 0, 0))
            await load_into(cluster, load(lines))
            assert tables.dump(cluster.meta.engine.table) == before
            assert tables.dump(Store(tmp_path / "one" / "inodes.sqlite").load()) == before
            assert list((await cluster.fsck()).lines())[-1].startswith("clean: ")
            async with cluster.mounted() as filesystem:
                found = await filesystem.lookup(ROOT_INO, b"hard link")
                fh = await filesystem.open(found.ino, os.O_RDONLY)
                assert bytes(await filesystem.read(fh, 3 * CHUNK_SIZE_BYTES, 14)) == b"\0" * 7 + b"far out"
                await filesystem.release(fh)
                made = await filesystem.make(USER, ROOT_INO, b"new", FILE)
                assert made.ino == before["next_ino"]
                await filesystem.end()


async def test_a_table_of_many_pages_is_loaded_into_another_filesystem_which_lacks_the_bytes(tmp_path: Path) -> None:
    steps = tables.Steps()
    for number in range(6000):
        steps.table.apply(("make", 1, steps.table.next_ino, ROOT_INO, b"%d" % number, FILE, 0, 0))
    steps.table.apply(("place", 7, 0, ("elsewhere",)))
    steps.table.apply(("extend", 5, 7, 9))
    expected = tables.dump(steps.table)
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            await load_into(cluster, steps.table)
            assert tables.dump(cluster.meta.engine.table) == expected
            assert tables.dump(Store(tmp_path / "inodes.sqlite").load()) == expected
            report = await cluster.fsck()
            assert [(fault.kind, fault.ino) for fault in report.faults] == [("lost", 7)]


async def test_a_filesystem_that_is_mounted_or_not_empty_loads_nothing(tmp_path: Path) -> None:
    steps = tables.Steps()
    steps.mkdir(b"loaded")
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                with pytest.raises(FilesystemError, match="unmount it before you load"):
                    await load_into(cluster, steps.table)
                await filesystem.make(USER, ROOT_INO, b"here", DIRECTORY)
                await filesystem.end()
            with pytest.raises(FilesystemError, match="it has 1 inodes: a table is loaded into an empty one only"):
                await load_into(cluster, steps.table)
            assert list(cluster.meta.engine.table.directory_entries(ROOT_INO)) == [b"here"]


async def test_numbers_of_inodes_that_are_gone_are_not_used_again(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            cluster.meta.engine.table.next_ino = 1000
            await load_into(cluster, tables.Steps().table)
            assert cluster.meta.engine.table.next_ino == 1000
            assert Store(tmp_path / "inodes.sqlite").load().next_ino == 1000


async def test_rows_that_are_no_sound_table_load_nothing(tmp_path: Path) -> None:
    """A client that checks nothing is refused by the server all the same, and so is one that leaves half way."""
    broken = tables.Steps()
    broken.inode(broken.mkdir(b"a")).nlink = 7
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            before = tables.dump(cluster.meta.engine.table)
            with pytest.raises(FilesystemError, match="it is no sound table: inode 2 has nlink 7"):
                await load_into(cluster, broken.table)
            async with cluster.client() as client:
                for page in (("names", [(99, b"a", 1)]), ("inodes", [b"\xc1"]), ("nothing", [])):
                    with pytest.raises(FilesystemError, match="a row cannot be loaded"):
                        await client._connection.call("load", page)
            assert tables.dump(cluster.meta.engine.table) == before
            assert tables.dump(Store(tmp_path / "inodes.sqlite").load()) == before


def test_a_save_that_fails_loads_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(tmp_path / "inodes.sqlite")
    engine = Engine(store, 0.0, lambda server, chunk: None)
    before, save, saves = tables.dump(engine.table), store.save, []

    def full(*arguments: object) -> None:
        saves.append(arguments)
        if len(saves) == 2:
            raise OSError("as asked")
        save(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(store, "save", full)
    steps = tables.Steps()
    steps.mkdir(b"loaded")
    with pytest.raises(OSError, match="as asked"):
        engine.load(steps.table)
    engine.save()
    assert tables.dump(engine.table) == tables.dump(store.load()) == before
    store.close()


async def test_a_dump_is_json_that_any_program_can_read(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster, cluster.mounted() as filesystem:
            await furnish(filesystem)
            lines, _ = await dumped(cluster)
            rows = [json.loads(line) for line in lines]
            assert rows[0]["format"] == "gridfs inode table"
            assert [len([row for row in rows if row.get("row") == kind]) for kind in ("inode", "name", "chunk")] == [
                rows[0]["inodes"],
                rows[0]["names"],
                rows[0]["chunks"],
            ]
            names = [row["name"] for row in rows if row.get("row") == "name"]
            assert "grün ♞" in names
            assert {"base64": "//4="} in names
            for line in lines:
                assert line.endswith(b"}\n")
                assert line.count(b"\n") == 1
