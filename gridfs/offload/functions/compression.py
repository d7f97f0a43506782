"""gzip and zstd: what each run becomes stands for itself, and one after the other they are a file of the format."""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from gridfs.config import MIB
from gridfs.offload.functions import arguments
from gridfs.offload.functions.function import Function
from gridfs.offload.functions.program import through

_GZIP_WBITS = 16 + zlib.MAX_WBITS
"""A gzip member, without a name and with the time 0."""

Compress = Callable[[Iterator[memoryview]], Iterator[bytes]]


@dataclass(frozen=True, slots=True)
class Compression:
    """A compressed file of as many members (gzip) or frames (zstd) as there are runs, and one if there is none."""

    compress: Compress
    splits: bool = True
    streams: bool = True

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`."""
        return self.compress(run)

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Iterator[bytes]:
        """See `Function`."""
        is_empty = True
        for partial in partials:
            for piece in partial:
                is_empty = False
                yield piece
        if is_empty:
            yield from self.compress(iter(()))


def gzip(words: Sequence[object]) -> Function:
    """gzip [LEVEL], 1 to 9, usually 6. Raises ValueError with a sentence."""
    level = _level("gzip", words, 6, 9)

    def compress(run: Iterator[memoryview]) -> Iterator[bytes]:
        compressor = zlib.compressobj(level, wbits=_GZIP_WBITS)
        for view in run:
            for at in range(0, len(view), MIB):
                if piece := compressor.compress(view[at : at + MIB]):
                    yield piece
        yield compressor.flush()

    return Compression(compress)


def zstd(words: Sequence[object]) -> Function:
    """zstd [LEVEL], 1 to 19, usually 3, by the program of that name. Raises ValueError with a sentence."""
    level = _level("zstd", words, 3, 19)
    return Compression(lambda run: through(["zstd", "--quiet", "--stdout", f"-{level}", "-T1"], run))


def _level(name: str, words: Sequence[object], usual: int, most: int) -> int:
    """The level, which may be written as the programs have it, -3, or as 3."""
    plain = [word.removeprefix("-") if isinstance(word, str) else word for word in words]
    _, levels = arguments.parse(name, plain, "", 0, 1)
    return arguments.whole_number(levels[0], f"the level of {name}", 1, most) if levels else usual
