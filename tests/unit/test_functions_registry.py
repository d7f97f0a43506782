"""The built-in functions by their names."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.offload import registry

USUAL: dict[str, list[object]] = {"grep": ["a"], "stats": [1], "sample": [1], "top": [1]}
STREAMS = {"grep", "sample", "gzip", "zstd", "sort"}


@pytest.mark.parametrize("name", registry.NAMES)
def test_every_function_says_what_its_result_is(name: str) -> None:
    function = registry.make(name, USUAL.get(name, []))
    assert function.streams is (name in STREAMS)
    assert function.splits is (name not in {"sha256", "md5", "xxh3", "sort"})


def test_a_count_of_matches_is_a_value() -> None:
    assert not registry.make("grep", ["-c", "a"]).streams


def test_an_unknown_function_is_an_error_that_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"there is no function 'rm': there are sha256, .*, sort"):
        registry.make("rm", [])


@pytest.mark.parametrize("name", ["sha256", "md5", "xxh3", "wc", "histogram", "sort"])
def test_what_takes_no_arguments_is_given_none(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} takes none beside its options, and was given 1"):
        registry.make(name, ["x"])


@pytest.mark.parametrize("name", registry.NAMES)
@given(
    words=st.lists(st.text(max_size=5) | st.integers() | st.none() | st.booleans() | st.floats() | st.just(["x"]), max_size=4)
)
def test_arguments_are_taken_or_refused_with_one_sentence(name: str, words: list[object]) -> None:
    try:
        registry.make(name, words)
    except ValueError as error:
        assert type(error) is ValueError
        assert 0 < len(str(error)) < 1000
        assert "\n" not in str(error)
