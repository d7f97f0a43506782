"""top: which lines, or values of a column, are the most frequent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from heapq import nsmallest
from itertools import islice
from typing import Any

from gridfs.config import MIB
from gridfs.offload.functions import arguments
from gridfs.offload.functions.columns import Chosen, Reader
from gridfs.offload.functions.function import Function
from gridfs.offload.functions.records import Tallying

KEYS_MAX = 1_000_000
KEYS_MAX_BYTES = 128 * MIB
"""All keys are counted exactly, in at most so much memory, and about 100 bytes for each beside that."""
_TOP_MAX = 100_000
_BODY_KEYS = 10_000


class Top:
    """The most frequent lines, or values of a column; of equally frequent ones those that sort first, bytewise.

    JSON: {"top": [{"key": "GET", "count": 7}, ...], "keys": 3, "lines": 12, "invalid": 0}: how many different keys there
    are, how many records have one, and how many have none. Bytes of a key that are not UTF-8 are written as \\xff. A key of
    whole lines may be empty, and a header is counted when the column is given by number. Text and numbers of JSON that
    look alike are one key. Raises ValueError when there are more than KEYS_MAX keys, or more than KEYS_MAX_BYTES of them.
    """

    def __init__(self, top: int, chosen: Chosen | None) -> None:
        self._top, self._reader = top, Reader(chosen) if chosen else None
        self._counts: Counter[bytes] = Counter()
        self._keys = self._keys_bytes = self._invalid = 0

    def add(self, lines: bytes) -> None:
        """See `Tally`."""
        if self._reader is None:
            self._count(Counter(lines.removesuffix(b"\n").split(b"\n")))
        else:
            values, invalid = self._reader.values(lines)
            self._invalid += invalid
            self._count(Counter(value if isinstance(value, bytes) else repr(value).encode() for value in values))

    def _count(self, counts: Counter[bytes]) -> None:
        """Counts of a block first: frequent keys are added once for all their lines, and new ones are seen."""
        known = self._counts
        for key, count in counts.items():
            if key not in known:
                self._keys_bytes += len(key)
                if len(known) >= KEYS_MAX or self._keys_bytes > KEYS_MAX_BYTES:
                    raise ValueError(f"there are more than {KEYS_MAX:,} different keys, or {KEYS_MAX_BYTES // MIB} MiB of them")
                known[key] = count
            else:
                known[key] += count

    def bodies(self) -> Iterator[Any]:
        """See `Tally`."""
        yield self._reader and self._reader.packed(), self._invalid, []
        counts = iter(self._counts.items())
        while some := list(islice(counts, _BODY_KEYS)):
            yield None, 0, some

    def merge(self, body: Any) -> None:
        """See `Tally`."""
        column, invalid, counts = body
        if self._reader:
            self._reader.merge(column)
        self._invalid += invalid
        self._count(Counter(dict(counts)))

    def result(self) -> Any:
        """See `Tally`."""
        first = nsmallest(self._top, self._counts.items(), key=lambda item: (-item[1], item[0]))
        return {
            "top": [{"key": key.decode(errors="backslashreplace"), "count": count} for key, count in first],
            "keys": len(self._counts),
            "lines": self._counts.total(),
            "invalid": self._invalid,
        }


def make(words: Sequence[Any]) -> Function:
    """top N [COLUMN [-d DELIMITER]]: see `Chosen` and `Top`. Raises ValueError with a sentence."""
    options, (count, *columns) = arguments.parse("top", words, "d:", 1, 2)
    top = arguments.whole_number(count, "the number of keys", 1, _TOP_MAX)
    if options and not columns:
        raise ValueError("top takes a delimiter only with a column")
    chosen = Chosen.of(columns[0], options) if columns else None
    return Tallying(lambda: Top(top, chosen), splits=chosen is None or chosen.splits)
