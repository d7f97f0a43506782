"""sort: the lines in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from gridfs.offload.functions import arguments
from gridfs.offload.functions.function import Function
from gridfs.offload.functions.program import through

_MEMORY = "256M"
"""What is more than that is sorted in parts, in files in the working directory."""


@dataclass(frozen=True, slots=True)
class Sort:
    """The lines sorted by sort(1) with LC_ALL=C: bytewise, or as its options say."""

    options: tuple[str, ...]
    splits: bool = False
    streams: bool = True

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`."""
        return through(["sort", f"--buffer-size={_MEMORY}", "--temporary-directory=.", *self.options], run)

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Iterator[bytes]:
        """See `Function`."""
        return (piece for partial in partials for piece in partial)


def make(words: Sequence[object]) -> Function:
    """sort [-n] [-r] [-u]. Raises ValueError with a sentence."""
    options, _ = arguments.parse("sort", words, "nru")
    return Sort(tuple(f"-{option}" for option in sorted(options)))
