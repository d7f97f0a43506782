"""A column of CSV, or a key of JSON lines: one value of each line.

A line is a record: a field in quotation marks may hold the delimiter, and "" for a quotation mark, but no newline. Empty
lines are no records. A CSV line may end with CR LF.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

from gridfs.offload.functions import arguments

Value = bytes | int | float
"""A field of CSV is bytes. A value of JSON is a number, or bytes: a text as UTF-8, anything else as JSON."""
_COLUMN_MAX = 100_000


class Column(Protocol):
    """Takes the values out of lines."""

    def values(self, lines: bytes) -> tuple[list[Value], int]:
        """The values, and how many records have none."""


@dataclass(frozen=True, slots=True)
class CsvColumn:
    """The column with this number, from 1 on."""

    number: int
    delimiter: bytes

    def values(self, lines: bytes) -> tuple[list[Value], int]:
        """See `Column`."""
        number, delimiter = self.number, self.delimiter
        records = _records(lines)
        if b'"' in lines:
            rows: Iterator[list[bytes]] = (fields(record, delimiter) for record in records)
        else:
            rows = (record.split(delimiter, number) for record in records)
        values: list[Value] = [row[number - 1] for row in rows if len(row) >= number]
        return values, len(records) - len(values)


@dataclass(frozen=True, slots=True)
class JsonKey:
    """The value of a key of the object that each line is; of several keys, that of an object in an object."""

    keys: tuple[str, ...]

    def values(self, lines: bytes) -> tuple[list[Value], int]:
        """See `Column`."""
        records = _records(lines)
        values = [value for record in records if (value := self._value(record)) is not None]
        return values, len(records) - len(values)

    def _value(self, record: bytes) -> Value | None:
        try:
            value = _JSON.decode(record.decode())
            for key in self.keys:
                value = value[key]
        except (ValueError, KeyError, TypeError, IndexError, RecursionError):
            return None
        if isinstance(value, str):
            return value.encode(errors="surrogatepass")
        if isinstance(value, int | float) and not isinstance(value, bool):
            return value
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()


@dataclass(frozen=True, slots=True)
class Chosen:
    """What a person says of a column: its number, or .key or .key.key of JSON lines, or a name.

    A name is looked for in the file's first line: a CSV header, or an object of JSON. So it needs the file in order.
    """

    text: str
    delimiter: bytes = b","

    @staticmethod
    def of(text: str, options: dict[str, str]) -> Chosen:
        """The column `text`, where -d gives the delimiter. Raises ValueError with a sentence."""
        delimiter = options.get("d", ",").replace("\\t", "\t").encode(errors="surrogateescape")
        if len(delimiter) != 1 or delimiter in b'"\r\n':
            raise ValueError("the delimiter is one byte, and neither a quotation mark nor the end of a line")
        if not text or (text.startswith(".") and not all(text[1:].split("."))):
            raise ValueError(f"a column is a number, a name, or .key of JSON lines, and not {text!r:.100}")
        if _is_number(text.lstrip("-")):
            arguments.whole_number(text, "the number of a column", 1, _COLUMN_MAX)
        return Chosen(text, delimiter)

    @property
    def splits(self) -> bool:
        """Whether it can be found without the file's first line."""
        return _is_number(self.text) or self.text.startswith(".")


class Reader:
    """Reads the values of a column, once it is known which one that is."""

    def __init__(self, chosen: Chosen) -> None:
        self._chosen = chosen
        self._column: Column | None = None

    def values(self, lines: bytes) -> tuple[list[Value], int]:
        """See `Column`. The first lines of a file, if need be, are those that say which column it is.

        Raises ValueError if they have no such name.
        """
        if self._column is None:
            lines = self._begin(lines)
        assert self._column is not None
        return self._column.values(lines)

    def packed(self) -> int | None:
        """Which column it is, as msgpack carries it."""
        if self._column is None:
            return None
        return self._column.number if isinstance(self._column, CsvColumn) else 0

    def merge(self, packed: int | None) -> None:
        """Take over what another reader has found out from the first line."""
        if packed is not None and not self._chosen.splits:
            self._column = CsvColumn(packed, self._chosen.delimiter) if packed else JsonKey((self._chosen.text,))

    def _begin(self, lines: bytes) -> bytes:
        """Find the column; the lines are given back without the header, if they have one that was needed."""
        text, delimiter = self._chosen.text, self._chosen.delimiter
        if _is_number(text):
            self._column = CsvColumn(int(text), delimiter)
            return lines
        if text.startswith("."):
            self._column = JsonKey(tuple(text[1:].split(".")))
            return lines
        header, _, rest = lines.partition(b"\n")
        if header.lstrip().startswith(b"{"):
            self._column = JsonKey((text,))
            return lines
        names = fields(header.removeprefix(b"\xef\xbb\xbf").removesuffix(b"\r"), delimiter)
        name = text.encode(errors="surrogateescape")
        if name not in names:
            shown = b", ".join(names[:20]).decode(errors="backslashreplace")
            raise ValueError(f"there is no column {text!r:.100}: the first line has {shown:.500}")
        self._column = CsvColumn(names.index(name) + 1, delimiter)
        return rest


def fields(record: bytes, delimiter: bytes) -> list[bytes]:
    """The fields of a CSV record, as Python's `csv` has them: quotation marks count at a field's beginning."""
    found: list[bytes] = []
    at = 0
    while True:
        quoted = b""
        if record.startswith(b'"', at):
            match = _QUOTED.match(record, at)
            assert match is not None  # it matches any text after a quotation mark
            quoted, at = match[1].replace(b'""', b'"'), match.end()
        end = record.find(delimiter, at)
        if end < 0:
            return [*found, quoted + record[at:]]
        found.append(quoted + record[at:end])
        at = end + 1


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def _records(lines: bytes) -> list[bytes]:
    if b"\r" in lines:
        lines = lines.replace(b"\r\n", b"\n").removesuffix(b"\r")
    return [line for line in lines.split(b"\n") if line]


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is not JSON")


_JSON = json.JSONDecoder(parse_constant=_no_number)
_QUOTED = re.compile(rb'"([^"]*+(?:""[^"]*+)*+)"?')
