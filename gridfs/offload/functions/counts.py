"""Counts of bytes, words and newlines: any two adjacent pieces of a file can be counted apart."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gridfs.offload.functions.records import blocks, pack, unpacked

_SPACES = b" \t\n\v\f\r"
_PRINTABLE = bytes(range(0x21, 0x7F))
_IS_WORD = bytes(byte in _PRINTABLE for byte in range(256))
_IGNORED = bytes(byte for byte in range(256) if byte not in _SPACES + _PRINTABLE)
"""Bytes that neither begin nor end a word, as in the wc of GNU coreutils up to 9.4 in the locale C."""


@dataclass(frozen=True, slots=True)
class _Words:
    """Words of a piece of text as if it stood alone, and whether its first and its last byte are in one."""

    count: int = 0
    begins: bool = False
    ends: bool = False
    is_empty: bool = True

    def __add__(self, later: _Words) -> _Words:
        if self.is_empty or later.is_empty:
            return later if self.is_empty else self
        return _Words(self.count + later.count - (self.ends and later.begins), self.begins, later.ends, False)


def _words(block: bytes) -> _Words:
    """The bytes become the bytes of a number, 1 in a word and 0 outside: each word is two changes from one byte to the next."""
    inside = block.translate(_IS_WORD, _IGNORED)
    if not inside:
        return _Words()
    number = int.from_bytes(inside, "little")
    return _Words((number ^ number << 8).bit_count() // 2, bool(inside[0]), bool(inside[-1]), False)


@dataclass(frozen=True, slots=True)
class WordCount:
    """wc: newlines, words and bytes, as `LC_ALL=C wc` counts them.

    JSON: {"lines": 3, "words": 14, "bytes": 75}; of these what the options -l, -w, -c name, if any are given.
    """

    wanted: frozenset[str] = frozenset({"lines", "words", "bytes"})
    splits: bool = True
    streams: bool = False

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`."""
        lines = length = 0
        words = _Words()
        for block in blocks(run):
            length += len(block)
            if "lines" in self.wanted:
                lines += block.count(b"\n")
            if "words" in self.wanted:
                words += _words(block)
        yield pack(length, lines, words.count, words.begins, words.ends, words.is_empty)

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Any:
        """See `Function`."""
        lines = length = 0
        words = _Words()
        for partial in partials:
            for more_length, more_lines, *more_words in unpacked(partial):
                length += more_length
                lines += more_lines
                words += _Words(*more_words)
        told = {"lines": lines, "words": words.count, "bytes": length}
        return {what: count for what, count in told.items() if what in self.wanted}


@dataclass(frozen=True, slots=True)
class Histogram:
    """histogram: how often each value of a byte occurs.

    JSON: a list of 256 counts, of the values 0 to 255.
    """

    splits: bool = True
    streams: bool = False

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`."""
        counts: Counter[int] = Counter()
        for block in blocks(run):
            alike = block.count(block[:1])  # holes are zeros, and one value is counted much faster than all
            counts.update({block[0]: alike} if alike == len(block) else block)
        yield pack(*(counts[value] for value in range(256)))

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Any:
        """See `Function`."""
        total = [0] * 256
        for partial in partials:
            for counts in unpacked(partial):
                total = [count + more for count, more in zip(total, counts, strict=True)]
        return total
