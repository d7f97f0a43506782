"""The short way between two processes of one host: a Unix socket beside each endpoint's TCP port.

Its name is abstract and follows from the TCP address, so there is nothing to agree on and nothing to clean up: the kernel keeps
such names for each network namespace, and forgets one with its socket.
"""

from __future__ import annotations

import logging
import socket
import struct
from contextlib import suppress
from pathlib import Path

from gridfs.types import Address

log = logging.getLogger(__name__)

_BUFFER_BYTES = 1 << 20
"""What is under way in each direction. The system's default of 208 KiB would wake both ends for every piece of that size."""
_SO_SNDBUFFORCE = 32  # socket(7); the module socket has no name for it
_CREDENTIALS = struct.Struct("iII")  # struct ucred, unix(7)
_LISTENING = "0A"  # proc(5), /proc/net/tcp: TCP_LISTEN


def listen(address: Address, backlog: int) -> socket.socket | None:
    """A listener beside the one on TCP `address`; None when its name is taken, or this system has no such sockets."""
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.bind(_name(address))
        sock.listen(backlog)
    except OSError as error:
        sock.close()
        log.warning("%s:%d is reached by TCP only: %s", *address, error)
        return None
    sock.setblocking(False)
    return sock


def connect(address: Address) -> socket.socket | None:
    """Connected to whoever serves TCP `address` on this host; None when nobody does, or it is somebody else.

    Anyone on this host may take a name, and could pass our words on to the real server and listen to them. So the listener must
    belong to the user who listens on the TCP port.
    """
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.setblocking(False)
        sock.connect(_name(address))
        _, user, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        if user == _listening_user(address):
            return sock
    except OSError:
        pass  # nobody has the name, or its queue is full
    sock.close()
    return None


def widen(sock: socket.socket) -> None:
    """Let a Unix socket take more at once; as much as the system allows where we may not exceed that."""
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _BUFFER_BYTES)
    with suppress(PermissionError):
        sock.setsockopt(socket.SOL_SOCKET, _SO_SNDBUFFORCE, _BUFFER_BYTES)


def _name(address: Address) -> bytes:
    return f"\0gridfs/{address.host}:{address.port}".encode()


def _listening_user(address: Address) -> int | None:
    """Who listens on the TCP address in this network namespace; None if nobody does."""
    wanted = f"{socket.inet_aton(address.host)[::-1].hex()}:{address.port:04X}".upper()
    with Path("/proc/thread-self/net/tcp").open() as table:  # those who listen come first in it
        for line in table:
            _, here, _, state, _, _, _, user, *_ = line.split()
            if (here, state) == (wanted, _LISTENING):
                return int(user)
    return None
