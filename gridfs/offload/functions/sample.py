"""sample: some of the lines, each as likely as any other."""

from __future__ import annotations

import heapq
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any

import xxhash

from gridfs.config import MIB
from gridfs.offload.functions import arguments, records
from gridfs.offload.functions.function import Function
from gridfs.offload.functions.records import Body, Fragment, blocks, cut, joined

SAMPLE_MAX_LINES = 100_000
SAMPLE_MAX_BYTES = 64 * MIB
_SEED_MAX = (1 << 63) - 1
Drawn = tuple[float, float, int, bytes]
"""A line: the number that was drawn for it, the block in which it ends, which line of the block it is, and its text."""


class _Lowest:
    """The lines with the lowest numbers of those offered."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._heap: list[Drawn] = []  # numbers are negated: the first has the highest
        self._length = 0

    @property
    def limit(self) -> float:
        """No line with a higher number is wanted any more."""
        return -self._heap[0][0] if len(self._heap) == self._count else 1.0

    def offer(self, number: float, block: float, line: int, text: bytes) -> None:
        """Keep it, if it is among the lowest. Raises ValueError if the lines kept are too long."""
        drawn = -number, block, line, text
        self._length += len(text)
        if len(self._heap) < self._count:
            heapq.heappush(self._heap, drawn)
        else:
            self._length -= len(heapq.heappushpop(self._heap, drawn)[3])
        if self._length > SAMPLE_MAX_BYTES:
            raise ValueError(f"the sample is longer than {SAMPLE_MAX_BYTES // MIB} MiB")

    def lines(self) -> list[Drawn]:
        """What was kept, in the order of the file."""
        return sorted(((-number, block, line, text) for number, block, line, text in self._heap), key=lambda drawn: drawn[1:3])


@dataclass(frozen=True, slots=True)
class Sample:
    """`count` of the lines in their order, or all if there are no more, each ended by a newline; the same for the same seed.

    A number between 0 and 1 is drawn for each line, and the lines with the lowest are the sample. The numbers of a block's
    lines depend on the seed, on where the block is, on its bytes, and on nothing else: so nodes draw apart what one would
    draw. A line belongs to the block that has the newline at its end. Runs begin where blocks do.
    """

    count: int
    seed: int
    splits: bool = True
    streams: bool = True

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`. A body is a list of `Drawn`; of the line in which the run begins the text is only known later."""
        lowest, numbers = _Lowest(self.count), dict[int, float]()
        number, before = offset // records.BLOCK_BYTES - 1, 0

        def drawing() -> Iterator[bytes]:
            nonlocal number, numbers, before
            for block in blocks(run):
                number, before = number + 1, 0
                numbers = self._draw(block, number, lowest.limit)
                yield block

        for part in cut(drawing(), first):
            if isinstance(part, Fragment):
                yield part.packed()
                if part.is_last:
                    before = 1
                    if 0 in numbers:
                        yield Body([(numbers[0], number, 0, b"")]).packed()
            elif numbers:
                self._offer(lowest, part.content, number, before, numbers)
        for drawn in lowest.lines():
            yield Body([drawn]).packed()

    def _offer(self, lowest: _Lowest, content: bytes, block: int, before: int, numbers: dict[int, float]) -> None:
        """Offer the drawn ones of a block's lines; `before` of them are not in `content`."""
        texts = content.split(b"\n")
        for line, number in numbers.items():
            if line >= before:
                lowest.offer(number, block, line, texts[line - before] + b"\n")

    def _draw(self, block: bytes, number: int, limit: float) -> dict[int, float]:
        """Which of the block's lines have numbers of up to `limit`, and which.

        The lowest of n numbers is drawn, then the next, which is the lowest of n - 1 between it and 1, and so on: nothing is
        spent on all the others.
        """
        left = count = block.count(b"\n")
        random = Random(f"{self.seed} {number} {xxhash.xxh3_64_hexdigest(block)}")
        drawn: dict[int, float] = {}
        moved: dict[int, int] = {}  # the lines shuffled as far as they are drawn: place -> line, where it is another one
        lowest = 0.0
        while left and len(drawn) < self.count:
            lowest = 1 - (1 - lowest) * (1 - random.random()) ** (1 / left)
            if lowest > limit:
                break
            place = random.randrange(len(drawn), count)
            line, moved[place] = moved.get(place, place), moved.get(len(drawn), len(drawn))
            drawn[line] = lowest
            left -= 1
        return drawn

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Iterator[bytes]:
        """See `Function`."""
        lowest, crossing = _Lowest(self.count), b""
        for part in joined(partials):
            if isinstance(part, Body):
                for number, block, line, text in part.value:
                    lowest.offer(number, block, line, text or crossing)
            elif part.content.endswith(b"\n"):
                crossing = part.content
            else:  # the file's last line is in no block's count, for want of a newline
                number = Random(f"{self.seed} end").random()
                lowest.offer(number, math.inf, 0, part.content + b"\n")
        yield from _together(drawn[3] for drawn in lowest.lines())


def _together(lines: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of about a block."""
    some: list[bytes] = []
    length = 0
    for line in lines:
        some.append(line)
        length += len(line)
        if length >= records.BLOCK_BYTES:
            yield b"".join(some)
            some, length = [], 0
    if some:
        yield b"".join(some)


def make(words: Sequence[Any]) -> Function:
    """sample N [SEED]: see `Sample`. Raises ValueError with a sentence."""
    _, (count, *seeds) = arguments.parse("sample", words, "", 1, 2)
    lines = arguments.whole_number(count, "the number of lines", 1, SAMPLE_MAX_LINES)
    return Sample(lines, arguments.whole_number(seeds[0], "the seed", 0, _SEED_MAX) if seeds else 0)
