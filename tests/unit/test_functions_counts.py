"""wc, histogram and the digests."""

from __future__ import annotations

import hashlib
import subprocess
from typing import Any

import pytest
import xxhash
from hypothesis import given, settings
from hypothesis import strategies as st

from gridfs.offload import registry
from tests.unit.runs import Run, content_of, small_blocks, split, split_result, whole_result

pytestmark = pytest.mark.usefixtures("small_blocks")
__all__ = ["small_blocks"]

TEXTS = st.lists(st.sampled_from(list(b"ab \t\n\v\f\r\0\x01\x7f\x80\xa0\xff"))).map(bytes)


def printed(*words: str, given: bytes) -> bytes:
    return subprocess.run(words, input=given, capture_output=True, env={"LC_ALL": "C"}, check=True, timeout=60).stdout


IGNORES_UNPRINTABLE = printed("/usr/bin/wc", "-w", given=b"\x01").strip() == b"0"
"""A newer wc takes unprintable bytes for letters."""


@given(TEXTS | st.binary())
@settings(max_examples=200)
def test_words_are_those_of_wc(content: bytes) -> None:
    if not IGNORES_UNPRINTABLE:
        content = bytes(byte for byte in content if byte in b"ab \t\n\v\f\r")
    lines, words, length = map(int, printed("/usr/bin/wc", "-lwc", given=content).split())
    assert whole_result(registry.make("wc", []), content) == {"lines": lines, "words": words, "bytes": length}


@pytest.mark.parametrize(("options", "wanted"), [(["-l"], {"lines": 2}), (["-wc"], {"words": 3, "bytes": 7})])
def test_wc_tells_what_it_is_asked(options: list[str], wanted: dict[str, int]) -> None:
    assert whole_result(registry.make("wc", options), b"a\nbc\n\td") == wanted


@given(st.binary() | TEXTS)
def test_a_histogram_counts_each_value(content: bytes) -> None:
    assert whole_result(registry.make("histogram", []), content) == [content.count(value) for value in range(256)]


@pytest.mark.parametrize("name", ["wc", "histogram"])
@given(split(TEXTS))
def test_counts_do_not_depend_on_the_split(name: str, runs: list[Run]) -> None:
    function = registry.make(name, [])
    assert function.splits
    assert split_result(function, runs) == whole_result(function, content_of(runs))


@pytest.mark.parametrize(("name", "expected"), [("sha256", hashlib.sha256), ("md5", hashlib.md5), ("xxh3", xxhash.xxh3_64)])
@given(split(st.binary()))
def test_a_digest_is_that_of_all_bytes(name: str, expected: Any, runs: list[Run]) -> None:
    function = registry.make(name, [])
    assert not function.splits
    assert split_result(function, [[view for run in runs for view in run]]) == expected(content_of(runs)).hexdigest()


@pytest.mark.parametrize(
    ("name", "empty"), [("sha256", hashlib.sha256().hexdigest()), ("wc", {"lines": 0, "words": 0, "bytes": 0})]
)
def test_no_run_is_an_empty_file(name: str, empty: object) -> None:
    function = registry.make(name, [])
    assert split_result(function, []) == empty == whole_result(function, b"")
