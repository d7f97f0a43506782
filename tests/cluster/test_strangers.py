"""Nobody without the filesystem's secret gets anything from a server."""

from __future__ import annotations

import base64
import os
import random
import socket
import struct
from pathlib import Path

import msgpack
import pytest
import trio

from gridfs import cluster, config
from gridfs.errors import ConnectionLost
from gridfs.stream import handshake
from gridfs.stream.connection import Connection
from gridfs.types import Address
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.gate import Gate
from tests.cluster.real import Real, read_all, until, write_fsynced

SECONDS = 10.0
HANDSHAKE_MAX_BYTES = 16 << 10


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
        frame([None, b"refused"]),
        frame([bytes(32), b"\xc1", bytes(32)]),
        frame([bytes(32), msgpack.packb({"role": "mount", "epoch": 1 << 60}), bytes(32)], bytes(1000)),
        struct.pack(">II", 100, 0) + b"\xc1" * 100,
        struct.pack(">II", HANDSHAKE_MAX_BYTES + 1, 0),
        struct.pack(">II", 1 << 31, 1 << 31) + bytes(1000),
        random.Random(5).randbytes(1 << 16),
    ],
    ids=[
        *("http", "wrong proof", "read at once", "apply at once", "no list", "refusal", "no identity", "payload"),
        *("no msgpack", "large announcement", "giant announcement", "noise"),
    ],
)
async def test_a_stranger_is_told_nothing(real: Real, mounted: Filesystem, sent: bytes) -> None:
    """The connection is closed without a word, and the servers serve on."""
    await write_fsynced(mounted, b"file", b"secret content")
    for address in servers(real):
        assert await trio.to_thread.run_sync(answer_to, address, sent) == b""
    assert await read_all(mounted, b"file") == b"secret content"


async def test_another_secret_is_refused_on_both_sides(real: Real) -> None:
    for address in servers(real):
        with pytest.raises(ConnectionLost):
            await Connection.open(address, bytes(32), {"role": "mount", "epoch": 0, "client": "x"})


async def test_a_stranger_who_says_nothing_or_half_a_frame_is_not_waited_for(real: Real) -> None:
    """All at once, so that none of them holds up another."""

    async def is_closed(address: Address, sent: bytes) -> None:
        said = await trio.to_thread.run_sync(answer_to, address, sent)
        assert said == b""

    with trio.fail_after(2 * handshake.TIMEOUT_S):
        async with trio.open_nursery() as nursery:
            for address in servers(real):
                for sent in (b"", b"\0\0", struct.pack(">II", 1000, 0) + bytes(10)):
                    nursery.start_soon(is_closed, address, sent)


async def test_what_a_client_has_said_is_of_no_use_to_who_listened(real: Real) -> None:
    """The whole conversation of a client that was let in, said again on a fresh connection, proves nothing."""
    for address in servers(real):
        told = identity()
        async with trio.open_nursery() as nursery:
            gate = Gate(address)
            await nursery.start(gate.run)
            await let_in(real, gate.address, told)
            heard = bytes(gate.sent[0])
            assert msgpack.packb(told) in heard
            for _ in range(2):
                assert await trio.to_thread.run_sync(answer_to, address, heard) == b""
            nursery.cancel_scope.cancel()
        await let_in(real, address, told)


async def test_a_server_s_proof_is_not_taken_for_a_client_s(real: Real) -> None:
    """A stranger who has another server answer the challenge, and sends that answer back, is not let in."""
    for address in servers(real):
        assert await trio.to_thread.run_sync(reflected, address) == b""


def reflected(address: Address) -> bytes:
    """What a server says to the very parts of its own greeting."""
    with socket.create_connection((address.host, address.port), timeout=SECONDS) as sock:
        header, payload = struct.unpack(">II", sock.recv(8, socket.MSG_WAITALL))
        magic, nonce = msgpack.unpackb(sock.recv(header + payload, socket.MSG_WAITALL))
    return answer_to(address, frame([nonce, magic, nonce]))


@pytest.mark.parametrize("sent", [struct.pack(">II", 1 << 31, 0), struct.pack(">II", 10, 1 << 31), frame("no list")])
async def test_a_client_that_breaks_the_protocol_loses_its_connection_and_no_other(real: Real, sent: bytes) -> None:
    address = real.chunk_server("worker1").address
    async with trio.open_nursery() as nursery:
        good, bad = [await Connection.open(address, real.endpoints.secret, identity()) for _ in "ab"]
        await nursery.start(good.run)
        await nursery.start(bad.run)
        assert len(await bad.call("space")) == 3
        bad._wire.send_now([sent])
        await until(lambda: bad.lost)
        assert len(await good.call("space")) == 3
        nursery.cancel_scope.cancel()


def identity() -> dict[str, object]:
    """Who may talk to any server: a client without a session."""
    return {"role": "client", "id": "x"}


async def let_in(real: Real, address: Address, told: dict[str, object]) -> None:
    """Connect as a client that holds the secret does, and let go again."""
    connection = await Connection.open(address, real.endpoints.secret, told)
    connection.close()
    await until(lambda: not real.statistics()["sessions"])


# -- where secrets are -----------------------------------------------------------------------------------------------


def test_secrets_are_on_no_command_line_and_in_no_environment(cluster_up: Real) -> None:
    processes = [process for node in cluster_up.record.nodes for process in cluster_up.processes(node.host)]
    assert len(processes) > 2 * len(cluster_up.record.nodes)
    for process in processes:
        try:
            told = b"".join(Path("/proc", str(process.pid), name).read_bytes() for name in ("cmdline", "environ"))
        except OSError:  # it has ended meanwhile
            continue
        assert not any(secret in told for secret in secret_texts(cluster_up)), process


def test_secrets_are_in_private_files(cluster_up: Real) -> None:
    for path in (config.home() / "secret", cluster.token_path(), cluster.record_path()):
        assert path.stat().st_mode & 0o777 == 0o600
        assert path.stat().st_uid == os.geteuid()
    assert cluster_up.record.temp_dir is not None
    assert Path(cluster_up.record.temp_dir).stat().st_mode & 0o777 == 0o700


def test_secrets_are_in_no_log(cluster_up: Real) -> None:
    """Neither in ours nor in Ray's."""
    logs = [path for path in cluster.log_dir().rglob("*") if path.is_file()]
    logs += [path for path in Path(cluster_up.record.temp_dir or "").rglob("logs/**/*") if path.is_file()]
    assert len(logs) > len(cluster_up.record.nodes)
    for path in logs:
        content = path.read_bytes()
        assert not any(secret in content for secret in secret_texts(cluster_up)), path


def secret_texts(real: Real) -> list[bytes]:
    """The filesystem's secret and Ray's token, in every form in which they could be told."""
    secret, token = real.endpoints.secret, cluster.token_path().read_bytes().strip()
    return [secret, secret.hex().encode(), base64.b64encode(secret), repr(secret).encode(), token]
