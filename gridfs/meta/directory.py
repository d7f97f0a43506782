"""The chunk directory: which servers hold a chunk. It stands beside the inode table and is written by placement alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Servers = tuple[str, ...]
"""Identities of the chunk servers that hold a chunk, one for each replica."""

_NO_CHUNKS: Mapping[int, Servers] = {}


class ChunkDirectory:
    """Chunk -> servers. A chunk that is not in it has never been written: a hole."""

    def __init__(self) -> None:
        self._chunks: dict[int, dict[int, Servers]] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def servers(self, ino: int, index: int) -> Servers:
        """Who holds the chunk; empty for a hole."""
        return self._chunks.get(ino, _NO_CHUNKS).get(index, ())

    def chunks(self, ino: int) -> Mapping[int, Servers]:
        """All chunks of an inode, by index; not to be changed."""
        return self._chunks.get(ino, _NO_CHUNKS)

    def place(self, ino: int, index: int, servers: Servers) -> None:
        """Say who holds the chunk from now on."""
        chunks = self._chunks.setdefault(ino, {})
        self._count += index not in chunks
        chunks[index] = servers

    def put(self, ino: int, index: int, servers: Servers) -> None:
        """What `place` says, or with no servers that the chunk is a hole again."""
        if servers:
            self.place(ino, index, servers)
            return
        chunks = self._chunks.get(ino, {})
        self._count -= chunks.pop(index, None) is not None
        if not chunks:
            self._chunks.pop(ino, None)

    def drop_from(self, ino: int, first_index: int) -> list[int]:
        """Forget the inode's chunks from `first_index` on; returns their indices."""
        chunks = self._chunks.get(ino)
        if not chunks:
            return []
        dropped = [index for index in chunks if index >= first_index]
        for index in dropped:
            del chunks[index]
        if not chunks:
            del self._chunks[ino]
        self._count -= len(dropped)
        return dropped

    def __iter__(self) -> Iterator[tuple[int, int, Servers]]:
        """Every (ino, index, servers)."""
        for ino, chunks in self._chunks.items():
            for index, servers in chunks.items():
                yield ino, index, servers
