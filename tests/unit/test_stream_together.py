"""Small requests and answers that go out together: none is held up, and all stay in order."""

from __future__ import annotations

import random
import secrets
import socket
import struct
from contextlib import suppress
from typing import Any

import msgpack
import pytest
import trio
import trio.testing

from gridfs.errors import FilesystemError
from gridfs.stream.endpoint import Answer, Peer
from gridfs.stream.lock import Promptly
from gridfs.stream.wire import Wire
from tests.unit.streams import Echo, connected, talking
from tests.unit.turns import Turns

LENGTHS = struct.Struct(">II")
MANY = 500


class Service(Echo):
    """Answers with what it was sent, in more ways."""

    def __init__(self) -> None:
        super().__init__()
        self.methods |= {"say": self.say, "show": self.show, "later": self.some_time}

    async def say(self, peer: Peer, what: int) -> Answer:
        return Answer(what)

    async def show(self, peer: Peer, what: int) -> Answer:
        return Answer(what, (bytes(what),))

    async def some_time(self, peer: Peer, what: int) -> Answer:
        async def later() -> Answer:
            for _ in range(what % 4):
                await trio.lowlevel.checkpoint()
            return Answer(what)

        return Answer(later=later)


# -- answers -----------------------------------------------------------------------------------------------------------


async def test_short_answers_to_requests_that_came_together_go_out_together(monkeypatch: pytest.MonkeyPatch) -> None:
    sends = 0
    send = Wire.send

    async def counted(self: Wire, buffers: list[Any]) -> None:
        nonlocal sends
        sends += 1
        await send(self, buffers)

    async with connected(Service) as connection:
        monkeypatch.setattr(Wire, "send", counted)
        replies = [connection.submit("say", number) for number in range(20)]
        assert [await reply.wait() for reply in replies] == list(range(20))
    assert sends <= 2


async def test_an_answer_does_not_wait_for_a_request_that_hangs() -> None:
    async with connected(Service) as connection:
        reply = connection.submit("say", 1)
        connection.submit("hang")
        assert await reply.wait() == 1


@pytest.mark.parametrize("seed", range(20))
async def test_answers_of_all_kinds_come_in_order(seed: int) -> None:
    dice = random.Random(seed)
    async with connected(Service) as connection:
        asked = [(dice.choice(("say", "say", "show", "later", "fail")), dice.randrange(1, 100)) for _ in range(300)]
        settled: list[int] = []
        buffers = [memoryview(bytearray(what)) for _, what in asked]
        replies = []
        for (method, what), buffer in zip(asked, buffers, strict=True):
            replies.append(connection.submit(method, what, into=buffer, callback=lambda reply: settled.append(reply.number)))
            if dice.random() < 0.1:
                await trio.lowlevel.checkpoint()
        for (method, what), reply in zip(asked, replies, strict=True):
            if method == "fail":
                with pytest.raises(FilesystemError) as raised:
                    await reply.wait()
                assert raised.value.errno == what
            else:
                assert await reply.wait() == what
                assert reply.payload_bytes == (what if method == "show" else 0)
        assert settled == sorted(settled)


async def test_requests_without_end_do_not_keep_others_from_their_turn() -> None:
    turns = Turns()
    async with connected(Service) as connection, trio.open_nursery() as nursery:
        replies = [connection.submit("say", 1) for _ in range(MANY)]
        nursery.start_soon(turns.take)
        await replies[-1].wait()
        nursery.cancel_scope.cancel()
    assert turns.count >= MANY // 40


# -- requests ----------------------------------------------------------------------------------------------------------


def numbers(server: socket.socket) -> list[int]:
    """Of the requests that have arrived, whole ones all."""
    server.setblocking(False)
    received, found = b"", []
    with suppress(BlockingIOError):
        while piece := server.recv(1 << 20):
            received += piece
    while received:
        header_bytes, payload_bytes = LENGTHS.unpack_from(received)
        found.append(msgpack.unpackb(received[LENGTHS.size : LENGTHS.size + header_bytes])[0])
        received = received[LENGTHS.size + header_bytes + payload_bytes :]
    return found


async def test_the_first_that_may_wait_goes_at_once_and_those_behind_it_together_at_the_next_turn() -> None:
    async with talking() as (connection, server):
        for _ in range(4):
            connection.submit("x", payload=b"bytes", may_wait=True)
        assert numbers(server) == [1]
        await trio.testing.wait_all_tasks_blocked()
        assert numbers(server) == [2, 3, 4]


async def test_one_that_may_not_wait_takes_those_before_it_along() -> None:
    async with talking() as (connection, server):
        for may_wait in (False, True, True, False):
            connection.submit("x", may_wait=may_wait)
        assert numbers(server) == [1, 2, 3, 4]


async def test_a_large_one_does_not_wait() -> None:
    async with talking() as (connection, server):
        for size_bytes in (0, 10, 100_000):
            connection.submit("x", payload=bytes(size_bytes), may_wait=True)
        assert numbers(server) == [1, 2, 3]


async def test_who_waits_for_a_reply_sends_what_waits() -> None:
    async with talking() as (connection, server):
        replies = [connection.submit("x", may_wait=True) for _ in range(3)]
        replies[1].look()
        assert numbers(server) == [1, 2, 3]


@pytest.mark.parametrize("seed", range(10))
async def test_all_arrive_in_order_also_when_the_server_does_not_take_them(seed: int) -> None:
    dice = random.Random(seed)
    received = bytearray()

    def receive(server: socket.socket) -> None:
        server.setblocking(False)
        with suppress(BlockingIOError):
            received.extend(server.recv(dice.choice((1000, 100_000, 1 << 20))))

    async with talking() as (connection, server):
        payloads = [secrets.token_bytes(dice.choice((0, 10, 4096, 300_000))) for _ in range(MANY)]
        for payload in payloads:
            connection.submit("x", payload=payload, may_wait=dice.random() < 0.8)
            what = dice.random()
            if what < 0.2:
                receive(server)
            elif what < 0.3:
                await trio.lowlevel.checkpoint()
        expected = b"".join(
            LENGTHS.pack(len(head), len(payload)) + head + payload
            for number, payload in enumerate(payloads, 1)
            for head in [msgpack.packb([number, "x", []])]
        )
        while len(received) < len(expected):
            receive(server)
            await trio.lowlevel.checkpoint()
        assert received == expected


# -- locks -------------------------------------------------------------------------------------------------------------


async def test_a_free_lock_is_taken_without_yielding() -> None:
    lock = trio.Lock()
    with trio.testing.assert_no_checkpoints():
        async with Promptly(lock):
            assert lock.locked()
    assert not lock.locked()


async def test_a_lock_goes_to_those_who_wait_in_their_order() -> None:
    lock, order = trio.Lock(), []

    async def take(name: int) -> None:
        async with Promptly(lock):
            order.append(name)
            await trio.lowlevel.checkpoint()

    async with trio.open_nursery() as nursery:
        async with Promptly(lock):
            for name in range(3):
                nursery.start_soon(take, name)
                await trio.testing.wait_all_tasks_blocked()
        async with Promptly(lock):  # it has been handed on, and is not free
            order.append(3)
    assert order == [0, 1, 2, 3]
