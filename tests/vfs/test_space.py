"""Space: what statfs says can be written, ENOSPC comes from write, and nothing that was granted is lost or counted twice."""

from __future__ import annotations

import errno
import os
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import Phase, given, settings
from hypothesis import strategies as st

from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.fsck import compare
from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER, Cluster, Node, running
from tests.vfs.files import FILE, write_closed

SHARE = 0.02
"""By this much of what statfs called free may what can be written differ from it."""
NODE_BYTES = 251 * MIB
"""No multiple of a chunk's size: a node's last bytes take a chunk that cannot become full."""
CAPACITY_BYTES = 2 * NODE_BYTES
_PERIOD = 999_983
_PATTERN = random.Random(1).randbytes(_PERIOD) * 3


def content(number: int, start: int, length: int) -> memoryview:
    """Bytes [start, start + length) of the writer's file, at most MIB of them; every writer's are others."""
    at = (start + 7919 * number) % _PERIOD
    return memoryview(_PATTERN)[at : at + length]


class Writer:
    """Fills one file until there is no space."""

    def __init__(self, filesystem: Filesystem, number: int) -> None:
        self.filesystem, self.number = filesystem, number
        self.name = b"file%d" % number
        self.ino = self.fh = self.accepted = 0

    async def fill(self) -> None:
        """Write pieces of odd sizes until one is ENOSPC; then fsync and close, which succeed."""
        dice = random.Random(self.number)
        self.ino = (await self.filesystem.make(USER, ROOT_INO, self.name, FILE)).ino
        self.fh = await self.filesystem.open(self.ino, os.O_RDWR)
        with pytest.raises(FilesystemError) as raised:
            while True:
                piece = content(self.number, self.accepted, dice.choice((1, 4097, 70_001, 524_287, MIB)))
                self.accepted += await self.filesystem.data.write(self.fh, self.accepted, bytes(piece))
        assert raised.value.errno == errno.ENOSPC
        await self.filesystem.data.fsync(self.fh)
        await self.filesystem.data.flush(self.fh)
        await self.filesystem.release(self.fh)

    async def check(self, reader: Filesystem) -> None:
        """The file is what was accepted, byte for byte."""
        attributes = await reader.lookup(ROOT_INO, self.name)
        assert attributes.size == self.accepted
        fh = await reader.open(attributes.ino, os.O_RDONLY)
        for start in range(0, self.accepted, MIB):
            length = min(MIB, self.accepted - start)
            assert await reader.data.read(fh, start, MIB) == content(self.number, start, length), (self.name, start)
        await reader.release(fh)


async def fill(writers: list[Writer]) -> int:
    """Let them all write until there is no space; how many bytes were accepted."""
    async with trio.open_nursery() as nursery:
        for writer in writers:
            nursery.start_soon(writer.fill)
    return sum(writer.accepted for writer in writers)


async def free_bytes(filesystem: Filesystem) -> int:
    return (await filesystem.space()).free_bytes


async def reclaimed(cluster: Cluster) -> None:
    """Wait until no client holds what it does not use."""
    with trio.fail_after(5):
        while any(node.service.granted_bytes for node in cluster.nodes):
            await trio.sleep(0.02)


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    async with running(tmp_path, capacity_bytes=NODE_BYTES) as cluster:
        yield cluster


@pytest.fixture
async def mounts(cluster: Cluster) -> AsyncIterator[list[Filesystem]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(cluster.mounted(f"/mnt{number}")) for number in (1, 2)]


# -- filling ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spread", [1, 2])
async def test_four_writers_fill_what_statfs_called_free_and_keep_what_was_accepted(
    cluster: Cluster, mounts: list[Filesystem], spread: int
) -> None:
    free = await free_bytes(mounts[0])
    writers = [Writer(mounts[number % spread], number) for number in range(4)]
    accepted = await fill(writers)
    assert accepted == pytest.approx(free, rel=SHARE)
    assert cluster.used_bytes == accepted
    await reclaimed(cluster)
    assert await free_bytes(mounts[0]) == await free_bytes(mounts[1]) == free - accepted
    for writer in writers:
        await writer.check(mounts[1 - writer.number % spread])


@pytest.mark.parametrize("quiet", [True, False])
async def test_what_an_idle_mount_was_granted_is_there_for_the_others(
    cluster: Cluster, mounts: list[Filesystem], quiet: bool
) -> None:
    for number in range(16):  # so that each node has some of them
        await write_closed(mounts[1], b"idle%d" % number, b"x")
    assert all(node.service.granted_bytes for node in cluster.nodes)
    if quiet:
        await reclaimed(cluster)
        assert await free_bytes(mounts[0]) == CAPACITY_BYTES - 16
    assert await fill([Writer(mounts[0], 1)]) == pytest.approx(CAPACITY_BYTES, rel=SHARE)


async def test_a_mount_that_dies_gives_back_what_it_was_granted(cluster: Cluster) -> None:
    async with cluster.mounted("/other") as mount:
        await write_closed(mount, b"file", b"x")
        assert sum(node.service.granted_bytes for node in cluster.nodes)
    with trio.fail_after(1):
        while sum(node.service.granted_bytes for node in cluster.nodes):
            await trio.sleep(0.01)


async def test_space_of_a_removed_file_can_be_written_again(cluster: Cluster, mounts: list[Filesystem]) -> None:
    writers = [Writer(mounts[0], number) for number in range(2)]
    await fill(writers)
    await mounts[0].unlink(ROOT_INO, writers[0].name)
    mounts[0].forget(writers[0].ino, 1)
    again = Writer(mounts[0], 2)
    assert await fill([again]) == pytest.approx(writers[0].accepted, abs=SHARE * CAPACITY_BYTES)
    await again.check(mounts[1])
    await writers[1].check(mounts[1])


async def test_a_write_that_fits_in_part_is_short(cluster: Cluster, mounts: list[Filesystem]) -> None:
    """And an overwrite needs no space."""
    writer = Writer(mounts[0], 1)
    await fill([writer])
    fh = await mounts[0].open(writer.ino, os.O_RDWR)
    start = writer.accepted - 10 * KIB
    assert await mounts[0].data.write(fh, start, bytes(content(1, start, 10 * KIB))) == 10 * KIB
    await mounts[0].change(writer.ino, size=start)
    assert await mounts[0].data.write(fh, start, bytes(content(1, start, MIB))) == 10 * KIB
    with pytest.raises(FilesystemError, match="no node has room"):
        await mounts[0].data.write(fh, start + 10 * KIB, b"x")
    await mounts[0].data.flush(fh)
    await mounts[0].release(fh)
    await writer.check(mounts[1])


# -- nothing leaks ---------------------------------------------------------------------------------------------------


class Files:
    """Two mounts that write, cut and remove the same files, and what their chunks must take by then."""

    def __init__(self, cluster: Cluster, mounts: list[Filesystem]) -> None:
        self.cluster, self.mounts = cluster, mounts
        self.lengths: dict[str, dict[int, int]] = {}
        """Name -> chunk index -> where the last byte that was written in it ends."""
        self.inos: dict[str, int] = {}

    async def write(self, mount: Filesystem, name: str, offset: int, length: int) -> None:
        if name not in self.inos:
            self.inos[name] = (await mount.make(USER, ROOT_INO, name.encode(), FILE)).ino
        fh = await mount.open(self.inos[name], os.O_RDWR)
        assert await mount.data.write(fh, offset, bytes(length)) == length
        await mount.data.flush(fh)
        await mount.release(fh)
        lengths = self.lengths.setdefault(name, {})
        for index in range(offset // CHUNK_SIZE_BYTES, (offset + length - 1) // CHUNK_SIZE_BYTES + 1):
            end = min(offset + length - index * CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES)
            lengths[index] = max(end, lengths.get(index, 0))

    async def truncate(self, mount: Filesystem, name: str, size: int, _: int) -> None:
        if name in self.inos:
            await mount.change(self.inos[name], size=size)
            cut = {i: min(end, size - i * CHUNK_SIZE_BYTES) for i, end in self.lengths[name].items()}
            self.lengths[name] = {index: end for index, end in cut.items() if end > 0}

    async def unlink(self, mount: Filesystem, name: str, *_: int) -> None:
        if name in self.inos:
            await mount.unlink(ROOT_INO, name.encode())
            del self.inos[name], self.lengths[name]

    def agrees(self, node: Node) -> bool:
        links = [mount._chunks._links.get(node.name) for mount in self.mounts]
        return node.service.granted_bytes == sum(link.grants.held_bytes for link in links if link and link.grants)

    async def check(self) -> None:
        """What the servers have in use and have granted is what the chunks take and the clients hold."""
        wanted = sum(end for lengths in self.lengths.values() for end in lengths.values())
        with trio.fail_after(3):
            while self.cluster.used_bytes != wanted or not all(map(self.agrees, self.cluster.nodes)):
                await trio.sleep(0.01)
        for mount in self.mounts:
            await mount.fsync_names()
        assert compare.faults(self.cluster.look()) == []


steps = st.tuples(
    st.sampled_from(["write", "write", "truncate", "unlink"]),
    st.integers(0, 1),
    st.sampled_from("ab"),
    st.integers(0, 3 * CHUNK_SIZE_BYTES),
    st.sampled_from([1, 5000, MIB]),
)


@settings(max_examples=25, deadline=None, phases=[Phase.reuse, Phase.generate])  # shrinking would wait for each that fails
@given(st.lists(steps, max_size=15))
def test_what_is_used_and_granted_is_what_chunks_take_and_clients_hold(
    actions: list[tuple[str, int, str, int, int]],
) -> None:
    async def act() -> None:
        with TemporaryDirectory() as directory:
            async with running(Path(directory), capacity_bytes=NODE_BYTES) as cluster, AsyncExitStack() as stack:
                mounts = [await stack.enter_async_context(cluster.mounted(f"/mnt{number}")) for number in (1, 2)]
                files = Files(cluster, mounts)
                for action, mount, name, offset, length in actions:
                    await getattr(files, action)(mounts[mount], name, offset, length)
                await files.check()

    trio.run(act)
