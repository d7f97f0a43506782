"""Runners on real Ray nodes: jobs see the chunks of their node in the object store, and leave nothing when they are killed."""

from __future__ import annotations

import errno
import hashlib
import random
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import suppress
from dataclasses import dataclass, field
from glob import glob
from itertools import count, groupby
from typing import Any
from uuid import uuid4

import psutil
import pytest
import trio

from gridfs import cluster
from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.job import Input, Job, Output, Request, Submitter
from gridfs.offload.runner import THREADS, Runner
from gridfs.stream.standing import standing
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import WORKERS, Real, command_line, read_all, until, write_fsynced, write_on_every_worker

LATE_S = 10.0
"""Far less than what a cancelled job would go on for."""

CHUNKS = 8
CONTENT = random.Random(5).randbytes((CHUNKS - 1) * CHUNK_SIZE_BYTES + 777)
NOBODY = Submitter(65534, 65534)
JOBS = count(4711)
"""A number for each test: a chunk server that was out of reach may still hold chunks for the last one."""
SHA256, WC = Request("function", "sha256"), Request("function", "wc")


def command(text: str, **options: Any) -> Request:
    return Request("command", "sh", (text,), shell=True, **options)


@dataclass
class Runners:
    """A runner on each worker, and a file whose chunks are held for a job."""

    real: Real
    filesystem: Filesystem
    handles: dict[str, Any]
    input: Input
    job: int
    told: dict[str, Any] = field(default_factory=dict)

    def server(self, host: str) -> str:
        """The identity of the host's chunk server."""
        node = self.real.alive(host)
        assert node is not None
        return node.server

    def runs(self, host: str) -> list[list[int]]:
        """The ranges of chunks that the host has."""
        server = self.server(host)
        here = [index for index, servers in sorted(self.input.chunks.items()) if server in servers]
        grouped = (list(group) for _, group in groupby(enumerate(here), lambda pair: pair[1] - pair[0]))
        return [[group[0][1], group[-1][1] + 1] for group in grouped]

    def local_bytes(self, host: str) -> int:
        """How much of the file the host has."""
        return sum(self.input.length(index) for first, end in self.runs(host) for index in range(first, end))

    def task(self, host: str, request: Request, output: Output | None, mode: str, attempt: int) -> dict[str, Any]:
        """What the scheduler would send."""
        nodes = [node for node in self.real.placement().nodes if node.alive]
        return {
            "job": Job(self.job, request, NOBODY, self.input, output, 1).pack(),
            "attempt": attempt,
            "mode": mode,
            "runs": self.runs(host) if mode == "map" else [],
            "servers": {node.server: [node.host, *node.address] for node in nodes},
            "inode_table": list(self.real.endpoints.inode_table),
            "server": self.server(host),
        }

    async def run(
        self, host: str, request: Request, output: Output | None = None, mode: str = "whole", attempt: int = 1
    ) -> dict[str, Any]:
        """What becomes of it on that host."""
        task = self.task(host, request, output, mode, attempt)
        told: dict[str, Any] = await self.call(host, "run", task)
        return told

    async def call(self, host: str, method: str, *arguments: Any) -> Any:
        """What a runner answers."""
        return await trio.to_thread.run_sync(lambda: cluster.call(self.handles[host], method, *arguments, timeout_s=30.0))

    def processes(self, program: str) -> list[psutil.Process]:
        """Those on the workers that run a program of that name."""
        processes = (process for host in WORKERS for process in self.real.processes(host))
        return [process for process in processes if command_line(process)[:1] == [program]]


async def hold(real: Real, filesystem: Filesystem, name: bytes, job: int) -> Input:
    """The file as it is now, held under the job's id by all who have a part of it."""
    ino = (await filesystem.lookup(ROOT_INO, name)).ino
    filesystem.forget(ino, 1)
    table = filesystem._meta.table
    chunks = {index: tuple(servers) for index, servers in table.directory.chunks(ino).items()}
    for node in real.placement().nodes:
        indices = [index for index, servers in chunks.items() if node.server in servers]
        if indices:
            identity = {"role": "client", "client": uuid4().hex}
            async with standing(node.address, real.endpoints.secret, identity) as connection:
                await connection.call("hold", job, ino, indices)
    return Input(ino, name.decode(), table.inode(ino).size, chunks)


async def release(real: Real, job: int) -> None:
    """Let the chunks go. Those of a chunk server that a test killed went with it, before the scheduler knew of that."""
    for node in real.placement().nodes:
        identity = {"role": "client", "client": uuid4().hex}
        with suppress(ConnectionLost):
            async with standing(node.address, real.endpoints.secret, identity) as connection:
                await connection.call("release", job)


@pytest.fixture
async def runners(real: Real, mounted: Filesystem) -> AsyncIterator[Runners]:
    await write_on_every_worker(mounted, b"file", CONTENT)
    nodes = {node.host: node.node_id for node in cluster.nodes() if node.host in WORKERS}
    arguments = real.endpoints.secret
    handles = {
        host: cluster.create(
            Runner, f"runner-of-a-test@{host}", node, host, arguments, max_restarts=-1, max_concurrency=THREADS
        )
        for host, node in nodes.items()
    }
    job = next(JOBS)
    runners = Runners(real, mounted, handles, await hold(real, mounted, b"file", job), job)
    try:
        yield runners
    finally:
        for host in WORKERS:
            await trio.to_thread.run_sync(cluster.destroy, f"runner-of-a-test@{host}")
        await release(real, job)
        for left in glob(f"{tempfile.gettempdir()}/gridfs-job-{job}-*"):  # by a runner that was killed, for the next one
            shutil.rmtree(left)


async def names(filesystem: Filesystem) -> set[bytes]:
    """What is in the root directory."""
    fh = await filesystem.opendir(ROOT_INO)
    found = {name for _, name, _ in filesystem.names(fh, 0)}
    filesystem.releasedir(fh)
    return found - {b".", b".."}


OUT = Output(ROOT_INO, b"out", "/out")


async def test_each_node_maps_what_it_has_and_fetches_nothing(runners: Runners) -> None:
    partials: dict[int, bytes] = {}
    for host in WORKERS:
        told = await runners.run(host, WC, mode="map")
        assert (told["failure"], told["error"]) == ("", "")
        assert (told["local_bytes"], told["network_bytes"]) == (runners.local_bytes(host), 0)
        partials |= dict(zip([first for first, _ in runners.runs(host)], told["partials"], strict=True))
    assert sum(map(len, partials.values())) < len(CONTENT) // 100
    task = runners.task(WORKERS[0], WC, None, "whole", 1)
    told = await runners.call(WORKERS[0], "reduce", task, [partials[first] for first in sorted(partials)])
    assert CONTENT.count(b"\n") in told["result"].values()


async def test_what_needs_all_bytes_in_order_fetches_just_what_the_node_lacks(runners: Runners) -> None:
    for host in WORKERS:
        told = await runners.run(host, SHA256)
        assert (told["failure"], told["error"]) == ("", "")
        assert hashlib.sha256(CONTENT).hexdigest() in str(told["result"])
        local = runners.local_bytes(host)
        assert (told["local_bytes"], told["network_bytes"]) == (local, len(CONTENT) - local)


async def test_a_job_sees_the_file_as_it_was(runners: Runners) -> None:
    await runners.filesystem.data.truncate(runners.input.ino, 0)
    await write_fsynced(runners.filesystem, b"other", bytes(3 * MIB))
    told = await runners.run(WORKERS[0], SHA256)
    assert hashlib.sha256(CONTENT).hexdigest() in str(told["result"])


async def test_a_command_runs_as_the_submitter_and_its_output_is_placed_on_its_node(runners: Runners) -> None:
    told = await runners.run(WORKERS[1], command("id -u >&2; tr a b"), OUT)
    assert (told["failure"], told["stderr"]) == ("", b"65534\n"), told
    assert await read_all(runners.filesystem, b"out") == CONTENT.replace(b"a", b"b")
    attributes = await runners.filesystem.lookup(ROOT_INO, b"out")
    runners.filesystem.forget(attributes.ino, 1)
    assert (attributes.uid, attributes.gid) == (NOBODY.uid, NOBODY.gid)
    assert runners.filesystem.layout(attributes.ino)["nodes"] == {WORKERS[1]: CHUNKS}


async def begin(runners: Runners, text: str) -> None:
    """Run a command with an output on the first worker; what becomes of it is in `told`."""
    try:
        runners.told = await runners.run(WORKERS[0], command(text), OUT)
    except cluster.Unreachable as error:
        runners.told = {"failure": "lost", "error": str(error)}


async def test_a_job_is_cancelled_within_a_second_or_so(runners: Runners) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, runners, "cat; sleep 600")
        await until(lambda: runners.processes("sleep"))
        assert await runners.call(WORKERS[0], "progress") == {runners.job: len(CONTENT)}
        began_s = trio.current_time()
        await runners.call(WORKERS[0], "cancel", runners.job, 1)
        await until(lambda: runners.told)
        assert trio.current_time() - began_s < LATE_S
    assert runners.told["failure"] == "cancelled"
    assert not runners.processes("sleep")
    assert await names(runners.filesystem) == {b"file"}


async def test_a_runner_that_is_killed_takes_its_job_with_it_and_the_next_attempt_cleans_up(runners: Runners) -> None:
    pid = (await runners.call(WORKERS[0], "ping"))["pid"]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, runners, "cat; sleep 600")
        await until(lambda: runners.processes("sleep"))
        runners.real.process(WORKERS[0], pid).kill()
        await until(lambda: runners.told)
    assert runners.told["failure"] == "lost"
    await until(lambda: not runners.processes("sleep"))
    assert await names(runners.filesystem) == {b"file", b".out.job-%d-1" % runners.job}
    told = await runners.run(WORKERS[0], command("cat"), OUT, attempt=2)
    assert told["failure"] == ""
    assert (await runners.call(WORKERS[0], "ping"))["pid"] != pid
    assert await names(runners.filesystem) == {b"file", b"out"}
    assert await read_all(runners.filesystem, b"out") == CONTENT


@pytest.mark.expected_log
async def test_an_output_is_written_although_the_inode_table_is_restarted_meanwhile(runners: Runners) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(begin, runners, "sleep 1; cat")
        await until(lambda: runners.processes("sleep"))
        runners.real.actor_process("master", "InodeTable").kill()
        await until(lambda: runners.told)
    assert (runners.told["failure"], runners.told["error"]) == ("", "")
    assert await read_all(runners.filesystem, b"out") == CONTENT
    assert await names(runners.filesystem) == {b"file", b"out"}


async def test_bytes_that_died_with_their_chunk_server_are_lost_and_told_as_such(runners: Runners) -> None:
    runners.real.actor_process(WORKERS[1], "ChunkServer").kill()
    told = await runners.run(WORKERS[0], SHA256)
    assert told["failure"] == "bytes lost"
    with pytest.raises(FilesystemError) as caught:
        await read_all(runners.filesystem, b"file")
    assert caught.value.errno == errno.EIO
