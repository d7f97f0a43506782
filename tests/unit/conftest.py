"""What several unit tests start from."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.unit.chunk_server import Server


@pytest.fixture
def server() -> Iterator[Server]:
    """A server's chunks, whose invariants are asserted at the end."""
    server = Server()
    yield server
    server.check()
