"""One end of the connections that `tools/bench` holds a mount against: raw TCP, and the streams without FUSE.

usage: python tools/bench_wire_roles.py server ADDRESS
       python tools/bench_wire_roles.py client ADDRESS TCP_PORT STREAM_PORT MIB

The server prints its two ports as one JSON object, and serves until its standard input ends; the client prints its figures.
"""

from __future__ import annotations

import json
import socket
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any

import trio

from gridfs.buffers import allocate, keep_freed_memory
from gridfs.stream.connection import Connection, Reply
from gridfs.stream.endpoint import Answer, Endpoint, Methods, Peer
from gridfs.stream.standing import standing
from gridfs.stream.thread import TrioThread
from gridfs.types import Address

SECRET = bytes(32)
"""Both ends are ours, for a minute."""
MIB = 1 << 20
BLOCK_BYTES = MIB
"""What the kernel hands a mount at a time, and so what a mount sends."""
WRITES_PENDING, READS_PENDING = 64, 8
"""As a mount: its write window has 64 MiB, its read-ahead 8 MiB a handle."""
CHUNK_BLOCKS = 8
_WRITE, _READ = b"w", b"r"


class Blocks:
    """A service that keeps one chunk's bytes, received and sent in place, as a chunk server does with an open chunk."""

    def __init__(self) -> None:
        self.methods: Methods = {"write": self.write, "read": self.read}
        self._chunk = memoryview(bytearray(CHUNK_BLOCKS * BLOCK_BYTES))

    def greet(self, identity: dict[str, Any]) -> dict[str, Any]:
        return {}

    def welcome(self, peer: Peer) -> None:
        pass

    def goodbye(self, peer: Peer) -> None:
        pass

    async def write(self, peer: Peer, index: int) -> Answer:
        await peer.receive_payload(self._block(index))
        return Answer()

    async def read(self, peer: Peer, index: int) -> Answer:
        return Answer(None, (self._block(index),))

    def _block(self, index: int) -> memoryview:
        start = index % CHUNK_BLOCKS * BLOCK_BYTES
        return self._chunk[start : start + BLOCK_BYTES]


# -- raw TCP ---------------------------------------------------------------------------------------------------------


def serve_tcp(listener: socket.socket) -> None:
    """For each connection: take or send as many blocks as it asks for, in the plainest loop there is."""
    block = memoryview(bytearray(BLOCK_BYTES))
    while True:
        sock, _ = listener.accept()
        with sock:
            while words := sock.recv(5, socket.MSG_WAITALL):
                blocks = int.from_bytes(words[1:])
                if words[:1] == _READ:
                    send_blocks(sock, block, blocks)
                else:
                    take_blocks(sock, block, blocks)
                    sock.sendall(_WRITE)


def send_blocks(sock: socket.socket, block: memoryview, blocks: int) -> None:
    for _ in range(blocks):
        sock.sendall(block)


def take_blocks(sock: socket.socket, block: memoryview, blocks: int) -> None:
    left = blocks * BLOCK_BYTES
    while left and (count := sock.recv_into(block, min(left, BLOCK_BYTES))):
        left -= count
    if left:
        raise EOFError(f"{left} bytes did not come")


def tcp(address: Address, direction: bytes, blocks: int) -> float:
    """MB/s over a fresh connection that is warmed up by an eighth of the work, until the other end has all of it, or we do."""
    block = memoryview(bytearray(BLOCK_BYTES))
    with socket.create_connection((address.host, address.port)) as sock:
        for count in (max(blocks // 8, 1), blocks):
            started = time.perf_counter()
            sock.sendall(direction + count.to_bytes(4))
            if direction == _READ:
                take_blocks(sock, block, count)
            else:
                send_blocks(sock, block, count)
                sock.recv(1)
        return blocks * BLOCK_BYTES / 1e6 / (time.perf_counter() - started)


# -- streams ---------------------------------------------------------------------------------------------------------


async def write_blocks(connection: Connection, blocks: int) -> None:
    """Pipelined writes, as a mount's write window sends them."""
    buffers = [allocate(BLOCK_BYTES) for _ in range(WRITES_PENDING)]
    await _pipelined(blocks, WRITES_PENDING, lambda i: connection.submit("write", i, payload=buffers[i % WRITES_PENDING]))


async def read_blocks(connection: Connection, blocks: int) -> None:
    """Pipelined reads, as a mount's read-ahead asks for them."""
    views = [memoryview(allocate(BLOCK_BYTES)) for _ in range(READS_PENDING)]
    await _pipelined(blocks, READS_PENDING, lambda i: connection.submit("read", i, into=views[i % READS_PENDING]))


async def _pipelined(count: int, pending: int, submit: Callable[[int], Reply]) -> None:
    replies: list[Reply] = []
    for index in range(count):
        if index >= pending:
            await replies[index - pending].wait()
        replies.append(submit(index))
    for reply in replies[-pending:]:
        await reply.wait()


async def stream(address: Address, work: Callable[[Connection, int], Awaitable[None]], blocks: int) -> float:
    """MB/s over a fresh connection that is warmed up by an eighth of the work."""
    async with standing(address, SECRET, {}) as connection:
        await work(connection, max(blocks // 8, 1))
        started = time.perf_counter()
        await work(connection, blocks)
        return blocks * BLOCK_BYTES / 1e6 / (time.perf_counter() - started)


# -- the two processes -----------------------------------------------------------------------------------------------


async def _serve(endpoint: Endpoint, started: Callable[[], None]) -> None:
    started()
    await endpoint.serve()


def serve(host: str) -> None:
    listener = socket.create_server((host, 0))
    threading.Thread(target=serve_tcp, args=(listener,), daemon=True).start()
    endpoint = Endpoint(Address(host, 0), SECRET, Blocks())
    thread = TrioThread("streams", partial(_serve, endpoint))
    print(json.dumps([listener.getsockname()[1], endpoint.address.port]), flush=True)
    sys.stdin.read()
    thread.stop()


def measure(host: str, tcp_port: int, stream_port: int, blocks: int) -> dict[str, float]:
    raw, framed = Address(host, tcp_port), Address(host, stream_port)
    return {
        "tcp_write": tcp(raw, _WRITE, blocks),
        "stream_write": trio.run(stream, framed, write_blocks, blocks),
        "tcp_read": tcp(raw, _READ, blocks),
        "stream_read": trio.run(stream, framed, read_blocks, blocks),
    }


if __name__ == "__main__":
    keep_freed_memory()
    role, host, *numbers = sys.argv[1:]
    if role == "server":
        serve(host)
    else:
        print(json.dumps(measure(host, *map(int, numbers))))
