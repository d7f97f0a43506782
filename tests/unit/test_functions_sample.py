"""sample: lines, each as likely as any other."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.offload import registry
from gridfs.offload.functions import records, sample
from tests.unit.runs import BLOCK_BYTES, Run, content_of, small_blocks, split, split_result, whole_result

pytestmark = pytest.mark.usefixtures("small_blocks")
__all__ = ["small_blocks"]

CONTENTS = st.lists(st.sampled_from([b"\n", b"a", b"bc", b"\na\n"])).map(b"".join)


def sampled(count: int, seed: int, content: bytes) -> list[bytes]:
    found = whole_result(registry.make("sample", [count, seed]), content)
    assert isinstance(found, bytes)
    return found.splitlines(keepends=True)


def lines_of(content: bytes) -> list[bytes]:
    return [line + b"\n" for line in content.removesuffix(b"\n").split(b"\n")] if content else []


@given(st.integers(1, 8), st.integers(0, 5), split(CONTENTS, unit=BLOCK_BYTES))
def test_a_sample_does_not_depend_on_the_split(count: int, seed: int, runs: list[Run]) -> None:
    function = registry.make("sample", [count, seed])
    assert function.splits
    assert split_result(function, runs) == whole_result(function, content_of(runs))


@given(st.integers(1, 12), st.integers(0, 5), CONTENTS)
def test_a_sample_is_so_many_of_the_lines(count: int, seed: int, content: bytes) -> None:
    lines, found = lines_of(content), sampled(count, seed, content)
    assert len(found) == min(count, len(lines))
    assert not Counter(found) - Counter(lines)
    if count >= len(lines):
        assert found == lines


@given(st.sets(st.integers(0, 99), min_size=1), st.integers(1, 20))
def test_a_sample_is_in_the_order_of_the_file(numbers: set[int], count: int) -> None:
    found = sampled(count, 0, b"".join(b"%02d\n" % number for number in sorted(numbers)))
    assert found == sorted(set(found))


@pytest.mark.parametrize("block_bytes", [4, 64, 1 << 20])
def test_each_line_is_as_likely_as_any_other(block_bytes: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of 30 lines is in a tenth of 3000 samples: 300 times, give or take six standard deviations."""
    monkeypatch.setattr(records, "BLOCK_BYTES", block_bytes)
    content = b"".join(b"%d\n" % number for number in range(29)) + b"29"
    counts = Counter(line for seed in range(3000) for line in sampled(3, seed, content))
    assert len(counts) == 30
    assert all(200 < count < 400 for count in counts.values())


def test_blocks_that_are_alike_are_drawn_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "BLOCK_BYTES", 20)
    content = b"".join(b"%d\n" % number for number in range(10)) * 100
    assert len(set(sampled(30, 1, content))) > 5
    runs = [[content[:1000]], [content[1000:]]]
    assert split_result(registry.make("sample", [30, 1]), runs) == b"".join(sampled(30, 1, content))


def test_another_seed_is_another_sample() -> None:
    content = b"".join(b"%d\n" % number for number in range(1000))
    assert sampled(10, 1, content) == sampled(10, 1, content) != sampled(10, 2, content)
    assert whole_result(registry.make("sample", ["10"]), content) == b"".join(sampled(10, 0, content))


def test_a_sample_that_is_too_long_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sample, "SAMPLE_MAX_BYTES", 10)
    assert len(sampled(2, 0, b"1234\n" * 5)) == 2
    with pytest.raises(ValueError, match="the sample is longer than"):
        sampled(3, 0, b"1234\n" * 5)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "sample takes 1 to 2 beside its options, and was given 0"),
        (["x"], "the number of lines is a whole number from 1 to 100000, and not 'x'"),
        ([100_001], "the number of lines is a whole number"),
        ([1, 1 << 64], "the seed is a whole number"),
    ],
)
def test_wrong_arguments_are_an_error(words: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        registry.make("sample", words)
