"""Jobs over real nodes, from the scheduler's endpoint to the result: what moves, what is told, and what kill -9 does."""

from __future__ import annotations

import errno
import hashlib
import json
import random
from collections.abc import AsyncIterator
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import trio

from gridfs import cluster
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.job import Input, Output, Request, Submitter
from gridfs.stream.standing import standing
from gridfs.vfs.filesystem import Filesystem
from scheduler.jobs.queue import Quotas
from tests.cluster.real import WAIT_S, WORKERS, Real, attempt, read_all, until, write_fsynced, write_on_every_worker

CHUNKS = 8
CONTENT = random.Random(6).randbytes((CHUNKS - 1) * CHUNK_SIZE_BYTES + 333)
NOBODY = Submitter(65534, 65534)
SHA256, WC = Request("function", "sha256"), Request("function", "wc")
OUT = Output(ROOT_INO, b"out", "/out")
MODULE = """
class Pair:
    def map(self, chunk, context):
        return context.node, bytes(chunk[:8])

    def reduce(self, partials, context):
        return {"chunks": [[node, start.hex()] for node, start in partials], "reduced_on": context.node}

pair = Pair()

def plain(chunks, context):
    return None
"""


def command(text: str, **options: Any) -> Request:
    """A program that is fed the file; no shell, which is not allowed by default."""
    return Request("command", text.split(maxsplit=1)[0], tuple(text.split()), **options)


class Jobs:
    """A mount's view of the scheduler, wherever that is, and a file to work on."""

    def __init__(self, real: Real, filesystem: Filesystem) -> None:
        self.real, self.filesystem = real, filesystem

    async def ask(self, method: str, *arguments: Any) -> Any:
        """What the scheduler answers; it is asked until it does."""
        with trio.fail_after(WAIT_S):
            while True:
                address = await until(partial(attempt, lambda: self.real.placement().jobs))
                try:
                    async with standing(address, self.real.endpoints.secret, {"role": "mount"}) as connection:
                        return await connection.call(method, *arguments)
                except ConnectionLost:
                    await trio.sleep(0.1)

    async def submit(self, request: Request, name: bytes = b"file", output: Output | None = None) -> int:
        """Submit a job on that file, as it is now."""
        ino = (await self.filesystem.lookup(ROOT_INO, name)).ino
        self.filesystem.forget(ino, 1)
        table = self.filesystem._meta.table
        chunks = {index: tuple(servers) for index, servers in table.directory.chunks(ino).items()}
        source = Input(ino, name.decode(), table.inode(ino).size, chunks)
        packed = (asdict(request), asdict(NOBODY), asdict(source), None if output is None else asdict(output), NOBODY.uid)
        number: int = await self.ask("submit", *packed)
        return number

    async def ended(self, number: int) -> dict[str, Any]:
        """The job's status once it has ended."""
        with trio.fail_after(WAIT_S):
            while True:
                status: dict[str, Any] = await self.ask("wait", number, 0, 20.0)
                if status["ended"]:
                    return status

    async def done(self, number: int) -> dict[str, Any]:
        """As `ended`, of a job that has to be done."""
        status = await self.ended(number)
        assert (status["state"], status["error"]) == ("done", "")
        return status

    async def runs(self, number: int) -> str:
        """The host on which a job runs, once it does."""
        with trio.fail_after(WAIT_S):
            while (status := await self.ask("status", number, 0))["state"] != "running":
                await trio.sleep(0.05)
        return str(status["nodes"][0])

    def bytes_on(self, host: str) -> int:
        """How much of the file the host has."""
        names = self.filesystem._meta.table
        ino = names.lookup(ROOT_INO, b"file").ino
        node = self.real.alive(host)
        assert node is not None
        chunks = names.directory.chunks(ino).items()
        source = Input(ino, "", names.inode(ino).size)
        return sum(source.length(index) for index, servers in chunks if node.server in servers)


@pytest.fixture
async def jobs(real: Real, mounted: Filesystem) -> AsyncIterator[Jobs]:
    await write_on_every_worker(mounted, b"file", CONTENT)
    jobs = Jobs(real, mounted)
    yield jobs
    for status in await jobs.ask("list", 0):
        await jobs.ask("cancel", status["id"], 0)
        await jobs.ended(status["id"])


async def kill_runner(real: Real, host: str) -> None:
    """End the scheduler's runner on that host, which knows its process by the number that it has on its node."""
    handle = await trio.to_thread.run_sync(cluster.find, cluster.runner_name(host))
    pid = (await trio.to_thread.run_sync(cluster.call, handle, "ping"))["pid"]
    real.process(host, pid).kill()


# -- what jobs do ----------------------------------------------------------------------------------------------------


async def test_what_needs_all_bytes_in_order_runs_where_most_are(jobs: Jobs) -> None:
    status = await jobs.done(await jobs.submit(SHA256))
    assert hashlib.sha256(CONTENT).hexdigest() in str(status["result"])
    (host,) = status["nodes"]
    assert jobs.bytes_on(host) == max(map(jobs.bytes_on, WORKERS))
    assert (status["bytes_local"], status["bytes_network"]) == (jobs.bytes_on(host), len(CONTENT) - jobs.bytes_on(host))
    assert f"{host} holds" in status["decision"]


async def test_what_splits_runs_on_every_node_and_moves_next_to_nothing(jobs: Jobs) -> None:
    status = await jobs.done(await jobs.submit(WC))
    assert CONTENT.count(b"\n") in status["result"].values()
    assert sorted(status["nodes"]) == sorted(WORKERS)
    assert status["bytes_local"] == len(CONTENT)
    assert status["bytes_network"] < len(CONTENT) / 100


@pytest.fixture
async def pair(jobs: Jobs, home: Path, modules: Path) -> AsyncIterator[str]:
    """The name of a map and reduce pair, in a module that jobs may name, when they may."""
    name, settings = f"module_{uuid4().hex}", home / "offload.toml"
    (modules / f"{name}.py").write_text(MODULE)
    settings.write_text(f"[offload]\npython = ['{name}']\n")
    try:
        with trio.fail_after(WAIT_S):
            while not await allowed(jobs, Request("python", f"{name}:plain")):
                await trio.sleep(0.1)
        yield f"{name}:pair"
    finally:
        settings.unlink()


async def allowed(jobs: Jobs, request: Request) -> bool:
    """Whether such a job is taken; it is done then."""
    try:
        await jobs.done(await jobs.submit(request))
    except FilesystemError as error:
        assert error.errno == errno.EPERM, error
        return False
    return True


async def test_a_python_pair_runs_on_every_node_if_it_is_to_be_split_and_on_one_if_not(jobs: Jobs, pair: str) -> None:
    starts = [CONTENT[at:][:8].hex() for at in range(0, len(CONTENT), CHUNK_SIZE_BYTES)]
    split = await jobs.done(await jobs.submit(Request("python", pair, split=True)))
    result = split["result"]
    assert [start for _, start in result["chunks"]] == starts
    assert {node for node, _ in result["chunks"]} == set(split["nodes"]) == set(WORKERS)
    assert result["reduced_on"] == split["nodes"][0]
    assert split["bytes_local"] == len(CONTENT)
    assert split["bytes_network"] < len(CONTENT) / 100
    whole = await jobs.done(await jobs.submit(Request("python", pair)))
    assert list(whole["result"]["chunks"]) == [(whole["nodes"][0], start) for start in starts]
    await jobs.done(await jobs.submit(Request("python", pair, split=True), output=OUT))
    assert await read_all(jobs.filesystem, b"out") == json.dumps(result).encode() + b"\n"
    status = await jobs.ended(await jobs.submit(Request("python", pair.replace("pair", "plain"), split=True)))
    assert status["state"] == "failed"
    assert status["error"].endswith(":plain has no map and reduce, so it cannot be split")


async def test_a_job_sees_the_file_as_it_was_at_submission(jobs: Jobs) -> None:
    number = await jobs.submit(SHA256)
    await jobs.filesystem.unlink(ROOT_INO, b"file")
    await write_fsynced(jobs.filesystem, b"other", bytes(CHUNK_SIZE_BYTES))
    assert hashlib.sha256(CONTENT).hexdigest() in str((await jobs.done(number))["result"])


async def test_a_command_leaves_an_output_that_is_placed_on_its_node(jobs: Jobs) -> None:
    status = await jobs.done(await jobs.submit(command("tr a b"), output=OUT))
    assert (status["exit_code"], status["output_bytes"]) == (0, len(CONTENT))
    assert await read_all(jobs.filesystem, b"out") == CONTENT.replace(b"a", b"b")
    attributes = await jobs.filesystem.lookup(ROOT_INO, b"out")
    jobs.filesystem.forget(attributes.ino, 1)
    assert list(jobs.filesystem.layout(attributes.ino)["nodes"]) == list(status["nodes"])


async def test_a_file_without_bytes_has_results_too(jobs: Jobs) -> None:
    await write_fsynced(jobs.filesystem, b"empty", b"")
    assert (await jobs.done(await jobs.submit(WC, b"empty")))["result"] == {"lines": 0, "words": 0, "bytes": 0}


async def test_a_job_that_runs_is_cancelled_and_its_holds_are_let_go(jobs: Jobs) -> None:
    number = await jobs.submit(command("sleep 600"), output=OUT)
    host = await jobs.runs(number)
    assert await jobs.ask("cancel", number, NOBODY.uid)
    status = await jobs.ended(number)
    assert (status["state"], status["nodes"]) == ("cancelled", (host,))
    server = await trio.to_thread.run_sync(cluster.find, cluster.chunk_server_name(host))
    await until(lambda: cluster.call(server, "held", number) == [])


async def test_jobs_that_fail_say_why(jobs: Jobs) -> None:
    status = await jobs.ended(await jobs.submit(command("false")))
    assert (status["state"], status["exit_code"]) == ("failed", 1)
    status = await jobs.ended(await jobs.submit(command("sleep 600", timeout_s=0.3)))
    assert status["state"] == "failed"
    assert "0.3" in status["error"]
    for request in (command("echo", shell=True), Request("python", "os:getcwd")):
        with pytest.raises(FilesystemError, match="allowed"):
            await jobs.submit(request)


# -- kill -9 ---------------------------------------------------------------------------------------------------------


async def test_when_a_runner_dies_what_is_idempotent_runs_again_and_anything_else_fails_with_the_reason(jobs: Jobs) -> None:
    numbers = [await jobs.submit(command("sleep 5", idempotent=idempotent), output=OUT) for idempotent in (True, False)]
    hosts = {await jobs.runs(number) for number in numbers}
    for host in hosts:
        await kill_runner(jobs.real, host)
    first, second = [await jobs.ended(number) for number in numbers]
    assert (first["state"], first["attempts"], first["error"]) == ("done", 2, "")
    assert (second["state"], second["attempts"]) == ("failed", 1)
    assert "was lost while it worked" in second["error"]
    fh = await jobs.filesystem.opendir(ROOT_INO)

    def names() -> set[bytes]:
        return {name for _, name, _ in jobs.filesystem.names(fh, 0)} - {b".", b".."}

    with trio.fail_after(WAIT_S):
        while names() != {b"file", b"out"}:
            await trio.sleep(0.1)
            jobs.filesystem.releasedir(fh)
            fh = await jobs.filesystem.opendir(ROOT_INO)
    jobs.filesystem.releasedir(fh)


async def test_jobs_survive_the_scheduler(jobs: Jobs) -> None:
    """What had ended is there, what ran is done if it may run again; and no number is used twice."""
    ended = await jobs.done(await jobs.submit(WC))
    idempotent, other = [await jobs.submit(command("sleep 2", idempotent=idempotent)) for idempotent in (True, False)]
    for number in (idempotent, other):
        await jobs.runs(number)
    (process,) = jobs.real.actor_processes("master", "Daemon")
    process.kill()
    assert await jobs.ask("status", ended["id"], 0) == ended
    assert (await jobs.done(idempotent))["attempts"] == 2
    status = await jobs.ended(other)
    assert (status["state"], status["attempts"]) == ("failed", 1)
    assert "the scheduler was restarted while it ran" in status["error"]
    assert await jobs.submit(WC) > other


async def test_a_job_that_waits_fails_when_its_bytes_die_with_their_server(jobs: Jobs) -> None:
    """As many run as one user may have running, so that it waits."""
    await write_fsynced(jobs.filesystem, b"small", b"1")
    busy = [await jobs.submit(command("sleep 600"), b"small") for _ in range(Quotas().running_per_user_max)]
    for number in busy:
        await jobs.runs(number)
    number = await jobs.submit(WC)
    before = jobs.real.alive(WORKERS[1])
    assert before is not None
    jobs.real.actor_process(WORKERS[1], "ChunkServer").kill()
    await until(lambda: (node := jobs.real.alive(WORKERS[1])) is None or node.server != before.server)
    for each in busy:
        await jobs.ask("cancel", each, 0)
    status = await jobs.ended(number)
    assert (status["state"], status["attempts"]) == ("failed", 0)
    assert "the bytes are lost" in status["error"]
