"""One process of `tools/bench scale`: an inode table's server, or a mount's replica of its table, over a store that is there.

usage: python tools/bench_scale_roles.py server DIRECTORY
       python tools/bench_scale_roles.py replica PORT

Each prints what it measured as one JSON object. The server then serves until its standard input ends.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from collections.abc import Callable
from typing import Any

import trio

from bench_memory import resident_bytes
from gridfs.buffers import keep_freed_memory
from gridfs.chunk.client import ChunkClient
from gridfs.meta.client import MetaClient
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.server import InodeTable
from gridfs.types import Address, Endpoints, PlacementMap
from gridfs.vfs.filesystem import Filesystem

SECRET = bytes(32)
"""Both ends are ours, on the loopback, for a minute."""
LOOPBACK = "127.0.0.1"


def timed(work: Callable[[], Any]) -> tuple[float, Any]:
    """How long `work` took in seconds, and what it returned."""
    started = time.perf_counter()
    result = work()
    return time.perf_counter() - started, result


def say(found: dict[str, Any]) -> None:
    """Tell the bench, which waits for the line."""
    print(json.dumps(found), flush=True)


def serve(directory: str) -> None:
    """Load the store and listen, as the actor does when Ray has started it again."""
    before = resident_bytes()
    restart_s, server = timed(lambda: InodeTable(directory, LOOPBACK, SECRET))
    grown = resident_bytes() - before
    server.publish(PlacementMap(1, ()).pack())
    say({"restart_s": restart_s, "bytes": grown, "port": server.endpoint()[1], "inodes": server.statistics()["inodes"]})
    sys.stdin.read()
    server.stop()


async def attach(port: int) -> None:
    """Attach as a mount does, and list the largest directory through the vfs."""
    keep_freed_memory()
    before, started = resident_bytes(), time.perf_counter()
    meta = MetaClient(Endpoints(Address(LOOPBACK, port), SECRET), "/nowhere")
    async with trio.open_nursery() as nursery:
        await nursery.start(meta.run)
        attach_s = time.perf_counter() - started
        grown = resident_bytes() - before
        filesystem, fh = await open_largest(meta)
        list_s, listed = timed(lambda: sum(1 for _ in filesystem.names(fh, 0)) - len((b".", b"..")))
        pause_s, _ = timed(gc.collect)
        say({"attach_s": attach_s, "bytes": grown, "list_s": list_s, "listed": listed, "pause_s": pause_s})
        nursery.cancel_scope.cancel()


async def open_largest(meta: MetaClient) -> tuple[Filesystem, int]:
    """A filesystem, and a handle of the largest directory below the root."""
    filesystem = Filesystem(meta, ChunkClient(SECRET, lambda: meta.client_identity, lambda: meta.placement, meta.settle))
    entries = meta.table.directory_entries
    return filesystem, await filesystem.opendir(max(entries(ROOT_INO).values(), key=lambda ino: len(entries(ino))))


if __name__ == "__main__":
    role, argument = sys.argv[1:]
    if role == "server":
        serve(argument)
    else:
        trio.run(attach, int(argument))
