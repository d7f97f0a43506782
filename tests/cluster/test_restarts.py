"""kill -9 of each server's process while the filesystem is in use."""

from __future__ import annotations

import errno
import random
from collections.abc import Callable
from typing import Any

import pytest
import trio

from gridfs import cluster
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import AuthenticationFailed, FilesystemError
from gridfs.meta.client import MetaClient
from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import FILE, USER, WORKERS, Real, mounted_weight, read_all, until, write_closed


def attempt(ask: Callable[[], Any]) -> Any:
    """What it returns, None while the server does not answer."""
    try:
        return ask()
    except cluster.Unreachable:
        return None


@pytest.mark.expected_log("the inode table's connection ended")
async def test_the_inode_table_comes_back_with_everything(real: Real, mounted: Filesystem) -> None:
    """Operations go on meanwhile, what was closed is durable, and nothing is applied twice."""
    await write_closed(mounted, b"before", b"before")
    real.actor_process("master", "InodeTable").kill()
    for number in range(500):
        await mounted.make(USER, ROOT_INO, b"during%d" % number, FILE)
    with trio.fail_after(30):
        await write_closed(mounted, b"after", b"after")
    table = cluster.find(cluster.INODE_TABLE)
    assert await trio.to_thread.run_sync(cluster.call, table, "check") == []
    assert real.statistics()["inodes"] == 1 + 502
    assert await read_all(mounted, b"before") == b"before"
    assert await read_all(mounted, b"after") == b"after"


async def test_what_was_closed_survives_both_the_mount_and_the_inode_table(real: Real) -> None:
    """The second mount attaches to a table that was loaded from its store."""
    async with real.mounted() as filesystem:
        await write_closed(filesystem, b"kept", b"kept")
    real.actor_process("master", "InodeTable").kill()
    await until(lambda: attempt(real.statistics))
    async with real.mounted() as filesystem:
        assert await read_all(filesystem, b"kept") == b"kept"


async def test_a_dead_chunk_server_is_eio_at_once_and_another_takes_its_place(real: Real, mounted: Filesystem) -> None:
    """Its chunks are gone, the others stay readable, and new chunks find room."""
    content = random.Random(4).randbytes(8 * CHUNK_SIZE_BYTES)
    ino = await write_closed(mounted, b"file", content)
    placed = dict(mounted._meta.table.directory.chunks(ino))
    victim = real.alive("worker1")
    assert victim is not None
    real.actor_process("worker1", "ChunkServer").kill()
    await until(lambda: (node := real.alive("worker1")) and node.server != victim.server)
    await until(lambda: all(node.server != victim.server or not node.alive for node in mounted._meta.placement.nodes))
    lost = [node for node in real.placement().nodes if not node.alive]
    assert victim.server in [node.server for node in lost]
    fh = await mounted.open(ino, 0)
    for index, servers in placed.items():
        with trio.fail_after(10):
            if servers == (victim.server,):
                with pytest.raises(FilesystemError) as caught:
                    await mounted.read(fh, index * CHUNK_SIZE_BYTES, MIB)
                assert caught.value.errno == errno.EIO
            else:
                start = index * CHUNK_SIZE_BYTES
                assert bytes(await mounted.read(fh, start, MIB)) == content[start : start + MIB]
    await mounted.release(fh)
    await until(lambda: mounted_weight(mounted, "worker1") > 0.01)
    hosts: set[str] = set()
    for number in range(40):
        hosts |= set(mounted.layout(await write_closed(mounted, b"new%d" % number, b"x"))["nodes"])
    assert hosts == set(WORKERS)


async def test_the_scheduler_comes_back_and_starts_no_second_server(real: Real, mounted: Filesystem) -> None:
    servers = {node.server for node in real.placement().nodes if node.alive}
    epoch = real.placement().epoch
    real.actor_process("master", "Daemon").kill()
    await until(lambda: real.placement().epoch > epoch + 2)
    await until(lambda: all(map(real.alive, WORKERS)))
    assert {node.server for node in real.placement().nodes if node.alive} == servers
    await write_closed(mounted, b"file", b"content")
    assert await read_all(mounted, b"file") == b"content"


async def test_a_second_mount_is_refused_while_the_first_lives(real: Real, mounted: Filesystem) -> None:
    second = MetaClient(real.endpoints, "/second")
    with pytest.raises(AuthenticationFailed, match=r"already mounted on .* at /test"):
        await second.run()
