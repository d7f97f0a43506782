"""Two copies of each chunk on real Ray nodes: the death of a chunk server under load is no program's business."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from itertools import count

import pytest
import trio

from gridfs.config import MIB
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.xattrs import REPLICAS
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import WORKERS, Real, read_all, until, write_fsynced

WRITERS = READERS = 4
FILE_BYTES = 12 * MIB
SETTLED_FILES = 6


def content(name: bytes) -> bytes:
    """What a file of that name is to hold."""
    return random.Random(name).randbytes(FILE_BYTES)


async def write(filesystem: Filesystem, writer: int, written: list[bytes]) -> None:
    """Write file after file, each replacing the one before the last, so that the space does not run out."""
    for number in count():
        name = b"writer%d-%d" % (writer, number)
        await write_fsynced(filesystem, name, content(name))
        written.append(name)
        if number >= 2:
            old = b"writer%d-%d" % (writer, number - 2)
            ino = (await filesystem.lookup(ROOT_INO, old)).ino
            await filesystem.unlink(ROOT_INO, old)
            filesystem.forget(ino, 1 << 30)
            written.remove(old)


async def read(filesystem: Filesystem, names: list[bytes], hashes: dict[bytes, str], done: list[int], reader: int) -> None:
    """Read file after file, as a new open each time, and compare."""
    for number in count(reader):
        name = names[number % len(names)]
        assert hashlib.sha256(await read_all(filesystem, name)).hexdigest() == hashes[name]
        done[reader] += 1


@pytest.mark.expected_log
async def test_four_writers_and_four_readers_hear_nothing_of_a_chunk_server_that_is_killed(
    real: Real, mounted: Filesystem
) -> None:
    """All bytes are right afterwards, and every chunk has two copies again. Long: the copies have to be made."""
    await mounted.set_xattr(ROOT_INO, REPLICAS, b"2")
    try:
        names = [b"settled%d" % number for number in range(SETTLED_FILES)]
        hashes = {name: hashlib.sha256(content(name)).hexdigest() for name in names}
        for name in names:
            await write_fsynced(mounted, name, content(name))
        written: list[bytes] = []
        reads = [0] * READERS
        victim = real.alive("worker1")
        assert victim is not None
        async with trio.open_nursery() as nursery:
            for number in range(WRITERS):
                nursery.start_soon(write, mounted, number, written)
            for number in range(READERS):
                nursery.start_soon(read, mounted, names, hashes, reads, number)
            await progress(lambda: len(written) >= WRITERS and min(reads) >= 1)
            real.actor_process("worker1", "ChunkServer").kill()
            before, goal = list(reads), set(written)
            await progress(lambda: min(now - then for now, then in zip(reads, before, strict=True)) >= 2)
            await progress(lambda: len(set(written) - goal) >= WRITERS)
            nursery.cancel_scope.cancel()
        for name in [*names, *written]:
            assert await read_all(mounted, name) == content(name)
        await until(lambda: (node := real.alive("worker1")) and node.server != victim.server)
        await progress(lambda: all(len(set(servers)) == 2 for _, _, servers in mounted._meta.table.directory))
        hosts = {node.server: node.host for node in mounted._meta.placement.nodes if node.alive}
        for ino, index, servers in mounted._meta.table.directory:
            assert {hosts[server] for server in servers} == set(WORKERS), (ino, index)
    finally:
        await mounted.remove_xattr(ROOT_INO, REPLICAS)


async def progress(condition: Callable[[], bool]) -> None:
    """Wait for it, in the thread of the filesystem; at most a minute."""
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.05)
