"""Chunks at rest are Ray objects in the memory of worker nodes."""

from __future__ import annotations

import ctypes
import errno
import os
import random
from typing import Any

import pytest
import ray
import trio
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from gridfs import cluster
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.stream.connection import Connection
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import CAPACITY_BYTES, FILE, USER, WORKERS, Real, read_all, until, write_fsynced


def read_on(node_id: str, refs: list[Any]) -> bytes:
    """The object's bytes, as a task on that very node sees them; and it must be local there."""

    def read(refs: list[Any]) -> bytes:
        return bytes(memoryview(ray.get(refs[0])))

    task: Any = ray.remote(read)
    placed = NodeAffinitySchedulingStrategy(node_id, soft=False)
    content: bytes = ray.get(task.options(num_cpus=0, scheduling_strategy=placed).remote(refs), timeout=30)
    return content


def change_on(node_id: str, refs: list[Any], at: int) -> None:
    """Change a byte of the object in the store's memory, as failing hardware would: a task on that node maps it, too."""

    def change(refs: list[Any]) -> None:
        memory = (ctypes.c_void_p * 16)()  # a Py_buffer, which begins with the address
        ctypes.pythonapi.PyObject_GetBuffer(ctypes.py_object(ray.get(refs[0])), memory, 0)
        byte = ctypes.c_ubyte.from_address((memory[0] or 0) + at)
        byte.value ^= 0xFF

    task: Any = ray.remote(change)
    placed = NodeAffinitySchedulingStrategy(node_id, soft=False)
    ray.get(task.options(num_cpus=0, scheduling_strategy=placed).remote(refs), timeout=30)


async def chunk_refs(ino: int) -> tuple[str, list[Any]]:
    """The node that holds chunk 0 of the inode, and the ref of its object there."""
    for node in cluster.nodes():
        if node.is_head:
            continue
        handle = cluster.find(cluster.chunk_server_name(node.host))
        try:
            return node.node_id, await trio.to_thread.run_sync(cluster.call, handle, "refs", ino, 0)
        except FilesystemError as error:
            assert error.errno == errno.ENOENT
    raise AssertionError(f"no chunk server has inode {ino}")


async def test_a_chunk_is_read_through_ray_on_the_node_that_holds_it(real: Real, mounted: Filesystem) -> None:
    content = random.Random(1).randbytes(3 * CHUNK_SIZE_BYTES + 777)
    ino = await write_fsynced(mounted, b"file", content)
    layout = mounted.layout(ino)
    assert layout["chunks"] == 4
    assert set(layout["nodes"]) <= set(WORKERS)
    found = 0
    for node in cluster.nodes():
        handle = cluster.find(cluster.chunk_server_name(node.host))
        if node.is_head:
            assert handle is None
            continue
        for index in range(4):
            try:
                refs = await trio.to_thread.run_sync(cluster.call, handle, "refs", ino, index)
            except FilesystemError as error:
                assert error.errno == errno.ENOENT
                continue
            start = index * CHUNK_SIZE_BYTES
            read = await trio.to_thread.run_sync(read_on, node.node_id, refs)
            assert read == content[start : start + CHUNK_SIZE_BYTES]
            found += 1
    assert found == 4


async def test_held_chunks_are_read_through_ray_when_they_are_no_longer_in_the_filesystem(
    real: Real, mounted: Filesystem
) -> None:
    content = random.Random(9).randbytes(3 * CHUNK_SIZE_BYTES + 777)
    ino = await write_fsynced(mounted, b"file", content)
    holders = {host: [index for index in range(4) if await has_chunk(real, host, ino, index)] for host in WORKERS}
    for host, indices in holders.items():
        await request(real, host, "hold", 1, ino, indices)
    await mounted.unlink(ROOT_INO, b"file")
    mounted.forget(ino, 1)
    await until(lambda: not any(real.chunk_server(host).chunks for host in WORKERS))
    found = {}
    for host, node_id in [(node.host, node.node_id) for node in cluster.nodes() if not node.is_head]:
        handle = cluster.find(cluster.chunk_server_name(host))
        for index, ref, start, length in await trio.to_thread.run_sync(cluster.call, handle, "held", 1):
            found[index] = (await trio.to_thread.run_sync(read_on, node_id, [ref]))[start : start + length]
        assert await trio.to_thread.run_sync(cluster.call, handle, "check") == []
        await request(real, host, "release", 1)
        assert await trio.to_thread.run_sync(cluster.call, handle, "held", 1) == []
    assert b"".join(found[index] for index in sorted(found)) == content


async def has_chunk(real: Real, host: str, ino: int, index: int) -> bool:
    """Whether the host's chunk server has the chunk."""
    return bool(await request(real, host, "length", ino, index))


async def seal(real: Real, inos: list[int]) -> None:
    """Have the files' first chunks sealed, wherever they are, before they are quiet."""
    sealed = [await request(real, host, "seal", [(ino, 0) for ino in inos]) for host in WORKERS]
    assert all(map(any, zip(*sealed, strict=True)))


async def request(real: Real, host: str, method: str, *arguments: Any) -> Any:
    """What the host's chunk server answers, on a connection that ends with it."""
    identity = {"role": "client", "client": "test", "stream": "fetch"}
    connection = await Connection.open(real.chunk_server(host).address, real.endpoints.secret, identity)
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        answer = await connection.call(method, *arguments)
        nursery.cancel_scope.cancel()
    return answer


async def test_the_bytes_are_in_the_workers_object_stores_and_not_in_the_master_s(real: Real, mounted: Filesystem) -> None:
    """Written and read by way of the master's address, they never become an object there."""
    before = real.shared_memory_bytes("master")
    content = random.Random(6).randbytes(16 * CHUNK_SIZE_BYTES)
    ino = await write_fsynced(mounted, b"file", content)
    await until(lambda: all(server.sealed_chunks == server.chunks for server in map(real.chunk_server, WORKERS)))
    assert await read_all(mounted, b"file") == content
    for host, chunks in mounted.layout(ino)["nodes"].items():
        assert real.shared_memory_bytes(host) >= chunks * CHUNK_SIZE_BYTES
    assert real.shared_memory_bytes("master") - before < MIB


async def test_a_sealed_chunk_is_read_and_overwritten_like_any_other(real: Real, mounted: Filesystem) -> None:
    content = bytearray(random.Random(2).randbytes(2 * MIB))
    ino = await write_fsynced(mounted, b"file", bytes(content))
    await seal(real, [ino])
    assert await read_all(mounted, b"file") == content
    fh = await mounted.open(ino, os.O_RDWR)
    await mounted.data.write(fh, 1000, b"overwritten")
    content[1000:1011] = b"overwritten"
    await mounted.data.flush(fh)
    await mounted.release(fh)
    assert await read_all(mounted, b"file") == content


async def test_small_files_are_read_and_removed_one_by_one_and_their_space_comes_back(real: Real, mounted: Filesystem) -> None:
    contents = {b"%d" % number: random.Random(number).randbytes(4000 + number) for number in range(150)}
    inos = {name: await write_fsynced(mounted, name, content) for name, content in contents.items()}
    await seal(real, list(inos.values()))
    assert read_on(*await chunk_refs(inos[b"7"])) == contents[b"7"]
    for name in list(contents)[:100]:
        assert await read_all(mounted, name) == contents[name]
        await mounted.unlink(ROOT_INO, name)
        mounted.forget(inos[name], 1)
    left = sum(map(len, list(contents.values())[100:]))
    await until(lambda: sum(real.chunk_server(host).used_bytes for host in WORKERS) == left)
    for name in list(contents)[100:]:
        assert await read_all(mounted, name) == contents[name]


async def test_bytes_that_changed_in_the_object_store_reach_nobody(real: Real, mounted: Filesystem) -> None:
    ino = await write_fsynced(mounted, b"file", random.Random(8).randbytes(2 * MIB))
    change_on(*await chunk_refs(ino), MIB)
    with pytest.raises(FilesystemError) as caught:
        await read_all(mounted, b"file")
    assert caught.value.errno in (errno.EBADMSG, errno.EIO)


async def test_full_workers_are_enospc_and_space_comes_back(real: Real, mounted: Filesystem) -> None:
    ino = (await mounted.make(USER, ROOT_INO, b"big", FILE)).ino
    fh = await mounted.open(ino, os.O_RDWR)
    block, written = random.Random(3).randbytes(MIB), 0
    with pytest.raises(FilesystemError) as caught:
        for _ in range(4 * CAPACITY_BYTES // MIB):
            written += await mounted.data.write(fh, written, block)
    assert caught.value.errno == errno.ENOSPC
    await mounted.data.flush(fh)
    assert written > 1.8 * CAPACITY_BYTES
    assert (await mounted.attributes(ino)).size == written
    for at in range(0, written, 64 * MIB):
        assert bytes(await mounted.read(fh, at, MIB)) == (block if at + MIB <= written else block[: written - at])
    await mounted.release(fh)
    await mounted.unlink(ROOT_INO, b"big")
    mounted.forget(ino, 1)
    await until(lambda: not sum(real.chunk_server(host).used_bytes for host in WORKERS))
    await write_fsynced(mounted, b"again", block * 64)
    assert await read_all(mounted, b"again") == block * 64
