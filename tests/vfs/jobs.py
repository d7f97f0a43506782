"""Jobs of a node, as a runner has them, over the cluster in this process."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from typing import Any, TypeVar

import trio

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.gateway import Gateway
from gridfs.offload.job import Input, Job, Output, Request, Submitter
from gridfs.stream.standing import standing
from gridfs.types import PlacementMap
from tests.vfs.cluster import Cluster

T = TypeVar("T")
SUBMITTER = Submitter(1000, 1001, (1002,))
PATTERN = bytes(range(256)) * (CHUNK_SIZE_BYTES // 256)


def job(
    number: int = 7,
    request: Request | None = None,
    *,
    input_: Input | None = None,
    output: Output | None = None,
    submitter: Submitter = SUBMITTER,
) -> Job:
    """A job that has been submitted, of an empty file unless it is given one."""
    return Job(number, request or Request("function", "wc"), submitter, input_ or Input(99, "input", 0), output, 1)


def output(name: bytes = b"out", *, overwrite: bool = False, parent: int = ROOT_INO) -> Output:
    """A new file in the root directory."""
    return Output(parent, name, f"/{name.decode()}", overwrite)


async def in_thread(function: Callable[..., T], *arguments: Any, **options: Any) -> T:
    """What it returns, called by a thread as those of Ray."""
    return await trio.to_thread.run_sync(partial(function, *arguments, **options))


@asynccontextmanager
async def gateway(cluster: Cluster) -> AsyncIterator[Gateway]:
    """A runner's connections to the cluster."""
    found = await in_thread(Gateway, cluster.secret)
    try:
        await in_thread(found.connect, cluster.inode_table, PlacementMap.unpack(cluster.meta.placement))
        yield found
    finally:
        with trio.CancelScope(shield=True):
            await in_thread(found.stop)


async def hold(cluster: Cluster, name: bytes, number: int = 7) -> Input:
    """A file of the root directory as it is now, held under the job's id; the inode table knows all of it."""
    table = cluster.meta.engine.table
    inode = table.lookup(ROOT_INO, name)
    chunks = {index: tuple(servers) for index, servers in table.directory.chunks(inode.ino).items()}
    for node in cluster.nodes:
        if indices := [index for index, servers in chunks.items() if node.name in servers]:
            async with standing(node.address, cluster.secret, {"role": "client"}) as connection:
                await connection.call("hold", number, inode.ino, indices)
    return Input(inode.ino, name.decode(), inode.size, chunks)
