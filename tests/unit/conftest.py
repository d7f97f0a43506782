"""What several unit tests start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from gridfs.chunk.holds import FORGOTTEN_S, Holds
from tests.unit.chunk_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A server's chunks, whose invariants are asserted at the end."""
    server = Server()
    yield server
    server.check()


@pytest.fixture
def holds(server: Server) -> Iterator[Holds]:
    """The holds of the server's chunks; releasing them all leaves nothing behind."""
    holds = Holds(server.chunks)
    yield holds
    assert holds.check() == server.chunks.check() == []
    server.now_s += FORGOTTEN_S + 1
    holds.keep([])
    assert holds.check() == server.chunks.check() == []
    assert not server.chunks.packs.held
