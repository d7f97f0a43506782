"""Bytes of files: what is read is what was written, whatever lies between."""

import errno
import os
import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER, Cluster, running

REGULAR = 0o100644


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path) as cluster:
        yield cluster


async def create(filesystem: Filesystem, name: bytes = b"file", flags: int = os.O_RDWR) -> tuple[int, int]:
    ino = (await filesystem.make(USER, 1, name, REGULAR)).ino
    return ino, await filesystem.open(ino, flags)


async def read_all(filesystem: Filesystem, fh: int, size: int, step: int = 128 * 1024) -> bytes:
    return b"".join([bytes(await filesystem.read(fh, at, step)) for at in range(0, size, step)])


async def test_bytes_written_are_read_back_across_chunks(filesystem: Filesystem) -> None:
    _, fh = await create(filesystem)
    content = random.Random(1).randbytes(2 * CHUNK_SIZE_BYTES + 12345)
    for at in range(0, len(content), MIB):
        assert await filesystem.data.write(fh, at, content[at : at + MIB]) == len(content[at : at + MIB])
    assert await read_all(filesystem, fh, len(content)) == content
    await filesystem.data.fsync(fh)
    assert await read_all(filesystem, fh, len(content), MIB) == content


async def test_random_overwrites_match_a_bytearray(cluster: Cluster, filesystem: Filesystem) -> None:
    _, fh = await create(filesystem)
    dice, model = random.Random(2), bytearray()
    for step in range(400):
        at, size = dice.randrange(3 * CHUNK_SIZE_BYTES), dice.choice((1, 100, 4096, 70_000, 300_000))
        if dice.random() < 0.6:
            data = dice.randbytes(size)
            assert await filesystem.data.write(fh, at, data) == size
            model.extend(bytes(max(0, at + size - len(model))))
            model[at : at + size] = data
        else:
            assert bytes(await filesystem.read(fh, at, size)) == model[at : at + size]
        if step % 100 == 50:
            for node in cluster.nodes:
                for row in list(node.service.chunks.inventory()):
                    await node.service.chunks.seal(row[:2])  # type: ignore[arg-type]
    await filesystem.data.fsync(fh)
    assert await read_all(filesystem, fh, len(model)) == model
    assert cluster.meta.engine.table.inode(2).size == len(model)


async def test_holes_read_as_zeros_and_take_no_space(cluster: Cluster, filesystem: Filesystem) -> None:
    ino, fh = await create(filesystem)
    await filesystem.data.write(fh, 1 << 40, b"end")
    assert (await filesystem.attributes(ino)).size == (1 << 40) + 3
    assert bytes(await filesystem.read(fh, 5 * CHUNK_SIZE_BYTES - 10, 20)) == bytes(20)
    assert bytes(await filesystem.read(fh, (1 << 40) - 2, 100)) == b"\0\0end"
    await filesystem.data.flush(fh)
    assert cluster.used_bytes <= 3 + (1 << 40) % CHUNK_SIZE_BYTES


@pytest.mark.expected_log("bytes at 0 were lost: the connection's owner ended it")
async def test_fsynced_bytes_survive_a_crash_of_the_mount(cluster: Cluster) -> None:
    content = random.Random(4).randbytes(3 * MIB)
    async with cluster.mounted() as before:
        _, fh = await create(before, b"kept")
        await before.data.write(fh, 0, content)
        await before.data.fsync(fh)
        _, lost = await create(before, b"open")
        await before.data.write(lost, 0, content)
    async with cluster.mounted() as after:
        ino = (await after.lookup(1, b"kept")).ino
        fh = await after.open(ino, os.O_RDONLY)
        assert await read_all(after, fh, len(content)) == content


async def test_an_unlinked_file_is_readable_until_closed_and_then_its_space_is_back(
    cluster: Cluster, filesystem: Filesystem
) -> None:
    ino, fh = await create(filesystem)
    await filesystem.data.write(fh, 0, b"x" * MIB)
    await filesystem.data.flush(fh)
    await filesystem.unlink(1, b"file")
    assert bytes(await filesystem.read(fh, 0, 3)) == b"xxx"
    filesystem.forget(ino, 1)
    assert cluster.used_bytes == MIB
    await filesystem.release(fh)
    with trio.fail_after(5):
        while cluster.used_bytes:
            await trio.sleep(0.01)
    with pytest.raises(FilesystemError) as raised:
        (await filesystem.attributes(ino))
    assert raised.value.errno == errno.ENOENT


@pytest.mark.expected_log("bytes at 0 were lost: the connection's owner ended it")
async def test_write_says_enospc_and_keeps_what_it_took(tmp_path: Path) -> None:
    async with running(tmp_path, nodes=2, capacity_bytes=20 * MIB) as cluster, cluster.mounted() as filesystem:
        ino, fh = await create(filesystem)
        content = random.Random(5).randbytes(MIB)
        written = 0
        with pytest.raises(FilesystemError) as raised:
            while written < 100 * MIB:
                written += await filesystem.data.write(fh, written, content)
        assert raised.value.errno == errno.ENOSPC
        await filesystem.data.flush(fh)
        assert (await filesystem.attributes(ino)).size == written
        assert await read_all(filesystem, fh, written, MIB) == (content * 41)[:written]
        assert written >= 36 * MIB  # of 40: the last chunk fills one node, a piece of the other stays
        await filesystem.release(fh)
        await filesystem.unlink(1, b"file")
        filesystem.forget(ino, 1)
        _, again = await create(filesystem, b"again")
        assert await filesystem.data.write(again, 0, content) == MIB


async def test_a_write_to_a_lost_server_is_told_by_close_once(cluster: Cluster, filesystem: Filesystem) -> None:
    _, fh = await create(filesystem)
    await filesystem.data.write(fh, 0, b"x" * MIB)
    await filesystem.data.fsync(fh)
    for node in cluster.nodes:
        node.scope.cancel()
    await trio.sleep(0.05)
    with pytest.raises(FilesystemError) as raised:
        await filesystem.data.write(fh, 0, b"y" * MIB)
        await filesystem.data.flush(fh)
    assert raised.value.errno == errno.EIO
    await filesystem.data.flush(fh)


async def test_what_could_not_be_told_to_the_inode_table_is_not_forgotten(tmp_path: Path) -> None:
    """fsync fails for as long as it cannot be told, and no fenced mount takes itself to be clean."""
    async with running(tmp_path) as cluster, cluster.mounted() as filesystem:
        _, fh = await create(filesystem, b"file")
        await filesystem.data.write(fh, 0, b"content")
        await filesystem.data.flush(fh)
        await filesystem.data.write(fh, 0, b"CONTENT")
        filesystem._meta.failure = "as asked"
        for _ in range(2):
            with pytest.raises(OSError, match="as asked"):
                await filesystem.data.fsync(fh)
            assert not filesystem.is_clean()
        filesystem._meta.failure = None
        await filesystem.data.fsync(fh)
        assert filesystem.is_clean()
