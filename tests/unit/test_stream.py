"""The stream protocol between two ends in one process, over real sockets."""

import os
import secrets
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest
import trio
import trio.testing

from gridfs.errors import AuthenticationFailed, ConnectionLost, FilesystemError
from gridfs.stream import local
from gridfs.stream.connection import Connection
from gridfs.stream.endpoint import Endpoint
from gridfs.stream.standing import standing
from gridfs.stream.wire import pack_frame
from gridfs.types import Address
from tests.unit.streams import SECRET, connected, serving


async def test_arguments_and_payload_come_back_as_they_went() -> None:
    async with connected() as connection:
        for size in (0, 1, 65_000, 65_536, 70_000, 5_000_000):
            payload, into = secrets.token_bytes(size), memoryview(bytearray(size))
            reply = connection.submit("echo", size, b"name\xff", None, payload=payload, into=into)
            assert await reply.wait() == (size, b"name\xff", None)
            assert reply.payload_bytes == size
            assert into == payload


async def test_a_header_larger_than_the_staging_buffer_arrives_whole() -> None:
    async with connected() as connection:
        assert await connection.call("echo", b"x" * 300_000) == (b"x" * 300_000,)


async def test_pipelined_requests_are_answered_in_order() -> None:
    async with connected() as connection:
        blobs = [secrets.token_bytes(300_000) for _ in range(40)]
        buffers = [bytearray(300_000) for _ in blobs]
        settled: list[int] = []
        replies = [
            connection.submit("echo", i, payload=blob, into=memoryview(buffers[i]), callback=lambda r: settled.append(r.number))
            for i, blob in enumerate(blobs)
        ]
        for i, reply in enumerate(replies):
            assert await reply.wait() == (i,)
            assert buffers[i] == blobs[i]
        assert settled == sorted(settled)


async def test_an_answer_that_comes_later_holds_up_answers_and_not_requests() -> None:
    async with serving() as (endpoint, service), standing(endpoint.address, SECRET, {"client": "me"}) as connection:
        replies = [connection.submit(*request) for request in (("later", 0), ("echo", 1), ("later", 5), ("echo", 2))]
        with trio.fail_after(5):
            while service.begun < 2:
                await trio.sleep(0.001)
        assert [reply.payload_bytes for reply in replies] == [-1] * 4
        service.now.set()
        assert await replies[1].wait() == (1,)
        assert replies[0].result == "late"
        with pytest.raises(FilesystemError, match="as asked"):
            await replies[2].wait()
        assert await replies[3].wait() == (2,)
        assert await connection.call("echo", 3) == (3,)


async def test_an_errno_comes_back_and_the_connection_goes_on() -> None:
    async with connected() as connection:
        with pytest.raises(FilesystemError) as raised:
            await connection.call("fail", 28, payload=b"not looked at")
        assert raised.value.errno == 28
        assert await connection.call("echo", 1) == (1,)


@pytest.mark.expected_log
async def test_a_bug_in_a_handler_is_eio_and_the_connection_goes_on() -> None:
    async with connected() as connection:
        for method in ("crash", "no such method"):
            with pytest.raises(FilesystemError) as raised:
                await connection.call(method)
            assert raised.value.errno == 5
        assert await connection.call("echo", 1) == (1,)


async def test_the_greeting_reaches_the_client() -> None:
    async with connected() as connection:
        assert connection.greeting == {"hello": "me"}


async def test_another_secret_gets_nothing() -> None:
    async with serving() as (endpoint, service):
        with pytest.raises(ConnectionLost):
            await Connection.open(endpoint.address, secrets.token_bytes(32), {})
        assert service.peers == 0


async def test_a_refused_identity_hears_why() -> None:
    async with serving() as (endpoint, _):
        with pytest.raises(AuthenticationFailed, match="epoch 0 is fenced"):
            await Connection.open(endpoint.address, SECRET, {"epoch": 0})


async def test_a_stranger_sees_only_the_challenge() -> None:
    async with serving() as (endpoint, service):
        for words in (b"GET / HTTP/1.0\r\n\r\n", b"\0\0\0\4\0\0\0\0\x93\1\2\3", b"\xff" * 64, b"\0\0\0\1\0\0\0\0\xc1"):
            stream = await trio.open_tcp_stream(*endpoint.address)
            async with stream:
                challenge = await stream.receive_some()
                assert len(challenge) < 100
                await stream.send_all(words)
                try:
                    assert await stream.receive_some() == b""
                except trio.BrokenResourceError:  # reset, since our words were not all read
                    pass
        assert service.peers == 0


async def test_what_is_pending_fails_when_the_server_goes() -> None:
    async with trio.open_nursery() as nursery:
        async with serving() as (endpoint, _):
            connection = await Connection.open(endpoint.address, SECRET, {})
            await nursery.start(connection.run)
            reply = connection.submit("hang")
        with pytest.raises(ConnectionLost):
            await reply.wait()
        with pytest.raises(ConnectionLost):
            connection.submit("echo")
        assert connection.lost


async def test_an_overdue_reply_ends_the_connection() -> None:
    async with connected(reply_timeout_s=0.1) as connection:
        with pytest.raises(ConnectionLost, match="no reply within"):
            await connection.call("hang")


async def test_nobody_listening_is_connection_lost() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with pytest.raises(ConnectionLost, match="cannot connect"):
        await Connection.open(Address("127.0.0.1", port), SECRET, {})


# -- on one host -----------------------------------------------------------------------------------------------------


name_is_taken = pytest.mark.expected_log("reached by TCP only")


@asynccontextmanager
async def squatted() -> AsyncIterator[tuple[Endpoint, socket.socket]]:
    """A server, and a stranger who took the name of its Unix socket before it could."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = Address(*free.getsockname())
    with socket.socket(socket.AF_UNIX) as stranger:
        stranger.bind(f"\0gridfs/{address.host}:{address.port}".encode())
        stranger.listen()
        stranger.setblocking(False)
        async with serving(address) as (endpoint, _):
            yield endpoint, stranger


async def echo_over(endpoint: Endpoint) -> socket.AddressFamily:
    """The kind of socket that a client of the endpoint gets, once it has worked."""
    connection = await Connection.open(endpoint.address, SECRET, {})
    async with trio.open_nursery() as nursery:
        await nursery.start(connection.run)
        assert await connection.call("echo", 1) == (1,)
        family = connection._wire._socket.family
        nursery.cancel_scope.cancel()
    return family


async def test_on_one_host_the_way_is_a_unix_socket() -> None:
    async with serving() as (endpoint, _):
        assert await echo_over(endpoint) == socket.AF_UNIX


async def hear(stranger: socket.socket, words: bytes) -> bytes:
    """What the stranger hears from one who connects to him, and whom he tells `words`."""
    await trio.lowlevel.wait_readable(stranger)
    sock = trio.socket.from_stdlib_socket(stranger.accept()[0])
    with sock, suppress(BrokenPipeError, ConnectionResetError):
        await sock.send(words)
        return await sock.recv(1000)
    return b""


@name_is_taken
async def test_a_stranger_without_the_secret_cannot_keep_a_client_from_the_server() -> None:
    async with squatted() as (endpoint, stranger), trio.open_nursery() as nursery:
        nursery.start_soon(hear, stranger, pack_frame([]))
        assert await echo_over(endpoint) == socket.AF_INET


@name_is_taken
async def test_a_stranger_who_says_nothing_is_not_waited_for(autojump_clock: trio.testing.MockClock) -> None:
    async with squatted() as (endpoint, _):
        began_s = trio.current_time()
        assert await echo_over(endpoint) == socket.AF_INET
        assert trio.current_time() - began_s < 2


@name_is_taken
async def test_the_listener_of_another_user_is_not_talked_to(monkeypatch: pytest.MonkeyPatch) -> None:
    """He could pass our proof on to the server, and listen to all that follows."""
    heard: list[bytes] = []

    async def listen(stranger: socket.socket) -> None:
        heard.append(await hear(stranger, pack_frame([b"gridfs/1", bytes(32)])))

    monkeypatch.setattr(local, "_listening_user", lambda address: os.getuid() + 1)
    async with squatted() as (endpoint, stranger), trio.open_nursery() as nursery:
        nursery.start_soon(listen, stranger)
        assert await echo_over(endpoint) == socket.AF_INET
    assert heard == [b""]


async def test_the_name_goes_with_the_server() -> None:
    async with serving() as (endpoint, _):
        pass
    assert local.connect(endpoint.address) is None
    with pytest.raises(ConnectionLost, match="cannot connect"):
        await Connection.open(endpoint.address, SECRET, {})


def test_who_listens_is_told_from_the_address_and_the_port() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        assert local._listening_user(Address("127.0.0.1", port)) == os.getuid()
        assert local._listening_user(Address("127.0.0.2", port)) is None
