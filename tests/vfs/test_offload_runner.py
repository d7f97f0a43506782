"""What a node does for a job, in the runner's own process and its children, without Ray."""

from __future__ import annotations

import errno
import gzip
import hashlib
import os
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio

from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.job import KEPT_OUTPUT_BYTES, Input, Output, Request, Submitter
from gridfs.offload.runner import Runner
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import Cluster
from tests.vfs.faults import Kind, faulty
from tests.vfs.files import read_all, write_fsynced
from tests.vfs.jobs import hold, in_thread, job, output

LATE_S = 10.0
"""Far less than what a cancelled job would go on for."""

LINES = b"".join(b"line %d of the file\n" % number for number in range(1_000_000))[: 2 * CHUNK_SIZE_BYTES + 777]
ME = Submitter(os.getuid(), os.getgid())
OWN = "node1"
MODULE = """
def lines(chunks, context):
    return [sum(bytes(chunk).count(b"\\n") for chunk in chunks), context.args, context.node]

class Sizes:
    def map(self, chunk, context):
        return len(chunk)

    def reduce(self, partials, context):
        return list(partials)

class Places:
    def map(self, chunk, context):
        return (bytes(chunk[:5]), len(chunk))

    def reduce(self, partials, context):
        return [[start.decode(), length] for start, length in partials], context.node

class Shouted:
    def map(self, chunk, context):
        return bytes(chunk[-1000:]).upper()

    def reduce(self, partials, context):
        yield from partials

sizes, places, shouted = Sizes(), Places(), Shouted()

def long(chunks, context):
    return "x" * (2 << 20)
"""


class Node:
    """A runner beside the chunk server of node1, which holds a file for job 7."""

    def __init__(self, cluster: Cluster, input_: Input) -> None:
        self.cluster, self.input = cluster, input_
        self.here = {index for index, servers in input_.chunks.items() if OWN in servers}
        self.runner = Runner(OWN, cluster.secret, self.held)

    def held(self, number: int) -> Mapping[int, memoryview]:
        """What the chunk server has in the object store."""
        return {index: memoryview(LINES)[index * CHUNK_SIZE_BYTES :][:CHUNK_SIZE_BYTES] for index in self.here}

    def task(self, request: Request, where: Output | None = None, *, mode: str = "whole", attempt: int = 1) -> dict[str, Any]:
        """What the scheduler would send."""
        return {
            "job": job(request=request, input_=self.input, output=where, submitter=ME).pack(),
            "attempt": attempt,
            "mode": mode,
            "runs": [[0, 1], [1, 3]] if self.input.size else [],
            "servers": {node.name: [node.name, *node.address] for node in self.cluster.nodes},
            "inode_table": list(self.cluster.inode_table),
            "server": OWN,
        }

    async def run(self, *arguments: Any, **options: Any) -> dict[str, Any]:
        """What becomes of it."""
        return await in_thread(self.runner.run, self.task(*arguments, **options))

    async def until(self, condition: Callable[[], Any]) -> None:
        """Wait for it, not for long."""
        with trio.fail_after(5):
            while not condition():
                await trio.sleep(0.01)


@pytest.fixture
async def node(cluster: Cluster, filesystem: Filesystem) -> AsyncIterator[Node]:
    async with serving(cluster, filesystem, LINES) as node:
        yield node


@asynccontextmanager
async def serving(cluster: Cluster, filesystem: Filesystem, content: bytes) -> AsyncIterator[Node]:
    await write_fsynced(filesystem, b"file", content)
    node = await in_thread(Node, cluster, await hold(cluster, b"file"))
    try:
        yield node
        assert (await in_thread(node.runner.ping))["jobs"] == 0
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(node.runner.stop)


def names(cluster: Cluster) -> set[bytes]:
    return set(cluster.meta.engine.table.inodes[ROOT_INO].entries or ())


def command(text: str, **options: Any) -> Request:
    return Request("command", "sh", (text,), shell=True, **options)


WC, SHA256, GZIP = (Request("function", name) for name in ("wc", "sha256", "gzip"))


# -- results ---------------------------------------------------------------------------------------------------------


async def test_a_function_over_all_bytes_those_of_another_node_included(node: Node) -> None:
    told = await node.run(SHA256)
    assert (told["failure"], told["error"]) == ("", "")
    assert hashlib.sha256(LINES).hexdigest() in str(told["result"])
    local = sum(len(view) for view in node.held(7).values())
    assert (told["local_bytes"], told["network_bytes"]) == (local, len(LINES) - local)


async def test_partials_of_runs_are_reduced_to_what_the_whole_gives(node: Node) -> None:
    whole = await node.run(WC)
    mapped = await node.run(WC, mode="map")
    assert (mapped["failure"], len(mapped["partials"])) == ("", 2)
    reduced = await in_thread(node.runner.reduce, node.task(WC), mapped["partials"])
    assert reduced["result"] == whole["result"]
    assert LINES.count(b"\n") in whole["result"].values()


async def test_a_stream_goes_to_the_output_or_is_kept_if_it_is_short(
    node: Node, cluster: Cluster, filesystem: Filesystem
) -> None:
    told = await node.run(GZIP, output())
    assert (told["failure"], told["stdout"]) == ("", b"")
    written = await read_all(filesystem, b"out")
    assert gzip.decompress(written) == LINES
    assert told["output_bytes"] == len(written) > KEPT_OUTPUT_BYTES
    told = await node.run(GZIP)
    assert told["failure"] == "function"
    assert "name an output" in told["error"]
    node.input = Input(node.input.ino, "file", 99, {0: node.input.chunks[0]})
    assert gzip.decompress((await node.run(GZIP))["stdout"]) == LINES[:99]


async def test_a_value_goes_to_the_output_as_a_line_of_json(node: Node, filesystem: Filesystem) -> None:
    told = await node.run(WC, output())
    assert told["result"] is None
    assert b"%d" % LINES.count(b"\n") in await read_all(filesystem, b"out")
    assert (await read_all(filesystem, b"out")).endswith(b"}\n")


async def test_an_empty_file(cluster: Cluster, filesystem: Filesystem) -> None:
    async with serving(cluster, filesystem, b"") as node:
        assert hashlib.sha256().hexdigest() in str((await node.run(SHA256))["result"])
        assert (await node.run(command("wc -c")))["stdout"].strip() == b"0"


async def test_a_command_is_fed_the_file_or_told_a_path(node: Node, filesystem: Filesystem) -> None:
    for text in ("sha256sum", "sha256sum < {}"):
        told = await node.run(command(text))
        assert (told["failure"], told["exit_code"]) == ("", 0), told
        assert told["stdout"].startswith(hashlib.sha256(LINES).hexdigest().encode())
    told = await node.run(command("cat"), output())
    assert told["output_bytes"] == len(LINES)
    assert await read_all(filesystem, b"out") == LINES


async def test_what_is_not_kept_of_a_command_s_output_is_told(node: Node) -> None:
    told = await node.run(command("cat"))
    assert told["failure"] == ""
    assert told["stdout"] == LINES[:KEPT_OUTPUT_BYTES]
    assert b"more bytes of output were not kept" in told["stderr"]


@pytest.fixture
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module that jobs may name."""
    (tmp_path / "module_of_a_job.py").write_text(MODULE)
    tmp_path.chmod(0o755)
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.usefixtures("module")
async def test_a_python_function(node: Node) -> None:
    told = await node.run(Request("python", "module_of_a_job:lines", (3,)))
    assert told["result"] == [LINES.count(b"\n"), [3], OWN]
    sizes = Request("python", "module_of_a_job:sizes")
    mapped = await node.run(sizes, mode="map")
    reduced = await in_thread(node.runner.reduce, node.task(sizes), mapped["partials"])
    assert reduced["result"] == [CHUNK_SIZE_BYTES, CHUNK_SIZE_BYTES, 777], "a chunk is a chunk, wherever it is"
    told = await node.run(Request("python", "module_of_a_job:long"))
    assert (told["failure"], told["result"]) == ("function", None)
    assert "name an output" in told["error"]


SHOUTED = b"".join(LINES[at : at + CHUNK_SIZE_BYTES][-1000:].upper() for at in range(0, len(LINES), CHUNK_SIZE_BYTES))


@pytest.mark.usefixtures("module")
async def test_a_python_pair_gives_the_same_split_and_whole(node: Node, filesystem: Filesystem) -> None:
    """A chunk is one call of map however runs are cut, and reduce gets what map made in the order of the file."""
    starts = range(0, len(LINES), CHUNK_SIZE_BYTES)
    places = [[LINES[start:][:5].decode(), min(CHUNK_SIZE_BYTES, len(LINES) - start)] for start in starts]
    for name, expected in (("places", [places, OWN]), ("shouted", None)):
        asked = Request("python", f"module_of_a_job:{name}", split=True)
        whole = await node.run(asked)
        mapped = await node.run(asked, mode="map")
        assert (mapped["failure"], mapped["error"], len(mapped["partials"])) == ("", "", 2)
        reduced = await in_thread(node.runner.reduce, node.task(asked), mapped["partials"])
        for told in (whole, reduced):
            assert (told["failure"], told["result"]) == ("", expected)
            assert told["stdout"] == (b"" if expected else SHOUTED)
    told = await in_thread(node.runner.reduce, node.task(asked, output()), mapped["partials"])
    assert told["output_bytes"] == len(SHOUTED)
    assert await read_all(filesystem, b"out") == SHOUTED


@pytest.mark.usefixtures("module")
@pytest.mark.parametrize("mode", ["map", "whole"])
async def test_a_python_function_that_is_no_pair_cannot_be_split(node: Node, mode: str) -> None:
    told = await node.run(Request("python", "module_of_a_job:lines", split=True), mode=mode)
    error = "module_of_a_job:lines has no map and reduce, so it cannot be split"
    assert (told["failure"], told["error"], told["stderr"], told["partials"]) == ("function", error, b"", [])


@pytest.mark.usefixtures("module")
async def test_partials_that_are_too_long_together_are_an_error(node: Node, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gridfs.offload.attempt.PARTIALS_MAX_BYTES", 2500)
    told = await node.run(Request("python", "module_of_a_job:shouted", split=True), mode="map")
    assert told["failure"] == "function"
    assert "partial results of one process" in told["error"]


# -- failures --------------------------------------------------------------------------------------------------------


async def test_a_function_that_does_not_exist(node: Node) -> None:
    told = await node.run(Request("function", "nothing"))
    assert told["failure"] == "function"
    assert "nothing" in told["error"]


async def test_a_command_that_fails_leaves_no_output_and_its_exit_code(node: Node, cluster: Cluster) -> None:
    told = await node.run(command("cat; echo oh >&2; exit 3"), output())
    assert (told["failure"], told["exit_code"], told["stderr"]) == ("function", 3, b"oh\n")
    assert names(cluster) == {b"file"}


async def test_an_output_that_exists_by_now_is_a_failure(node: Node, filesystem: Filesystem) -> None:
    await write_fsynced(filesystem, b"out", b"mine")
    told = await node.run(command("cat"), output())
    assert told["failure"] == "function"
    assert os.strerror(errno.EEXIST) in told["error"]
    assert await read_all(filesystem, b"out") == b"mine"


@pytest.mark.parametrize("request_", [SHA256, command("cat"), command("cat {}")])
async def test_bytes_that_nobody_has_any_more(node: Node, cluster: Cluster, request_: Request) -> None:
    node.here.clear()
    with faulty(cluster, None, "read_held", 3, Kind.FAIL):
        told = await node.run(request_, output())
    assert told["failure"] == "bytes lost"
    assert "is lost" in told["error"]
    assert names(cluster) == {b"file"}


async def test_limits_of_time_and_memory(node: Node) -> None:
    told = await node.run(command("sleep 60", timeout_s=0.3))
    assert told["failure"] == "timeout"
    told = await node.run(command("head -c 400000000 /dev/zero | tail -n 1", memory_bytes=64 * MIB))
    assert told["failure"] in ("memory", "function")
    assert told["failure"] or told["exit_code"]


# -- cancelling ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["sleep 60", "cat >&2; sleep 60", "trap '' TERM; while true; do sleep 1; done", "yes"])
async def test_cancelling_ends_a_command_soon_and_leaves_nothing(node: Node, cluster: Cluster, text: str) -> None:
    told: dict[str, Any] = {}

    async def run() -> None:
        told.update(await node.run(command(text), output()))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(run)
        await node.until(lambda: len(names(cluster)) == 2)
        with trio.fail_after(LATE_S):
            await in_thread(node.runner.cancel, 7)
            await node.until(lambda: told)
    assert (told["failure"], told["error"]) == ("cancelled", "the job was cancelled")
    assert names(cluster) == {b"file"}


async def test_cancelling_ends_one_that_waits_for_a_chunk_server(node: Node, cluster: Cluster) -> None:
    node.here.clear()
    told: dict[str, Any] = {}

    async def run() -> None:
        told.update(await node.run(SHA256))

    with faulty(cluster, None, "read_held", 1, Kind.STALL) as fault:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await fault.met.wait()
            with trio.fail_after(LATE_S):
                await in_thread(node.runner.cancel, 7)
                await node.until(lambda: told)
    assert told["failure"] == "cancelled"


async def test_an_attempt_that_was_cancelled_before_it_arrived_is_not_begun_but_the_next_one_is(node: Node) -> None:
    await in_thread(node.runner.cancel, 7, 1)
    assert (await node.run(SHA256))["failure"] == "cancelled"
    assert (await node.run(SHA256, attempt=2))["failure"] == ""


async def test_cancelling_what_does_not_run_is_no_error(node: Node) -> None:
    await in_thread(node.runner.cancel, 999)
    assert (await node.run(SHA256))["failure"] == ""


async def test_progress_is_told_while_it_runs(node: Node) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(node.run, command("cat >/dev/null; sleep 60"))
        await node.until(lambda: node.runner.progress() == {7: len(LINES)})
        await in_thread(node.runner.cancel, 7)
    assert node.runner.progress() == {}


async def test_a_sweep_removes_what_a_runner_that_died_has_left(node: Node, cluster: Cluster, filesystem: Filesystem) -> None:
    await write_fsynced(filesystem, b".out.job-7-1", b"half")
    await in_thread(node.runner.sweep, node.task(SHA256, output(), attempt=1))
    assert names(cluster) == {b"file"}
