"""stats: minimum, maximum, mean and sum of a column's numbers."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from fractions import Fraction
from typing import Any

from gridfs.offload.functions import arguments
from gridfs.offload.functions.columns import Chosen, Reader, Value
from gridfs.offload.functions.function import Function
from gridfs.offload.functions.records import Tallying

_NUMBER = re.compile(rb"[ \t]*[+-]?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]+)?[ \t]*")


class Stats:
    """The numbers of a column.

    JSON: {"count": 3, "min": -1.5, "max": 7.0, "sum": 6.5, "mean": 2.1666666666666665, "invalid": 1}. `invalid` counts the
    records without a finite decimal number there (a text of JSON may be one), the header of a CSV file among them when the
    column is given by number. Without numbers min, max and mean are null. Each number is the nearest double; sum and mean
    are exact over these, and then rounded once; a sum beyond the doubles is null.
    """

    def __init__(self, chosen: Chosen) -> None:
        self._reader = Reader(chosen)
        self._count = self._invalid = 0
        self._min, self._max = math.inf, -math.inf
        self._sum = Fraction(0)

    def add(self, lines: bytes) -> None:
        """See `Tally`."""
        values, without = self._reader.values(lines)
        found = _numbers(values)
        self._invalid += without + len(values) - len(found)
        if found:
            self._take(len(found), min(found), max(found), exact_sum(found))

    def _take(self, count: int, least: float, most: float, total: Fraction) -> None:
        self._count += count
        self._min, self._max = min(self._min, least), max(self._max, most)
        self._sum += total

    def bodies(self) -> Iterator[Any]:
        """See `Tally`. The last two are the sum's numerator and denominator, in hexadecimal: msgpack's numbers have 64 bits."""
        total = f"{self._sum.numerator:x}", f"{self._sum.denominator:x}"
        yield self._reader.packed(), self._invalid, self._count, self._min, self._max, *total

    def merge(self, body: Any) -> None:
        """See `Tally`."""
        column, invalid, count, least, most, numerator, denominator = body
        self._reader.merge(column)
        self._invalid += invalid
        self._take(count, least, most, Fraction(int(numerator, 16), int(denominator, 16)))

    def result(self) -> Any:
        """See `Tally`."""
        told: dict[str, Any] = {"count": self._count, "min": None, "max": None, "sum": _double(self._sum), "mean": None}
        if self._count:
            told |= {"min": self._min, "max": self._max, "mean": _double(self._sum / self._count)}
        return told | {"invalid": self._invalid}


def _double(number: Fraction) -> float | None:
    try:
        return float(number)
    except OverflowError:
        return None


def _numbers(values: list[Value]) -> list[float]:
    """Those of the values that are finite numbers."""
    text = b",".join(value for value in values if isinstance(value, bytes))
    if not _STRANGE.search(text):
        try:
            found = list(map(float, values))
        except (ValueError, OverflowError):
            pass
        else:
            if all(map(math.isfinite, found)):
                return found
    return [number for number in map(_number, values) if number is not None]


_STRANGE = re.compile(rb"[^0-9+.eE, -]")
"""What float() takes beside decimal numbers (nan, inf, underscores, other whitespace), and much else."""


def _number(value: Value) -> float | None:
    if isinstance(value, bytes) and not _NUMBER.fullmatch(value):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def exact_sum(numbers: list[float]) -> Fraction:
    """The sum, without an error: `fsum` rounds once, so what is left after taking its result away is the rest, and so on."""
    total = Fraction(0)
    parts: list[float] = []
    try:
        while part := math.fsum((*numbers, *parts)):
            total += Fraction(part)
            parts.append(-part)
    except OverflowError:
        return sum(map(Fraction, numbers), Fraction(0))
    return total


def make(words: Sequence[Any]) -> Function:
    """stats COLUMN [-d DELIMITER]: see `Chosen` and `Stats`. Raises ValueError with a sentence."""
    options, (column,) = arguments.parse("stats", words, "d:", 1, 1)
    chosen = Chosen.of(column, options)
    return Tallying(lambda: Stats(chosen), splits=chosen.splits)
