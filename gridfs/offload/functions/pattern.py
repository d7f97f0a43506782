"""POSIX extended regular expressions, as `LC_ALL=C grep -E` has them, in terms of Python's `re` on bytes.

The translation never matches a newline, so that it can be searched for in many lines at once. What is not the same as in
GNU grep is refused: back-references, \\` and \\', equivalence classes and collating symbols, a repetition of nothing
(as in "*a" or "^*"), and a "{" that begins no interval. Unlike there, a search may take a time that is exponential in the
pattern's nested repetitions, or quadratic in a line's length: Python's `re` backtracks.
"""

from __future__ import annotations

import re
import string
from collections.abc import Iterator

_NEWLINE = 10
_REPEAT_MAX = 32767
_DEPTH_MAX = 50
"""Of groups in groups: both this translation and Python's `re` go down into them by calling themselves."""
_ASCII = {
    "alpha": string.ascii_letters,
    "digit": string.digits,
    "alnum": string.ascii_letters + string.digits,
    "upper": string.ascii_uppercase,
    "lower": string.ascii_lowercase,
    "space": " \t\n\v\f\r",
    "blank": " \t",
    "punct": string.punctuation,
    "xdigit": string.hexdigits,
    "print": "".join(map(chr, range(0x20, 0x7F))),
    "graph": "".join(map(chr, range(0x21, 0x7F))),
    "cntrl": "".join(map(chr, (*range(0x20), 0x7F))),
}
_CLASSES = {name: frozenset(members.encode()) for name, members in _ASCII.items()}
_WORD = _CLASSES["alnum"] | {ord("_")}
_ALL = frozenset(range(256))
_SETS = {ord("w"): _WORD, ord("W"): _ALL - _WORD, ord("s"): _CLASSES["space"], ord("S"): _ALL - _CLASSES["space"]}
_PLACES = {
    ord("b"): rb"\b",
    ord("B"): rb"(?:(?<=\w)(?=\w)|(?<!\w)(?!\w))",
    ord("<"): rb"\b(?=\w)",
    ord(">"): rb"\b(?<=\w)",
}
_INTERVAL = re.compile(rb"\{(?:(\d{1,5})(,(\d{1,5})?)?|,(\d{1,5}))\}")


def translate(pattern: bytes, ignores_case: bool = False) -> bytes:
    """The Python pattern that matches in the same lines; if case is ignored, in the same lines in lower case.

    It must be compiled with re.MULTILINE.

    Raises ValueError with a sentence for what is no such expression, or refused.
    """
    return _Translation(pattern, ignores_case).translated()


def _one_of(members: frozenset[int], ignores_case: bool) -> bytes:
    if ignores_case:
        members = frozenset(bytes(members).lower())
    members = members - {_NEWLINE}
    if len(members) == 1:
        return re.escape(bytes(members))
    return b"[%b]" % b"".join(rb"\x%02x-\x%02x" % ends for ends in _ranges(members)) if members else rb"(?!)"


def _ranges(members: frozenset[int]) -> Iterator[tuple[int, int]]:
    """The first and the last of adjacent members: Python takes its time to compile a set of many that are named one by one."""
    firsts = (member for member in sorted(members) if member - 1 not in members)
    lasts = (member for member in sorted(members) if member + 1 not in members)
    return zip(firsts, lasts, strict=True)


class _Translation:
    def __init__(self, pattern: bytes, ignores_case: bool) -> None:
        self._pattern, self._ignores_case = pattern, ignores_case
        self._at = self._depth = 0

    def translated(self) -> bytes:
        found = self._alternatives()
        if self._at < len(self._pattern):
            raise self._error("has a ) without a (")
        return found

    def _alternatives(self) -> bytes:
        branches = [self._branch()]
        while self._next() == b"|":
            self._at += 1
            branches.append(self._branch())
        return b"|".join(branches)

    def _branch(self) -> bytes:
        parts: list[bytes] = []
        while self._next() not in (b"", b"|", b")"):
            part, may_repeat = self._atom()
            while (times := self._times()) is not None:
                if not may_repeat:
                    raise self._error("repeats nothing")
                part = b"(?:%b)%b" % (part, times)
            parts.append(part)
        return b"".join(parts)

    def _next(self) -> bytes:
        return self._pattern[self._at : self._at + 1]

    def _atom(self) -> tuple[bytes, bool]:
        """The translation of what stands here, and whether it may be repeated."""
        byte = self._pattern[self._at]
        self._at += 1
        match chr(byte):
            case "(":
                return self._group(), True
            case "[":
                return self._bracket(), True
            case "\\":
                return self._escaped()
            case ".":
                return b".", True  # of Python without re.DOTALL: all but a newline
            case "^" | "$" as place:
                return place.encode(), False
            case "*" | "+" | "?":
                raise self._error("repeats nothing")
            case "{":
                raise self._error(r"has a { that begins no interval: the character itself is written \{")
            case "\n":
                raise self._error("has more than one line")
        return _one_of(frozenset({byte}), self._ignores_case), True

    def _group(self) -> bytes:
        self._depth += 1
        if self._depth > _DEPTH_MAX:
            raise self._error(f"has groups more than {_DEPTH_MAX} deep")
        found = self._alternatives()
        if self._next() != b")":
            raise self._error("has a ( without a )")
        self._at += 1
        self._depth -= 1
        return b"(?:%b)" % found

    def _escaped(self) -> tuple[bytes, bool]:
        escaped = self._next()
        self._at += 1
        if not escaped:
            raise self._error("ends with a backslash")
        if escaped[0] in _PLACES:
            return _PLACES[escaped[0]], False
        if escaped[0] in _SETS:
            return _one_of(_SETS[escaped[0]], False), True
        if escaped[0] not in string.punctuation.encode() or escaped in b"`'":
            raise self._error(
                f"has a backslash before {escaped.decode('ascii', 'backslashreplace')!r}, which means nothing here"
            )
        return re.escape(escaped), True

    def _times(self) -> bytes | None:
        """How often what stands before is repeated, as Python writes it; None if that is not said."""
        sign = self._next()
        if sign in (b"*", b"+", b"?"):
            self._at += 1
            return sign
        found = _INTERVAL.match(self._pattern, self._at)
        if not found:
            return None
        self._at = found.end()
        least, comma, most, only_most = found.groups()
        low = int(least or 0)
        high = int(most or only_most or _REPEAT_MAX) if comma or only_most else low
        if not low <= high <= _REPEAT_MAX:
            raise self._error("has an interval that is not in order")
        is_open = comma and not most
        return b"{%d,}" % low if is_open else b"{%d,%d}" % (low, high)

    def _bracket(self) -> bytes:
        is_negated = self._next() == b"^"
        self._at += is_negated
        start, members = self._at, set[int]()
        while self._at == start or self._next() != b"]":
            members |= self._members()
        self._at += 1
        if not is_negated:
            return _one_of(frozenset(members), self._ignores_case)
        if self._ignores_case:
            members |= {*bytes(members).lower(), *bytes(members).upper()}
        return _one_of(_ALL - members, False)

    def _members(self) -> frozenset[int]:
        """The next of a bracket's members: a class, a range, or a byte."""
        if self._pattern[self._at : self._at + 2] == b"[:":
            return self._class()
        low = self._byte()
        if self._next() != b"-" or self._pattern[self._at + 1 : self._at + 2] in (b"]", b""):
            return frozenset({low})
        self._at += 1
        high = self._byte()
        if high < low:
            raise self._error("has a range that is not in order")
        return frozenset(range(low, high + 1))

    def _byte(self) -> int:
        byte = self._next()
        if not byte or byte == b"\n":
            raise self._error("has a [ without a ]" if not byte else "has more than one line")
        if byte == b"[" and self._pattern[self._at + 1 : self._at + 2] in (b".", b"=", b":"):
            raise self._error("has [. or [= in brackets, which is not supported")
        self._at += 1
        return byte[0]

    def _class(self) -> frozenset[int]:
        end = self._pattern.find(b":]", self._at + 2)
        name = self._pattern[self._at + 2 : end].decode("latin-1") if end >= 0 else ""
        if name not in _CLASSES:
            raise self._error(f"has a class of characters that there is not: {name!r:.40}")
        self._at = end + 2
        members = _CLASSES[name]
        return _CLASSES["alpha"] if self._ignores_case and name in ("upper", "lower") else members

    def _error(self, what: str) -> ValueError:
        return ValueError(f"the regular expression {what}")
