"""Digests of a file: order matters, so that one node sees all bytes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import xxhash


class _Hash(Protocol):
    def update(self, data: memoryview, /) -> None: ...

    def hexdigest(self) -> str: ...


@dataclass(frozen=True, slots=True)
class Digest:
    """sha256, md5 or xxh3 (XXH3 with 64 bits, seed 0).

    JSON: a string of hexadecimal digits, as sha256sum, md5sum and `xxhsum -H3` print it.
    """

    hash: Callable[[], _Hash]
    splits: bool = False
    streams: bool = False

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`."""
        digest = self.hash()
        for view in run:
            digest.update(view)
        yield digest.hexdigest().encode()

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Any:
        """See `Function`."""
        text = b"".join(piece for partial in partials for piece in partial)
        return text.decode() or self.hash().hexdigest()


HASHES: dict[str, Callable[[], _Hash]] = {
    "sha256": hashlib.sha256,
    "md5": lambda: hashlib.md5(usedforsecurity=False),
    "xxh3": xxhash.xxh3_64,
}
