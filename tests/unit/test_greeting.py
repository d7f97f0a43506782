"""FUSE_INIT and its answer, passed on; sockets stand for the device."""

import os
import socket
import struct
from collections.abc import Iterator

import pytest

from mount.greeting import Greeting, completed

KNOWN, KILLPRIV_V2, OTHER = 1 << 5, 1 << 28, 1 << 27


def request(flags: int) -> bytes:
    """As the kernel asks: fuse_in_header, fuse_init_in."""
    return struct.pack("=IIQQIIII", 104, 26, 2, 0, 0, 0, 0, 0) + struct.pack("=IIIII44x", 7, 45, 131072, flags, 0)


def answer(flags: int, error: int = 0) -> bytes:
    """As libfuse answers: fuse_out_header, fuse_init_out."""
    return struct.pack("=IiQ", 80, error, 2) + struct.pack("=IIII48x", 7, 31, 131072, flags)


def test_what_the_kernel_offers_and_gridfs_lives_up_to_is_taken() -> None:
    assert completed(request(KNOWN | KILLPRIV_V2 | OTHER), answer(KNOWN)) == answer(KNOWN | KILLPRIV_V2)


def test_what_the_kernel_does_not_offer_is_not_taken() -> None:
    assert completed(request(KNOWN), answer(KNOWN)) == answer(KNOWN)


def test_an_error_stays_as_it_is() -> None:
    assert completed(request(KILLPRIV_V2), answer(0, error=-71)) == answer(0, error=-71)


@pytest.fixture
def device() -> Iterator[tuple[socket.socket, socket.socket]]:
    """The kernel's end and the daemon's."""
    with_kernel, with_daemon = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with with_kernel, with_daemon:
        yield with_kernel, with_daemon


def test_the_answer_goes_on_to_the_device_which_is_then_in_its_place_again(
    device: tuple[socket.socket, socket.socket],
) -> None:
    kernel, fd = device[0], device[1].fileno()
    told: list[bytes] = []
    kernel.send(request(KILLPRIV_V2))
    descriptors = set(os.listdir("/proc/self/fd"))
    greeting = Greeting(fd, lambda: told.append(kernel.recv(1000)))
    assert greeting.is_to_be_read()
    assert os.read(fd, 1000) == request(KILLPRIV_V2)
    os.write(fd, answer(KNOWN))
    assert not told
    assert not greeting.is_to_be_read()
    assert told == [answer(KNOWN | KILLPRIV_V2)]
    kernel.send(b"the next request")
    assert os.read(fd, 1000) == b"the next request"
    assert set(os.listdir("/proc/self/fd")) == descriptors
    assert not os.get_inheritable(fd)
