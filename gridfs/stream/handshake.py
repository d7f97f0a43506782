"""Mutual proof that both ends hold the filesystem's secret, before anything else is said.

server: nonce_s                                  client: nonce_c, identity, HMAC(secret, "client", nonce_s, nonce_c, identity)
server: HMAC(secret, "server", nonce_c, nonce_s, greeting), greeting

HMAC-SHA-256 (RFC 2104) over length-prefixed parts, so that no two lists of parts give the same bytes. The nonces are fresh on
both sides, so nothing can be replayed; the roles in the text keep one side's proof from being reflected to it. What follows on
the connection is neither encrypted nor signed: the cluster's network is trusted not to alter streams.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Callable
from types import TracebackType
from typing import Any

import msgpack
import trio

from gridfs.errors import AuthenticationFailed, ConnectionLost
from gridfs.stream.wire import HEADER_MAX_BYTES, Wire, pack_frame

_MAGIC = b"gridfs/1"
_NONCE_BYTES = 32
_FRAME_MAX_BYTES = 16 << 10
"""A stranger may make us hold this much, and no more."""
TIMEOUT_S = 5.0

Identity = dict[str, Any]


async def prove_to_server(wire: Wire, secret: bytes, identity: Identity) -> Identity:
    """The client's side: returns the server's greeting. Raises AuthenticationFailed or ConnectionLost."""
    with _Limit(wire):
        magic, server_nonce = _expect(await wire.receive(), 2)
        if magic != _MAGIC:
            raise AuthenticationFailed("the peer is not a gridfs server of this version")
        nonce, packed = secrets.token_bytes(_NONCE_BYTES), msgpack.packb(identity)
        await wire.send([pack_frame([nonce, packed, _proof(secret, b"client", server_nonce, nonce, packed)])])
        proof, greeting = _expect(await wire.receive(), 2)
        if proof is None:
            raise AuthenticationFailed(str(greeting))
        if not hmac.compare_digest(proof, _proof(secret, b"server", nonce, server_nonce, greeting)):
            raise AuthenticationFailed("the server does not hold this filesystem's secret")
    unpacked: Identity = msgpack.unpackb(greeting)
    return unpacked


async def challenge_client(wire: Wire, secret: bytes, greet: Callable[[Identity], Identity]) -> Identity:
    """The server's side: returns the client's identity, once proven and accepted by `greet`, which gives the greeting.

    `greet` refuses an identity by raising AuthenticationFailed; only a client that has proven itself hears the reason.
    """
    with _Limit(wire):
        server_nonce = secrets.token_bytes(_NONCE_BYTES)
        await wire.send([pack_frame([_MAGIC, server_nonce])])
        nonce, packed, proof = _expect(await wire.receive(), 3)
        if not hmac.compare_digest(proof, _proof(secret, b"client", server_nonce, nonce, packed)):
            raise AuthenticationFailed("the client does not hold this filesystem's secret")
        identity: Identity = msgpack.unpackb(packed)
        try:
            greeting = msgpack.packb(greet(identity))
        except AuthenticationFailed as refusal:
            await wire.send([pack_frame([None, str(refusal)])])
            raise
        await wire.send([pack_frame([_proof(secret, b"server", nonce, server_nonce, greeting), greeting])])
    return identity


class _Limit:
    """Within it frames are small and time is short; failing that is a ConnectionLost."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._scope = wire, trio.move_on_after(TIMEOUT_S)

    def __enter__(self) -> None:
        self._wire.frame_max_bytes = _FRAME_MAX_BYTES
        self._scope.__enter__()

    def __exit__(self, kind: type[BaseException] | None, raised: BaseException | None, trace: TracebackType | None) -> bool:
        swallowed = self._scope.__exit__(kind, raised, trace)
        self._wire.frame_max_bytes = HEADER_MAX_BYTES
        if self._scope.cancelled_caught:
            raise ConnectionLost(f"the handshake took longer than {TIMEOUT_S} s")
        return bool(swallowed)


def _expect(frame: tuple[Any, int], parts: int) -> tuple[Any, ...]:
    """The header of a handshake frame: `parts` of bytes (None and text where a refusal is told), and no payload."""
    header: Any
    header, payload_bytes = frame
    sound = isinstance(header, tuple) and len(header) == parts and not payload_bytes
    if not sound or not (header[0] is None or all(isinstance(part, bytes) for part in header)):
        raise AuthenticationFailed("the peer does not follow the handshake")
    return tuple(header)


def _proof(secret: bytes, *parts: bytes) -> bytes:
    message = b"".join(len(part).to_bytes(4, "big") + part for part in (_MAGIC, *parts))
    return hmac.digest(secret, message, "sha256")
