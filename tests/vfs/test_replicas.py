"""Copies of chunks on several nodes: written at once, read from whichever answers, and made anew when one is lost."""

from __future__ import annotations

import errno
import math
import os
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES, KIB, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.xattrs import REPLICAS
from gridfs.stream.endpoint import Answer, Peer
from gridfs.types import ChunkId
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER, Cluster, corrupt, running
from tests.vfs.files import FILE, read_all, write_closed

LIMIT_S = 20
NOTICED = "is not on|copies left of|does not answer|a new chunk goes elsewhere"
"""What the log says, in one way or another, of copies that are lost."""


@asynccontextmanager
async def mounted(tmp_path: Path, nodes: int = 3) -> AsyncIterator[tuple[Cluster, Filesystem]]:
    """A cluster, and a mount whose root directory asks for two copies."""
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path, nodes) as cluster, cluster.mounted() as filesystem:
            await filesystem.set_xattr(ROOT_INO, REPLICAS, b"2")
            yield cluster, filesystem
            await filesystem.fsync_names()


async def until(condition: Callable[[], object]) -> None:
    """Wait for it, as long as the test may last."""
    while not condition():
        await trio.sleep(0.01)


def holders(filesystem: Filesystem, ino: int, index: int = 0) -> tuple[str, ...]:
    """The servers that hold a chunk, as the table has it."""
    return filesystem._meta.table.directory.servers(ino, index)


def held(cluster: Cluster, name: str, ino: int, index: int = 0) -> bytes:
    """The bytes that a server has of a chunk."""
    view, sent = cluster.node(name).service.chunks.read(ChunkId(ino, index), 0, CHUNK_SIZE_BYTES)
    content = bytes(view)
    if sent is not None:
        sent()
    return content


def stall(cluster: Cluster, name: str, method: str) -> trio.Event:
    """From now on the server carries out no request of that kind before the event is set."""
    back, methods = trio.Event(), cluster.node(name).service.methods
    carry_out = methods[method]

    async def wait(peer: Peer, *arguments: object) -> Answer:
        await back.wait()
        return await carry_out(peer, *arguments)

    methods[method] = wait
    return back


# -- writing ---------------------------------------------------------------------------------------------------------


async def test_every_chunk_is_on_as_many_nodes_as_the_directory_asks_for(tmp_path: Path) -> None:
    content = random.Random(1).randbytes(2 * CHUNK_SIZE_BYTES + 100)
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", content)
        for index in range(3):
            servers = holders(filesystem, ino, index)
            assert len(set(servers)) == 2
            for server in servers:
                at = index * CHUNK_SIZE_BYTES
                assert held(cluster, server, ino, index) == content[at : at + CHUNK_SIZE_BYTES]
        assert filesystem.layout(ino)["replicas"] == 2


async def test_a_client_sends_each_byte_once(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, filesystem):
        received = {"mount": 0, "server": 0}
        for node in cluster.nodes:
            write = node.service.methods["write"]

            async def counted(peer: Peer, *arguments: object, write: Callable[..., object] = write) -> Answer:
                received[str(peer.identity["role"])] += peer.payload_bytes
                return await write(peer, *arguments)  # type: ignore[misc, no-any-return]

            node.service.methods["write"] = counted
        await write_closed(filesystem, b"file", bytes(3 * MIB))
        assert received == {"mount": 3 * MIB, "server": 3 * MIB}


async def test_overwrites_and_truncations_reach_every_copy(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", b"a" * 100 * KIB)
        fh = await filesystem.open(ino, os.O_RDWR)
        for offset in (0, 50 * KIB, 99 * KIB):
            await filesystem.data.write(fh, offset, b"bcd")
        await filesystem.data.fsync(fh)
        one, two = (held(cluster, server, ino) for server in holders(filesystem, ino))
        assert one == two
        assert len(one) == 100 * KIB
        await filesystem.change(ino, size=7)
        assert [held(cluster, server, ino) for server in holders(filesystem, ino)] == [b"bcdaaaa"] * 2
        await filesystem.release(fh)
        await filesystem.unlink(ROOT_INO, b"file")
        filesystem.forget(ino, 100)
        await until(lambda: cluster.used_bytes == 0)


async def test_small_writes_to_a_sealed_chunk_reach_every_copy_and_a_new_one(tmp_path: Path) -> None:
    dice, model = random.Random(8), bytearray(random.Random(9).randbytes(MIB))
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", bytes(model))
        chunk_id = ChunkId(ino, 0)
        for server in holders(filesystem, ino):
            assert await cluster.node(server).service.chunks.seal(chunk_id)
        fh = await filesystem.open(ino, os.O_RDWR)
        for _ in range(200):
            at, content = dice.randrange(MIB - 5000), dice.randbytes(dice.choice((1, 4 * KIB, 5000)))
            model[at : at + len(content)] = content
            await filesystem.data.write(fh, at, content)
        await filesystem.data.fsync(fh)
        await filesystem.release(fh)
        for server in holders(filesystem, ino):
            chunk = cluster.node(server).service.chunks.find(chunk_id)
            assert chunk is not None
            assert chunk.patch is not None
            assert held(cluster, server, ino) == model
        await filesystem.set_xattr(ino, REPLICAS, b"3")
        await until(lambda: len(holders(filesystem, ino)) == 3)
        assert [held(cluster, server, ino) == model for server in holders(filesystem, ino)] == [True] * 3


async def test_fsync_waits_for_every_copy(tmp_path: Path) -> None:
    async with mounted(tmp_path, nodes=2) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", b"old")
        fh = await filesystem.open(ino, os.O_RDWR)
        second = holders(filesystem, ino)[1]
        back = stall(cluster, second, "write")
        await filesystem.data.write(fh, 0, b"new")
        with trio.move_on_after(0.2) as scope:
            await filesystem.data.fsync(fh)
        assert scope.cancelled_caught
        back.set()
        await filesystem.data.fsync(fh)
        assert held(cluster, second, ino) == b"new"
        await filesystem.release(fh)


async def test_where_there_are_fewer_nodes_than_copies_wanted_the_rest_follows_when_one_comes(tmp_path: Path) -> None:
    content = random.Random(2).randbytes(3 * MIB)
    async with mounted(tmp_path, nodes=1) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", content)
        assert holders(filesystem, ino) == ("node1",)
        cluster.add_node("node2", 64 * MIB)
        await until(lambda: set(holders(filesystem, ino)) == {"node1", "node2"})
        assert held(cluster, "node2", ino) == content


async def test_a_node_without_room_for_the_second_copy_is_enospc(tmp_path: Path) -> None:
    async with mounted(tmp_path, nodes=1) as (cluster, filesystem):
        cluster.add_node("small", MIB)
        await until(lambda: len(filesystem._meta.placement.nodes) == 2)
        ino = (await filesystem.make(USER, ROOT_INO, b"file", FILE)).ino
        fh = await filesystem.open(ino, os.O_RDWR)
        assert await filesystem.data.write(fh, 0, bytes(2 * MIB)) == MIB
        with pytest.raises(FilesystemError) as raised:
            await filesystem.data.write(fh, MIB, b"x")
        await filesystem.data.fsync(fh)
        assert raised.value.errno == errno.ENOSPC
        assert all(node.service.granted_bytes >= 0 for node in cluster.nodes)
        await filesystem.release(fh)


# -- how many --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [b"", b"0", b"9", b"-1", b"two", b"1.5", b"2 "])
async def test_a_number_of_copies_that_is_none_is_einval(tmp_path: Path, value: bytes) -> None:
    async with mounted(tmp_path) as (_, filesystem):
        with pytest.raises(FilesystemError) as raised:
            await filesystem.set_xattr(ROOT_INO, REPLICAS, value)
        assert raised.value.errno == errno.EINVAL
        assert await filesystem.get_xattr(ROOT_INO, REPLICAS) == b"2"


async def test_the_default_of_the_mount_is_for_files_that_do_not_say(tmp_path: Path) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path) as cluster:
            async with cluster.mounted() as filesystem:
                once = await filesystem.space()
            async with cluster.mounted(replicas=2) as filesystem:
                twice = await filesystem.space()
                assert len(holders(filesystem, await write_closed(filesystem, b"file", b"x"))) == 2
                ino = (await filesystem.make(USER, ROOT_INO, b"single", FILE)).ino
                await filesystem.set_xattr(ino, REPLICAS, b"1")
                fh = await filesystem.open(ino, os.O_WRONLY)
                await filesystem.data.write(fh, 0, b"x")
                await filesystem.data.fsync(fh)
                await filesystem.release(fh)
                assert len(holders(filesystem, ino)) == 1
    assert (twice.capacity_bytes, twice.free_bytes) == (once.capacity_bytes // 2, once.free_bytes // 2)


async def test_a_file_that_asks_for_more_copies_gets_them_and_for_fewer_loses_them(tmp_path: Path) -> None:
    content = random.Random(3).randbytes(CHUNK_SIZE_BYTES + 5)
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", content)
        await filesystem.set_xattr(ino, REPLICAS, b"3")
        await until(lambda: [len(holders(filesystem, ino, index)) for index in (0, 1)] == [3, 3])
        assert cluster.used_bytes == 3 * len(content)
        await filesystem.set_xattr(ino, REPLICAS, b"1")
        await until(lambda: cluster.used_bytes == len(content))
        assert await read_all(filesystem, b"file") == content


@pytest.mark.expected_log("could not be healed: .* has no room for a copy")
async def test_a_copy_for_which_there_was_no_room_is_made_once_there_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gridfs.vfs.healer.RETRY_S", 0.2)
    async with mounted(tmp_path, nodes=1) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", bytes(2 * MIB))
        cluster.add_node("small", MIB)
        await until(lambda: filesystem.data.healer._again_s < math.inf)
        cluster.node("small").service.capacity_bytes = 16 * MIB
        await until(lambda: len(holders(filesystem, ino)) == 2)


# -- failure ---------------------------------------------------------------------------------------------------------


@pytest.mark.expected_log("cannot be read from")
async def test_a_reader_goes_on_to_the_next_copy_when_a_server_is_dead(tmp_path: Path) -> None:
    content = random.Random(4).randbytes(3 * MIB)
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", content)
        cluster.kill(holders(filesystem, ino)[0])
        began_s = trio.current_time()
        assert await read_all(filesystem, b"file") == content
        assert trio.current_time() - began_s < 1


async def test_a_reader_goes_on_to_the_next_copy_within_a_second_when_a_server_stalls(tmp_path: Path) -> None:
    content = random.Random(5).randbytes(3 * MIB)
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", content)
        back = stall(cluster, holders(filesystem, ino)[0], "read")
        for limit_s in (1.0, 0.4):  # the second reader does not ask it again
            began_s = trio.current_time()
            assert await read_all(filesystem, b"file") == content
            assert trio.current_time() - began_s < limit_s
        back.set()


@pytest.mark.expected_log("bad")
@pytest.mark.expected_log("cannot be read from")
async def test_a_reader_goes_on_to_the_next_copy_when_one_is_bad_and_the_bad_one_is_made_anew(tmp_path: Path) -> None:
    content = random.Random(6).randbytes(3 * MIB)
    async with mounted(tmp_path, nodes=2) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", content)
        first = holders(filesystem, ino)[0]
        chunks = cluster.node(first).service.chunks
        assert await chunks.seal(ChunkId(ino, 0))
        corrupt(chunks, ChunkId(ino, 0), 2 * MIB)
        assert await read_all(filesystem, b"file") == content
        await until(lambda: (chunk := chunks.find(ChunkId(ino, 0))) is not None and not chunk.bad)
        await until(lambda: set(holders(filesystem, ino)) == {"node1", "node2"})
        assert held(cluster, first, ino) == content


@pytest.mark.expected_log("bad")
@pytest.mark.expected_log(NOTICED)
async def test_a_writer_goes_on_when_the_first_copy_is_bad(tmp_path: Path) -> None:
    async with mounted(tmp_path, nodes=2) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", b"x" * MIB)
        chunks = cluster.node(holders(filesystem, ino)[0]).service.chunks
        assert await chunks.seal(ChunkId(ino, 0))
        corrupt(chunks, ChunkId(ino, 0), 5)
        fh = await filesystem.open(ino, os.O_RDWR)
        await filesystem.data.write(fh, 10, b"new")
        await filesystem.data.fsync(fh)
        await filesystem.release(fh)
        assert await read_all(filesystem, b"file") == b"x" * 10 + b"new" + b"x" * (MIB - 13)
        await until(lambda: len(holders(filesystem, ino)) == 2)


@pytest.mark.expected_log("bad")
async def test_the_last_copy_being_bad_is_eio_and_never_wrong_bytes(tmp_path: Path) -> None:
    async with mounted(tmp_path, nodes=1) as (cluster, filesystem):
        await filesystem.set_xattr(ROOT_INO, REPLICAS, b"1")
        content = random.Random(7).randbytes(CHUNK_SIZE_BYTES + MIB)
        ino = await write_closed(filesystem, b"file", content)
        chunks = cluster.node("node1").service.chunks
        assert await chunks.seal(ChunkId(ino, 0))
        corrupt(chunks, ChunkId(ino, 0), 5)
        fh = await filesystem.open(ino, os.O_RDONLY)
        with pytest.raises(FilesystemError) as raised:
            await filesystem.read(fh, 0, MIB)
        assert raised.value.errno == errno.EIO
        assert bytes(await filesystem.read(fh, CHUNK_SIZE_BYTES, MIB)) == content[CHUNK_SIZE_BYTES:]
        await filesystem.release(fh)


@pytest.mark.expected_log(NOTICED)
async def test_no_writer_hears_of_a_server_that_dies_and_its_copies_are_made_anew(tmp_path: Path) -> None:
    """The first server of each chunk, which passes the bytes on, as well as the second."""
    contents = {b"file%d" % number: random.Random(number).randbytes(3 * CHUNK_SIZE_BYTES + 7) for number in range(4)}
    async with mounted(tmp_path) as (cluster, filesystem):

        async def write(name: bytes, content: bytes) -> None:
            ino = (await filesystem.make(USER, ROOT_INO, name, FILE)).ino
            fh = await filesystem.open(ino, os.O_RDWR)
            for at in range(0, len(content), 128 * KIB):
                await filesystem.data.write(fh, at, content[at : at + 128 * KIB])
            await filesystem.data.fsync(fh)
            await filesystem.data.flush(fh)
            await filesystem.release(fh)

        async with trio.open_nursery() as nursery:
            for name, content in contents.items():
                nursery.start_soon(write, name, content)
            await until(lambda: cluster.used_bytes > 8 * MIB)
            cluster.kill("node1")
            await until(lambda: cluster.used_bytes > 16 * MIB)
            cluster.publish(lost=("node1",))
        for name, content in contents.items():
            assert await read_all(filesystem, name) == content
        directory = filesystem._meta.table.directory
        await until(lambda: all(set(servers) == {"node2", "node3"} for _, _, servers in directory))
        for ino, index, _ in directory:
            assert held(cluster, "node2", ino, index) == held(cluster, "node3", ino, index)


@pytest.mark.expected_log(NOTICED)
async def test_a_copy_that_missed_a_write_is_never_read_again(tmp_path: Path) -> None:
    async with mounted(tmp_path, nodes=2) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", b"old")
        first, second = holders(filesystem, ino)

        async def refuse(peer: Peer, *arguments: object) -> Answer:
            raise FilesystemError(errno.ENOSPC, "as asked")

        service = cluster.node(second).service
        write, service.methods["write"] = service.methods["write"], refuse
        fh = await filesystem.open(ino, os.O_RDWR)
        await filesystem.data.write(fh, 0, b"new")
        await filesystem.data.fsync(fh)
        assert second not in holders(filesystem, ino) or held(cluster, second, ino) == b"new"
        service.methods["write"] = write
        await until(lambda: set(holders(filesystem, ino)) == {first, second})
        assert held(cluster, second, ino) == b"new"
        await filesystem.release(fh)


@pytest.mark.expected_log(NOTICED)
async def test_a_write_to_a_server_that_hangs_goes_on_once_it_counts_as_lost(tmp_path: Path) -> None:
    async with mounted(tmp_path) as (cluster, filesystem):
        ino = await write_closed(filesystem, b"file", b"old")
        first = holders(filesystem, ino)[0]
        back = stall(cluster, first, "write")
        fh = await filesystem.open(ino, os.O_RDWR)
        await filesystem.data.write(fh, 0, b"new")
        cluster.publish(lost=(first,))
        await filesystem.data.fsync(fh)
        assert first not in holders(filesystem, ino)
        back.set()
        cluster.publish()
        assert await read_all(filesystem, b"file") == b"new"
        await until(lambda: len(holders(filesystem, ino)) == 2)
        await filesystem.release(fh)


async def test_what_another_mount_writes_while_a_copy_is_made_is_in_the_copy(tmp_path: Path) -> None:
    content = bytes(4 * MIB)
    with trio.fail_after(LIMIT_S):
        async with running(tmp_path, 2) as cluster, cluster.mounted("/one") as one:
            ino = await write_closed(one, b"file", content)
            async with cluster.mounted("/two") as two:
                fh = await two.open((await two.lookup(ROOT_INO, b"file")).ino, os.O_RDWR)
                source = holders(one, ino)[0]
                target = {"node1": "node2", "node2": "node1"}[source]
                back = stall(cluster, target, "put")
                await one.set_xattr(ino, REPLICAS, b"2")
                await until(lambda: cluster.node(source).service._copies._followers)
                await two.data.write(fh, 5, b"meanwhile")
                back.set()
                await two.data.fsync(fh)
                await until(lambda: len(holders(one, ino)) == 2)
                assert held(cluster, target, ino) == held(cluster, source, ino) == b"\0" * 5 + b"meanwhile" + content[14:]
                await until(lambda: not cluster.node(source).service._copies._followers)
                await two.release(fh)
