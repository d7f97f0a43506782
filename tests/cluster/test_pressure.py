"""New chunks go where memory really is free."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import trio

from gridfs import cluster
from gridfs.chunk.server import SAMPLE_INTERVAL_S
from gridfs.types import NodeSample, PlacementNode
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import LIMIT_BYTES, WAIT_S, Real, mounted_weight, until, write_fsynced

FILES = 300
_HOLD = """
import sys
held = bytearray(int(sys.argv[1]))
held[::4096] = b"1" * len(held[::4096])
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def memory_in_use(real: Real, host: str, size_bytes: int) -> Iterator[None]:
    """A process of that host's memory group uses so much memory."""
    node = real.node(host)
    if node.cgroup is None:
        pytest.skip(node.note)
    command = cluster.node_command(node, [sys.executable, "-c", _HOLD, str(size_bytes)])
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield
        finally:
            process.kill()


async def settled_sample(real: Real, host: str) -> NodeSample:
    """The node's memory once it has been the same for two samples: freed memory is given back in the background."""
    with trio.fail_after(WAIT_S):
        while True:
            before = real.chunk_server(host).sample
            await trio.sleep(2 * SAMPLE_INTERVAL_S + 0.2)
            after = real.chunk_server(host).sample
            if abs(after.available_bytes - before.available_bytes) < 0.01 * after.total_bytes:
                return after


async def spread(real: Real, filesystem: Filesystem, name: str) -> Counter[str]:
    """How many of FILES new chunks each host got."""
    counts: Counter[str] = Counter()
    for number in range(FILES):
        ino = await write_fsynced(filesystem, f"{name}{number}".encode(), b"some bytes")
        counts.update(filesystem.layout(ino)["nodes"])
    return counts


def weight(node: PlacementNode | None) -> float:
    """Its weight, 0 for one that does not answer."""
    return node.weight if node else 0.0


async def test_a_worker_whose_memory_is_used_gets_fewer_chunks(real: Real, mounted: Filesystem) -> None:
    """As many fewer as its weight says, which comes from the node's real free memory."""
    sample = await settled_sample(real, "worker1")
    idle = weight(real.alive("worker1"))
    load = sample.available_bytes - int(0.16 * sample.total_bytes)  # 84 % in use: warm, not hot
    with memory_in_use(real, "worker1", load):
        await until(lambda: 0 < weight(real.alive("worker1")) < 0.6 * idle)
        loaded, other = weight(real.alive("worker1")), weight(real.alive("worker2"))
        await until(lambda: mounted_weight(mounted, "worker1") <= 1.5 * loaded)
        counts = await spread(real, mounted, "loaded")
        expected = FILES * loaded / (loaded + other)
        assert counts["worker1"] < counts["worker2"]
        assert abs(counts["worker1"] - expected) < 5 * (expected + 4) ** 0.5 + 5
    await until(lambda: weight(real.alive("worker1")) > idle / 2)


async def test_a_hot_worker_gets_no_chunk_until_it_has_cooled_down(real: Real, mounted: Filesystem) -> None:
    sample = await settled_sample(real, "worker1")
    load = sample.available_bytes - int(0.04 * sample.total_bytes)
    with memory_in_use(real, "worker1", load):
        await until(lambda: (node := real.alive("worker1")) and node.level == "hot")
        await until(lambda: mounted_weight(mounted, "worker1") == 0)
        counts = await spread(real, mounted, "hot")
        assert counts == {"worker2": FILES}
    await until(lambda: (node := real.alive("worker1")) and node.level == "calm")
    await until(lambda: mounted_weight(mounted, "worker1") > 0)
    assert (await spread(real, mounted, "calm"))["worker1"] > FILES / 5


async def test_the_free_memory_told_is_what_the_node_has(real: Real) -> None:
    """The figures of a worker are those of its memory group, not of the machine."""
    server = real.chunk_server("worker1")
    if real.node("worker1").cgroup is None:
        pytest.skip(real.node("worker1").note)
    assert server.sample.total_bytes <= LIMIT_BYTES
    assert server.free_bytes <= server.sample.available_bytes
