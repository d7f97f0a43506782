"""The built-in functions by their names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from gridfs.offload.functions import arguments, compression, grep, sample, sort, stats, top
from gridfs.offload.functions.counts import Histogram, WordCount
from gridfs.offload.functions.digests import HASHES, Digest
from gridfs.offload.functions.function import Function


def _word_count(words: Sequence[Any]) -> Function:
    options, _ = arguments.parse("wc", words, "lwc")
    names = {"l": "lines", "w": "words", "c": "bytes"}
    return WordCount(frozenset(names[option] for option in options or names))


def _histogram(words: Sequence[Any]) -> Function:
    arguments.parse("histogram", words, "")
    return Histogram()


def _digest(name: str, words: Sequence[Any]) -> Function:
    arguments.parse(name, words, "")
    return Digest(HASHES[name])


_MAKERS: dict[str, Callable[[Sequence[Any]], Function]] = {
    **{name: partial(_digest, name) for name in HASHES},
    "wc": _word_count,
    "grep": grep.make,
    "histogram": _histogram,
    "stats": stats.make,
    "sample": sample.make,
    "top": top.make,
    "gzip": compression.gzip,
    "zstd": compression.zstd,
    "sort": sort.make,
}
NAMES = tuple(_MAKERS)


def make(name: str, arguments: Sequence[Any]) -> Function:
    """The function with these arguments, which are texts and whole numbers.

    Raises ValueError with one sentence when there is no such function, or when it does not take them.
    """
    maker = _MAKERS.get(name)
    if maker is None:
        raise ValueError(f"there is no function {name!r:.100}: there are {', '.join(NAMES)}")
    return maker(arguments)
