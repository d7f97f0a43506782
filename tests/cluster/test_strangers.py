"""Nobody without the filesystem's secret gets anything from a server."""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Iterator

import msgpack
import psutil
import pytest
import trio

from gridfs import cluster, config
from gridfs.errors import ConnectionLost
from gridfs.stream.connection import Connection
from gridfs.types import Address
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import Real, read_all, write_closed

SECONDS = 10.0


def servers(real: Real) -> list[Address]:
    """Where the inode table and a chunk server listen."""
    return [real.endpoints.inode_table, real.chunk_server("worker1").address]


def frame(header: object, payload: bytes = b"") -> bytes:
    """A frame as the protocol has it."""
    packed: bytes = msgpack.packb(header)
    return struct.pack(">II", len(packed), len(payload)) + packed + payload


def answer_to(address: Address, sent: bytes) -> bytes:
    """All that the server says, after its greeting, to a stranger who sends that."""
    with socket.create_connection((address.host, address.port), timeout=SECONDS) as sock:
        header, payload = struct.unpack(">II", sock.recv(8, socket.MSG_WAITALL))
        sock.recv(header + payload, socket.MSG_WAITALL)
        said = b""
        try:
            sock.sendall(sent)
            while part := sock.recv(1 << 16):
                said += part
        except ConnectionError:
            pass
        return said


@pytest.mark.parametrize(
    "sent",
    [
        b"GET / HTTP/1.1\r\n\r\n",
        frame([bytes(32), msgpack.packb({"role": "mount", "epoch": 0}), bytes(32)]),
        frame([1, "read", [2, 0, 0, 100]]),
        frame([1, "apply", [1, [["unlink", 1, 1, b"file"]]]]),
        frame("x" * 1000),
        struct.pack(">II", 1 << 31, 1 << 31) + bytes(1000),
    ],
    ids=["http", "wrong proof", "read at once", "apply at once", "no list", "giant frame"],
)
async def test_a_stranger_is_told_nothing(real: Real, mounted: Filesystem, sent: bytes) -> None:
    """The connection is closed without a word, and the servers serve on."""
    await write_closed(mounted, b"file", b"secret content")
    for address in servers(real):
        assert await trio.to_thread.run_sync(answer_to, address, sent) == b""
    assert await read_all(mounted, b"file") == b"secret content"


async def test_another_secret_is_refused_on_both_sides(real: Real) -> None:
    for address in servers(real):
        with pytest.raises(ConnectionLost):
            await Connection.open(address, bytes(32), {"role": "mount", "epoch": 0, "client": "x"})


def processes(real: Real) -> Iterator[psutil.Process]:
    """All processes of the nodes."""
    for node in real.record.nodes:
        yield from psutil.Process(node.pid).children(recursive=True)


async def test_secrets_are_on_no_command_line_and_in_private_files(real: Real) -> None:
    secrets = {real.endpoints.secret.hex(), cluster.token_path().read_text().strip()}
    for process in processes(real):
        for told in (" ".join(process.cmdline()), " ".join(process.environ().values())):
            assert not any(secret in told for secret in secrets), process
    for path in (config.home() / "secret", cluster.token_path(), cluster.record_path()):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_uid == os.geteuid()
