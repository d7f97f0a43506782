"""What a client keeps of the space that a server grants it, and what the server grants."""

from __future__ import annotations

from typing import Any, cast

import pytest

from gridfs.chunk.grants import GRANT_BYTES, ROOMS_MAX_BYTES, Grants
from gridfs.chunk.server import GRANT_MIN_BYTES, GRANT_SHARE, RESERVE_SHARE, ChunkService
from gridfs.config import CHUNK_SIZE_BYTES, GIB, MIB
from gridfs.errors import FilesystemError
from gridfs.stream.connection import Connection
from gridfs.stream.endpoint import Peer
from gridfs.types import ChunkId, NodeSample
from tests.vfs.cluster import FakeObjects

ONE, TWO = ChunkId(5, 0), ChunkId(5, 1)
CHUNK = CHUNK_SIZE_BYTES


class Client(Peer):
    """A connection to the service in this process; a payload is taken at once."""

    def __init__(self, service: ChunkService) -> None:
        self.service = service
        self.identity = {"role": "client"}
        self.grants = Grants(cast(Connection, self))

    async def call(self, method: str, *arguments: Any) -> Any:
        return (await self.service.methods[method](self, *arguments)).result

    async def write(self, chunk_id: ChunkId, offset: int, length: int, charge_bytes: int) -> None:
        self.payload_bytes = length
        await self.call("write", *chunk_id, offset, charge_bytes)

    async def receive_payload(self, view: memoryview) -> None:
        self.during_a_write()

    def during_a_write(self) -> None:
        """For a test to replace."""

    @property
    def granted_bytes(self) -> int:
        return self.service._grants[self]

    def check(self) -> None:
        """Client and server agree on what is granted, as nothing is under way."""
        assert self.granted_bytes == self.grants.held_bytes


def started(capacity_bytes: int, available_bytes: int = 32 * GIB) -> ChunkService:
    return ChunkService(capacity_bytes, FakeObjects(), b"secret", lambda: NodeSample(64 * GIB, available_bytes, 0.0))


# -- the server ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("want", "need", "least", "granted"),
    [
        (64, 1, 1, 64 // GRANT_SHARE),
        (64, 20, 20, 20),
        (64, 70, 1, 64),
        (64, 70, 70, 0),
        (4, 1, 1, 4),
    ],
)
async def test_a_grant_is_a_share_of_what_is_free_unless_more_is_needed(want: int, need: int, least: int, granted: int) -> None:
    client = Client(started(64 * MIB))
    said = await client.call("grant", want * MIB, need * MIB, least * MIB)
    assert said == (granted * MIB, (64 - granted) * MIB, 0)


async def test_the_last_bytes_are_granted_whole_and_a_refusal_says_who_has_them() -> None:
    service = started(GRANT_MIN_BYTES)
    one, other = Client(service), Client(service)
    assert await one.call("grant", GRANT_BYTES, 1, 1) == (GRANT_MIN_BYTES, 0, 0)
    assert await other.call("grant", GRANT_BYTES, 1, 1) == (0, 0, GRANT_MIN_BYTES)
    await one.call("give_back", GRANT_MIN_BYTES - 5)
    assert await other.call("grant", GRANT_BYTES, 9, 1) == (GRANT_MIN_BYTES - 5, 0, 5)
    service.goodbye(one)
    assert await other.call("space") == (GRANT_MIN_BYTES, 0, GRANT_MIN_BYTES)


async def test_no_more_is_given_back_than_was_granted() -> None:
    client = Client(started(64 * MIB))
    await client.call("grant", MIB, MIB, MIB)
    await client.call("give_back", 2 * MIB)
    assert (client.granted_bytes, client.service.free_bytes) == (0, 64 * MIB)


async def test_a_chunk_that_is_growing_counts_before_its_bytes_are_there() -> None:
    """Else two connections could write more than the capacity at the same time."""
    service = started(MIB)
    client, free = Client(service), []
    client.during_a_write = lambda: free.append(service.free_bytes)  # type: ignore[method-assign]
    await client.write(ONE, 0, MIB - 1, 0)
    assert free == [1]
    with pytest.raises(FilesystemError, match="larger than its grant"):
        await client.write(TWO, 0, 2, 0)
    assert (service.free_bytes, service.chunks.used_bytes) == (1, MIB - 1)


async def test_what_an_overwrite_was_charged_is_free_again() -> None:
    client = Client(started(64 * MIB))
    await client.call("grant", 2 * MIB, 2 * MIB, MIB)
    for _ in range(2):
        await client.write(ONE, 0, MIB, MIB)
    assert (client.granted_bytes, client.service.free_bytes) == (0, 63 * MIB)


async def test_memory_written_since_the_sample_is_not_promised_again() -> None:
    """The node has 10 MiB to spare: what was written and granted is taken off, though the sample is old."""
    reserve = int(64 * GIB * RESERVE_SHARE)
    service = started(GIB, reserve + 10 * MIB)
    client = Client(service)
    assert service.free_bytes == 10 * MIB
    await client.write(ONE, 0, 4 * MIB, 0)
    assert service.free_bytes == 6 * MIB
    await client.call("grant", MIB, MIB, MIB)
    assert service.free_bytes == 5 * MIB


# -- the client ------------------------------------------------------------------------------------------------------


async def test_a_chunk_that_was_begun_can_be_filled_although_others_take_space() -> None:
    service = started(CHUNK + 2 * MIB)
    one, other = Client(service), Client(service)
    assert await one.grants.take(MIB, CHUNK, ONE)
    assert await other.grants.take(2 * MIB)
    assert not await other.grants.take(1)
    for _ in range(7):
        assert await one.grants.take(MIB, 0, ONE)
    assert not await one.grants.take(1, 0, ONE)


async def test_a_new_chunk_takes_no_room_from_others_but_a_write_that_finds_nothing_else_does() -> None:
    client = Client(started(CHUNK))
    assert await client.grants.take(MIB, CHUNK, ONE)
    assert not await client.grants.take(MIB, CHUNK, TWO)
    assert await client.grants.take(6 * MIB, 0, TWO)
    assert not await client.grants.take(2 * MIB, 0, ONE)
    assert await client.grants.take_some(2 * MIB) == MIB
    assert client.grants.held_bytes == 0


async def test_what_was_refused_takes_nothing() -> None:
    client = Client(started(MIB))
    assert not await client.grants.take(2 * MIB, 0, ONE)
    assert not await client.grants.take(1, CHUNK, ONE)
    client.check()
    assert client.grants.held_bytes == MIB


async def test_rooms_are_bounded() -> None:
    client = Client(started(GIB))
    for index in range(100):
        assert await client.grants.take(1, CHUNK, ChunkId(7, index))
        assert sum(client.grants._rooms.values()) <= ROOMS_MAX_BYTES
        assert client.grants.held_bytes <= ROOMS_MAX_BYTES + GRANT_BYTES


async def test_space_that_is_not_used_is_given_back_and_what_is_used_is_kept() -> None:
    client = Client(started(GIB))
    assert await client.grants.take(MIB, CHUNK, ONE)
    held = client.grants.held_bytes
    assert client.grants.surplus() == held - (CHUNK - MIB) - MIB
    assert client.grants.held_bytes == CHUNK
    assert await client.grants.take(MIB, 0, ONE)
    assert client.grants.surplus() == 0
    assert client.grants.surplus() == CHUNK - MIB
    assert (client.grants.held_bytes, client.grants.surplus()) == (0, 0)


async def test_space_that_is_put_back_can_be_taken_again() -> None:
    client = Client(started(MIB))
    assert await client.grants.take(MIB)
    client.grants.put_back(MIB)
    assert await client.grants.take(MIB)
