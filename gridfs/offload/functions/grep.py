"""grep: the lines that match a pattern, or how many there are."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from gridfs.offload.functions import arguments, pattern
from gridfs.offload.functions.function import Function
from gridfs.offload.functions.records import Body, Lines, Tallying, blocks, cut, joined

PATTERN_MAX_BYTES = 4096
"""Compiling one takes a tenth of a second at most, where jobs are submitted too."""
Span = tuple[int, int]


class Matcher(Protocol):
    """Finds matching lines."""

    def spans(self, lines: bytes) -> Iterator[Span]:
        """Where in `lines`, each of which ends with a newline, the matching ones are: start, and end after the newline."""

    def count(self, lines: bytes) -> int:
        """How many match."""


class _Matching:
    """Lines in which a Python pattern matches that never matches a newline: the rest of the line is matched with it.

    For plain texts too this is faster than `bytes.find` and the search for the line's end.
    """

    def __init__(self, translated: bytes, ignores_case: bool) -> None:
        self._ignores_case = ignores_case
        try:
            self._line = re.compile(rb"(?:%b)[^\n]*+\n" % translated, re.MULTILINE)
        except (re.error, OverflowError, RecursionError) as error:
            raise ValueError(f"the regular expression is too much for Python's: {error}") from error

    def spans(self, lines: bytes) -> Iterator[Span]:
        end = 0
        for match in self._line.finditer(self._folded(lines)):
            start = lines.rfind(b"\n", end, match.start()) + 1 or end
            end = match.end()
            yield start, end

    def count(self, lines: bytes) -> int:
        return len(self._line.findall(self._folded(lines)))

    def _folded(self, lines: bytes) -> bytes:
        return lines.lower() if self._ignores_case else lines


class _Others:
    """Lines in which another matcher finds nothing; adjacent ones are one span."""

    def __init__(self, matcher: Matcher) -> None:
        self._matcher = matcher

    def spans(self, lines: bytes) -> Iterator[Span]:
        last_end = 0
        for start, end in self._matcher.spans(lines):
            if start > last_end:
                yield last_end, start
            last_end = end
        if len(lines) > last_end:
            yield last_end, len(lines)

    def count(self, lines: bytes) -> int:
        return lines.count(b"\n") - self._matcher.count(lines)


class _Count:
    def __init__(self, matcher: Matcher) -> None:
        self._matcher, self._count = matcher, 0

    def add(self, lines: bytes) -> None:
        self._count += self._matcher.count(_ended(lines))

    def bodies(self) -> Iterator[Any]:
        yield self._count

    def merge(self, body: Any) -> None:
        self._count += body

    def result(self) -> Any:
        return self._count


@dataclass(frozen=True, slots=True)
class MatchingLines:
    """The matching lines, each ended by a newline; with their numbers, as in "12:text", if `numbers`."""

    matcher: Matcher
    numbers: bool
    splits: bool = True
    streams: bool = True

    def map(self, run: Iterator[memoryview], first: bool, last: bool, offset: int = 0) -> Iterator[bytes]:
        """See `Function`. A body is [lines passed over, lines of a block, the matching ones of these]."""
        skipped = 0
        for part in cut(blocks(run), first):
            if isinstance(part, Lines):
                count, found = self._found(part.content)
                if found:
                    yield Body([skipped, count, found]).packed()
                skipped = 0 if found else skipped + count
            else:
                if skipped:
                    yield Body([skipped, 0, []]).packed()
                    skipped = 0
                yield part.packed()
        if skipped:
            yield Body([skipped, 0, []]).packed()

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Iterator[bytes]:
        """See `Function`."""
        passed = 0
        for part in joined(partials):
            skipped, count, found = (0, *self._found(part.content)) if isinstance(part, Lines) else part.value
            passed += skipped
            if found:
                yield self._shown(found, passed)
            passed += count

    def _found(self, lines: bytes) -> tuple[int, list[Any]]:
        """How many lines these are, if numbers are wanted; and the matching ones, each after its number among them if so."""
        lines = _ended(lines)
        spans = self.matcher.spans(lines)
        if not self.numbers:
            matching = b"".join(lines[start:end] for start, end in spans)
            return 0, [matching] if matching else []
        found: list[Any] = []
        number = last_end = 0
        for start, end in spans:
            number += lines.count(b"\n", last_end, start)
            for line in _each(lines[start:end]):
                number += 1
                found += number, line
            last_end = end
        return number + lines.count(b"\n", last_end), found

    def _shown(self, found: list[Any], passed: int) -> bytes:
        if not self.numbers:
            return b"".join(found)
        return b"".join(b"%d:%b" % (passed + number, line) for number, line in zip(found[::2], found[1::2], strict=True))


def _each(lines: bytes) -> list[bytes]:
    return [line + b"\n" for line in lines[:-1].split(b"\n")]


def _ended(lines: bytes) -> bytes:
    return lines if lines.endswith(b"\n") else lines + b"\n"


def make(words: Sequence[Any]) -> Function:
    """grep [-c] [-n] [-i] [-v] [-F | -E] PATTERN, or -e PATTERN.

    -F: the pattern is a text. -E, the default: it is a POSIX extended regular expression, on bytes (see `pattern`).
    The output is that of `LC_ALL=C grep -a`; JSON with -c: a number, of the lines. Raises ValueError with a sentence.
    """
    options, rest = arguments.parse("grep", words, "cnivFEe:", most=len(words))
    patterns = [options["e"]] if "e" in options else []
    patterns += rest
    if len(patterns) != 1:
        raise ValueError(f"grep takes one pattern, and was given {len(patterns)}")
    if {"F", "E"} <= options.keys():
        raise ValueError("grep takes -F or -E, not both")
    matcher = _matcher(patterns[0].encode(errors="surrogateescape"), "F" in options, "i" in options)
    if "v" in options:
        matcher = _Others(matcher)
    return Tallying(lambda: _Count(matcher)) if "c" in options else MatchingLines(matcher, "n" in options)


def _matcher(wanted: bytes, is_text: bool, ignores_case: bool) -> Matcher:
    if b"\n" in wanted or len(wanted) > PATTERN_MAX_BYTES:
        raise ValueError(f"the pattern of grep is one line of up to {PATTERN_MAX_BYTES} bytes")
    if is_text:
        return _Matching(re.escape(wanted.lower() if ignores_case else wanted), ignores_case)
    return _Matching(pattern.translate(_without_stars(wanted), ignores_case), ignores_case)


def _without_stars(wanted: bytes) -> bytes:
    """The pattern without a ".*" that begins it: with it, Python would look at each line once for each of its bytes."""
    if wanted[:2] == b".*" and wanted[2:3] not in (b"*", b"+", b"?", b"{") and b"|" not in wanted:
        return wanted[2:]
    return wanted
