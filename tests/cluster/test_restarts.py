"""kill -9 of each server's process while the filesystem is in use."""

from __future__ import annotations

import errno
import json
import os
import random
import subprocess
import sys
from functools import partial
from itertools import count
from typing import Any

import psutil
import pytest
import trio

from gridfs import cluster
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.gate import gated
from tests.cluster.real import (
    CAPACITY_BYTES,
    FILE,
    USER,
    WAIT_S,
    WORKERS,
    Real,
    attempt,
    mounted_weight,
    read_all,
    remove_all,
    until,
    write_fsynced,
)

RENAME_EXCHANGE = 2
"""renameat2(2)."""


@pytest.mark.expected_log("the inode table's connection ended")
async def test_the_inode_table_comes_back_with_everything(real: Real, mounted: Filesystem) -> None:
    """Operations go on meanwhile, what was fsynced is durable, and nothing is applied twice."""
    await write_fsynced(mounted, b"before", b"before")
    real.actor_process("master", "InodeTable").kill()
    for number in range(500):
        await mounted.make(USER, ROOT_INO, b"during%d" % number, FILE)
    with trio.fail_after(30):
        await write_fsynced(mounted, b"after", b"after")
    table = cluster.find(cluster.INODE_TABLE)
    assert await trio.to_thread.run_sync(cluster.call, table, "check") == []
    assert real.statistics()["inodes"] == 1 + 502
    assert await read_all(mounted, b"before") == b"before"
    assert await read_all(mounted, b"after") == b"after"


@pytest.mark.expected_log("the inode table's connection ended")
async def test_nothing_acknowledged_is_lost_and_nothing_is_done_twice_when_the_inode_table_dies_under_load(real: Real) -> None:
    """Two deaths while four writers fsync files and one exchanges two names: an exchange done twice would show."""
    kept: dict[bytes, bytes] = {}
    exchanges = 0

    async def progress() -> None:
        goal = len(kept) + 20
        await until(lambda: len(kept) > goal)

    async def write(filesystem: Filesystem, writer: int) -> None:
        for number in count():
            name, content = b"%d-%d" % (writer, number), b"content %d %d" % (writer, number)
            await write_fsynced(filesystem, name, content)
            kept[name] = content

    async def exchange(filesystem: Filesystem) -> None:
        nonlocal exchanges
        while True:
            await filesystem.rename(ROOT_INO, b"one", ROOT_INO, b"two", RENAME_EXCHANGE)
            exchanges += 1
            if exchanges % 7 == 0:
                await trio.lowlevel.checkpoint()

    async with real.mounted() as filesystem:
        await remove_all(filesystem)
        inos = [(await filesystem.make(USER, ROOT_INO, name, FILE)).ino for name in (b"one", b"two")]
        with trio.fail_after(2 * WAIT_S):
            async with trio.open_nursery() as nursery:
                for writer in range(4):
                    nursery.start_soon(write, filesystem, writer)
                nursery.start_soon(exchange, filesystem)
                for _ in range(2):
                    await progress()
                    process = real.actor_process("master", "InodeTable")
                    process.kill()
                await progress()
                nursery.cancel_scope.cancel()
            await filesystem.data.settle_all()
    assert await trio.to_thread.run_sync(cluster.call, cluster.find(cluster.INODE_TABLE), "check") == []
    await until(partial(real.alive, "worker1"))
    await until(partial(real.alive, "worker2"))
    async with real.mounted() as filesystem:
        for name, content in kept.items():
            assert await read_all(filesystem, name) == content
        found = [(await filesystem.lookup(ROOT_INO, name)).ino for name in (b"one", b"two")]
        assert found == (inos if exchanges % 2 == 0 else inos[::-1])
        await remove_all(filesystem)


@pytest.mark.expected_log("the inode table's connection ended")
async def test_an_op_whose_answer_was_lost_with_the_inode_table_is_not_done_twice(real: Real) -> None:
    """It is durable, and the mount cannot know: it asks again. A second exchange would undo the first."""
    async with gated(real) as (gate, filesystem):
        one, two = [(await filesystem.make(USER, ROOT_INO, name, FILE)).ino for name in (b"one", b"two")]
        await filesystem.fsync_names()
        applied = real.statistics()["applied"]
        gate.hold_answers()
        await filesystem.rename(ROOT_INO, b"one", ROOT_INO, b"two", RENAME_EXCHANGE)
        await until(lambda: real.statistics()["applied"] == applied + 1)
        assert filesystem._meta._uplink.applied  # the mount has not heard of it
        real.actor_process("master", "InodeTable").kill()
        gate.cut()  # the answer is gone with the connection
        assert await until(lambda: attempt(lambda: all(map(real.alive, WORKERS))))
        gate.release()
        with trio.fail_after(WAIT_S):
            await filesystem.fsync_names()
        assert real.statistics()["applied"] == applied + 1
    async with real.mounted() as filesystem:
        assert [(await filesystem.lookup(ROOT_INO, name)).ino for name in (b"one", b"two")] == [two, one]


async def test_what_was_fsynced_survives_both_the_mount_and_the_inode_table(real: Real) -> None:
    """The second mount attaches to a table that was loaded from its store."""
    async with real.mounted() as filesystem:
        await write_fsynced(filesystem, b"kept", b"kept")
    real.actor_process("master", "InodeTable").kill()
    await until(lambda: attempt(lambda: all(map(real.alive, WORKERS))))
    async with real.mounted() as filesystem:
        assert await read_all(filesystem, b"kept") == b"kept"


async def test_a_mount_that_attaches_before_the_table_knows_the_nodes_again_serves_nothing_wrong(real: Real) -> None:
    """A restarted table has no placement until the scheduler's next cycle; no file is broken for that."""
    async with real.mounted() as filesystem:
        await remove_all(filesystem)
        await write_fsynced(filesystem, b"kept", b"kept")
    scheduler = real.actor_process("master", "Daemon")
    scheduler.suspend()
    try:
        real.actor_process("master", "InodeTable").kill()
        assert await until(lambda: attempt(real.statistics))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(resume_once_attached, real, scheduler)
            async with real.mounted() as filesystem:
                assert await read_all(filesystem, b"kept") == b"kept"
                await write_fsynced(filesystem, b"new", b"new")
    finally:
        scheduler.resume()


async def resume_once_attached(real: Real, scheduler: psutil.Process) -> None:
    """Let the scheduler go on when a mount has its session: what is served before that is served without a map."""
    await until(lambda: real.statistics()["sessions"])
    scheduler.resume()


async def test_a_dead_chunk_server_is_eio_at_once_and_another_takes_its_place(real: Real, mounted: Filesystem) -> None:
    """Its chunks are gone, the others stay readable, and new chunks find room."""
    content = random.Random(4).randbytes(8 * CHUNK_SIZE_BYTES)
    ino = await write_fsynced(mounted, b"file", content)
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
        hosts |= set(mounted.layout(await write_fsynced(mounted, b"new%d" % number, b"x"))["nodes"])
    assert hosts == set(WORKERS)


async def split_file(real: Real, filesystem: Filesystem, name: bytes) -> tuple[int, dict[str, list[int]]]:
    """A closed file with chunks on both workers; returns its inode number, and host -> indices of its chunks."""
    hosts = {node.server: node.host for node in real.placement().nodes}
    ino = await write_fsynced(filesystem, name, random.Random(7).randbytes(12 * CHUNK_SIZE_BYTES))
    placed: dict[str, list[int]] = {host: [] for host in WORKERS}
    for index, servers in filesystem._meta.table.directory.chunks(ino).items():
        placed[hosts[servers[0]]].append(index)
    assert all(placed.values())
    return ino, placed


@pytest.mark.expected_log(r"\d+ bytes at \d+ were lost")
async def test_bytes_on_their_way_to_a_chunk_server_that_dies_are_an_error_and_not_a_wait(
    real: Real, mounted: Filesystem
) -> None:
    """The mount finds out by itself, before the scheduler has; who wrote hears of it from fsync, who reads at once."""
    ino, placed = await split_file(real, mounted, b"file")
    here, there = placed["worker1"][0] * CHUNK_SIZE_BYTES, placed["worker2"][0] * CHUNK_SIZE_BYTES
    writer, reader = await mounted.open(ino, os.O_RDWR), await mounted.open(ino, os.O_RDONLY)
    await mounted.data.write(writer, here, b"safe")
    await mounted.data.fsync(writer)
    process = real.actor_process("worker1", "ChunkServer")
    process.suspend()
    with trio.fail_after(10):
        await mounted.data.write(writer, here, b"lost")
        process.kill()
        for fails in (mounted.data.fsync(writer), mounted.read(reader, here, MIB), mounted.data.write(writer, here, b"late")):
            with pytest.raises(FilesystemError) as caught:
                await fails
            assert caught.value.errno == errno.EIO
        assert len(await mounted.read(reader, there, MIB)) == MIB
        await mounted.data.write(writer, there, b"fine")
        await mounted.data.fsync(writer)
        assert bytes(await mounted.read(reader, there, 4)) == b"fine"
        await mounted.release(writer)
        await mounted.release(reader)


async def test_a_chunk_server_that_hangs_is_lost_until_it_answers_again(real: Real, mounted: Filesystem) -> None:
    """Its chunks are EIO at once meanwhile, and back with it: it is the same server."""
    ino, placed = await split_file(real, mounted, b"file")
    before = real.alive("worker1")
    assert before is not None
    fh = await mounted.open(ino, os.O_RDONLY)
    process = real.actor_process("worker1", "ChunkServer")
    process.suspend()
    try:
        await until(lambda: not real.alive("worker1"))
        await until(lambda: mounted_weight(mounted, "worker1") == 0)
        with trio.fail_after(1), pytest.raises(FilesystemError) as caught:
            await mounted.read(fh, placed["worker1"][0] * CHUNK_SIZE_BYTES, MIB)
        assert caught.value.errno == errno.EIO
        assert (await mounted.space()).capacity_bytes == CAPACITY_BYTES
        ino = await write_fsynced(mounted, b"new", bytes(2 * CHUNK_SIZE_BYTES))
        assert mounted.layout(ino)["nodes"] == {"worker2": 2}
    finally:
        process.resume()
    await until(lambda: mounted_weight(mounted, "worker1") > 0)
    assert real.alive("worker1").server == before.server  # type: ignore[union-attr]
    for index in placed["worker1"]:
        assert len(await mounted.read(fh, index * CHUNK_SIZE_BYTES, MIB)) == MIB
    await mounted.release(fh)


async def test_status_lists_a_chunk_server_that_died(real: Real, mounted: Filesystem) -> None:
    ino, placed = await split_file(real, mounted, b"file")
    victim = await until(lambda: (node := real.alive("worker1")) and node.chunks == len(placed["worker1"]) and node)
    real.actor_process("worker1", "ChunkServer").kill()
    await until(lambda: (node := real.alive("worker1")) and node.server != victim.server)
    await until(lambda: all(node.server != victim.server or not node.alive for node in mounted._meta.placement.nodes))
    status = await trio.to_thread.run_sync(told_by_status)
    rows = [(node["host"], node["level"]) for node in status["nodes"]]
    assert ("worker1", "lost") in rows
    assert ("worker1", "calm") in rows
    assert ("worker2", "calm") in rows
    lost = [node["chunks"] for node in status["nodes"] if node["level"] == "lost"]
    assert len(placed["worker1"]) in lost
    assert any("worker1 died" in problem for problem in status["problems"])
    assert mounted.layout(ino)["nodes"] == {"worker1 (lost)": len(placed["worker1"]), "worker2": len(placed["worker2"])}


def told_by_status() -> Any:
    """What `gridfs status --json` prints."""
    command = [sys.executable, "-m", "gridfs.cli", "status", "--json"]
    return json.loads(subprocess.run(command, capture_output=True, timeout=60, check=False).stdout)


async def test_the_scheduler_comes_back_and_starts_no_second_server(real: Real, mounted: Filesystem) -> None:
    """Its epochs go on rising, so that clients take its maps."""
    servers = {node.server for node in real.placement().nodes if node.alive}
    processes = {host: real.actor_processes(host, "ChunkServer") for host in WORKERS}
    epochs = [real.placement().epoch]
    for _ in range(2):
        real.actor_process("master", "Daemon").kill()
        goal = epochs[-1] + 2
        while epochs[-1] <= goal:
            epochs.append(await until(lambda: real.placement().epoch))
        await until(lambda: all(map(real.alive, WORKERS)))
    assert epochs == sorted(epochs)
    assert {node.server for node in real.placement().nodes if node.alive} == servers
    assert {host: real.actor_processes(host, "ChunkServer") for host in WORKERS} == processes
    assert all(len(found) == 1 for found in processes.values())
    assert real.actor_processes("master", "ChunkServer") == []
    await until(lambda: mounted._meta.placement.epoch >= epochs[-1])
    await write_fsynced(mounted, b"file", b"content")
    assert await read_all(mounted, b"file") == b"content"


async def test_a_chunk_server_that_dies_with_the_scheduler_is_replaced_too(real: Real, mounted: Filesystem) -> None:
    """The new scheduler has never known the old server, and neither do its maps."""
    ino, placed = await split_file(real, mounted, b"file")
    victim = real.alive("worker1")
    assert victim is not None
    real.actor_process("master", "Daemon").kill()
    real.actor_process("worker1", "ChunkServer").kill()
    await until(lambda: (node := real.alive("worker1")) and node.server != victim.server)
    assert len(real.actor_processes("worker1", "ChunkServer")) == 1
    await until(lambda: victim.server not in {node.server for node in mounted._meta.placement.nodes if node.alive})
    fh = await mounted.open(ino, os.O_RDONLY)
    with trio.fail_after(10), pytest.raises(FilesystemError) as caught:
        await mounted.read(fh, placed["worker1"][0] * CHUNK_SIZE_BYTES, MIB)
    assert caught.value.errno == errno.EIO
    assert len(await mounted.read(fh, placed["worker2"][0] * CHUNK_SIZE_BYTES, MIB)) == MIB
    await mounted.release(fh)
