"""Replies that are taken in by who waits for them, beside the task that receives; however they arrive, each is right."""

import random
import secrets
import socket
import struct
from collections.abc import Awaitable, Callable
from contextlib import suppress

import msgpack
import pytest
import trio
import trio.lowlevel

from gridfs.errors import ConnectionLost, FilesystemError
from gridfs.stream import lookout
from gridfs.stream.connection import Connection, Reply
from gridfs.stream.lookout import looking_out
from tests.unit.streams import talking

STAGING_BYTES = 64 << 10
LENGTHS = struct.Struct(">II")


@pytest.fixture(autouse=True)
def _unhurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine may take the processor away for longer than a loop otherwise goes on looking."""
    monkeypatch.setattr(lookout, "BUSY_S", 10.0)


def frame(number: int, result: object, payload: bytes = b"", code: int = 0) -> bytes:
    """A reply as a server sends it."""
    header: bytes = msgpack.packb([number, code, result])
    return LENGTHS.pack(len(header), len(payload)) + header + payload


def with_connection(main: Callable[[Connection, socket.socket], Awaitable[None]]) -> None:
    """Run `main` in a loop with a lookout, with a connection whose last reply came soon, and the server's end of it."""

    async def run() -> None:
        with looking_out():
            async with talking() as (connection, theirs):
                connection._is_quick = True
                await main(connection, theirs)

    trio.run(run)


def test_a_reply_that_is_there_is_taken_in_without_yielding() -> None:
    async def main(connection: Connection, server: socket.socket) -> None:
        into = memoryview(bytearray(5))
        reply = connection.submit("read", into=into)
        server.sendall(frame(1, "result", b"bytes"))
        reply.look()
        assert (reply.result, bytes(into)) == ("result", b"bytes")
        assert await reply.wait() == "result"

    with_connection(main)


def test_replies_before_it_are_settled_first() -> None:
    async def main(connection: Connection, server: socket.socket) -> None:
        settled: list[int] = []
        replies = [connection.submit("x", callback=lambda reply: settled.append(reply.number)) for _ in range(3)]
        server.sendall(frame(1, 1) + frame(2, 2) + frame(3, 3))
        replies[1].look()
        assert settled == [1, 2, 3]
        assert await replies[2].wait() == 3

    with_connection(main)


def test_what_came_with_it_is_settled_although_nobody_looks_for_it() -> None:
    """The receiver does not see what was taken from the kernel together with the reply that was looked for."""

    async def main(connection: Connection, server: socket.socket) -> None:
        replies = [connection.submit("x", into=memoryview(bytearray(2))) for _ in range(3)]
        late = frame(3, 3, b"33")
        server.sendall(frame(1, 1, b"11") + frame(2, 2, b"22") + late[:-1])
        replies[0].look()
        assert replies[1].payload_bytes == 2
        connection._is_quick = False
        server.sendall(late[-1:])
        assert await replies[2].wait() == 3

    with_connection(main)


def test_an_error_is_raised_to_who_waits() -> None:
    async def main(connection: Connection, server: socket.socket) -> None:
        reply = connection.submit("x")
        server.sendall(frame(1, "no room", code=28))
        with pytest.raises(FilesystemError, match="no room"):
            await reply.wait()

    with_connection(main)


@pytest.mark.parametrize("said", [frame(7, None), frame(1, None, b"no room for it"), LENGTHS.pack(1 << 31, 0)])
def test_a_server_that_breaks_the_protocol_ends_the_connection(said: bytes) -> None:
    async def main(connection: Connection, server: socket.socket) -> None:
        reply = connection.submit("x")
        server.sendall(said)
        reply.look()
        with pytest.raises(ConnectionLost):
            await reply.wait()
        assert connection.lost

    with_connection(main)


def test_a_server_that_ends_is_noticed_by_the_receiver() -> None:
    async def main(connection: Connection, server: socket.socket) -> None:
        reply = connection.submit("x")
        server.close()
        reply.look()
        with pytest.raises(ConnectionLost):
            await reply.wait()

    with_connection(main)


@pytest.mark.parametrize("seed", range(40))
def test_replies_are_right_however_they_arrive_and_whoever_takes_them_in(seed: int) -> None:
    """The bytes come in fragments that end anywhere; between them somebody looks, or the receiver has its turn, or neither."""
    dice = random.Random(seed)

    async def main(connection: Connection, server: socket.socket) -> None:
        contents = [secrets.token_bytes(dice.choice((0, 1, 100, 4096, STAGING_BYTES - 40, 90_000))) for _ in range(12)]
        buffers = [memoryview(bytearray(len(content))) for content in contents]
        replies: list[Reply] = [connection.submit("read", into=buffer) for buffer in buffers]
        sent = b"".join(frame(number, number, content) for number, content in enumerate(contents, 1))
        server.setblocking(False)
        while sent:
            with suppress(BlockingIOError):
                sent = sent[server.send(sent[: dice.choice((1, 5, 8, 13, 1000, 5000, 70_000))]) :]
            what = dice.random()
            if what < 0.5:
                connection._is_quick = True
                dice.choice(replies[: 1 + dice.randrange(len(replies))]).look()
            elif what < 0.9:
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
        connection._is_quick = False
        for number, reply in enumerate(replies, 1):
            assert await reply.wait() == number
        assert [bytes(buffer) for buffer in buffers] == contents

    with_connection(main)
