"""The chunk directory: which servers hold a chunk. It stands beside the inode table and is written by placement alone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

Servers = tuple[str, ...]
"""Identities of the chunk servers that hold a chunk, one for each replica."""

_NO_CHUNKS: Mapping[int, Servers] = {}


class ChunkDirectory:
    """Chunk -> servers. A chunk that is not in it has never been written: a hole.

    Most files are small, so an inode whose only chunk is the first one costs no dict of its own: its entry in `_chunks` is
    the chunk's servers. Equal servers are kept once.
    """

    def __init__(self) -> None:
        self._chunks: dict[int, Servers | dict[int, Servers]] = {}
        self._servers: dict[Servers, Servers] = {}
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def servers(self, ino: int, index: int) -> Servers:
        """Who holds the chunk; empty for a hole."""
        return self.chunks(ino).get(index, ())

    def chunks(self, ino: int) -> Mapping[int, Servers]:
        """All chunks of an inode, by index; not to be changed."""
        chunks = self._chunks.get(ino, _NO_CHUNKS)
        return {0: chunks} if isinstance(chunks, tuple) else chunks

    def count(self, ino: int) -> int:
        """How many chunks the inode has."""
        chunks = self._chunks.get(ino, _NO_CHUNKS)
        return 1 if isinstance(chunks, tuple) else len(chunks)

    def inos(self) -> list[int]:
        """All inodes that have chunks."""
        return list(self._chunks)

    def place(self, ino: int, index: int, servers: Servers) -> None:
        """Say who holds the chunk from now on."""
        servers = self._servers.setdefault(servers, servers)
        chunks = self._chunks.get(ino)
        if index == 0 and not isinstance(chunks, dict):
            self._count += chunks is None
            self._chunks[ino] = servers
            return
        if not isinstance(chunks, dict):
            chunks = self._chunks[ino] = {} if chunks is None else {0: chunks}
        self._count += index not in chunks
        chunks[index] = servers

    def put(self, ino: int, index: int, servers: Servers) -> None:
        """What `place` says, or with no servers that the chunk is a hole again."""
        if servers:
            self.place(ino, index, servers)
            return
        left = {other: held for other, held in self.chunks(ino).items() if other != index}
        self._count -= self.count(ino) - len(left)
        if left:
            self._chunks[ino] = left
        else:
            self._chunks.pop(ino, None)

    def drop_from(self, ino: int, first_index: int) -> list[int]:
        """Forget the inode's chunks from `first_index` on; returns their indices."""
        if ino not in self._chunks:
            return []
        chunks = self.chunks(ino)
        dropped = [index for index in chunks if index >= first_index]
        if len(dropped) == len(chunks):
            del self._chunks[ino]
        elif dropped:
            self._chunks[ino] = {index: servers for index, servers in chunks.items() if index < first_index}
        self._count -= len(dropped)
        return dropped

    def __iter__(self) -> Iterator[tuple[int, int, Servers]]:
        """Every (ino, index, servers)."""
        for ino in self._chunks:
            for index, servers in self.chunks(ino).items():
                yield ino, index, servers
