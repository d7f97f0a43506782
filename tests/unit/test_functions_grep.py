"""grep, as GNU grep does it."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from gridfs.offload import registry
from tests.unit.runs import Run, content_of, small_blocks, split, split_result, whole_result

pytestmark = pytest.mark.usefixtures("small_blocks")
__all__ = ["small_blocks"]

TEXTS = st.lists(st.sampled_from(list(b"aaabbAB_ 1-]\n\n\t\r\x80"))).map(bytes)
OPTIONS = st.lists(st.sampled_from(["-c", "-n", "-i", "-v"]), max_size=3, unique=True)
ATOMS = st.sampled_from(
    [
        *(
            "a",
            "b",
            "A",
            "1",
            "_",
            "]",
            "-",
            "}",
            ".",
            "^",
            "$",
            r"\.",
            r"\{",
            r"\w",
            r"\W",
            r"\s",
            r"\S",
            r"\b",
            r"\B",
            r"\<",
            r"\>",
        ),
        *(
            "[ab]",
            "[^a]",
            "[]a]",
            "[^]a]",
            "[a-c]",
            "[a-]",
            "[[:alpha:]]",
            "[[:upper:]]",
            "[^[:space:]1]",
            "[A-b]",
            "[\\w]",
            "()",
        ),
    ]
)
PLACES = ("^", "$", r"\b", r"\B", r"\<", r"\>")
TIMES = st.sampled_from(["", "", "", "*", "+", "?", "{2}", "{1,2}", "{,1}", "{1,}", "*?"])


def _repeated(atom: str, times: str) -> str:
    return atom if atom in PLACES else atom + times


PARTS = st.builds(_repeated, ATOMS, TIMES)
PATTERNS = st.recursive(
    st.lists(PARTS, max_size=4).map("".join),
    lambda inner: (
        st.lists(inner, min_size=1, max_size=3).map(lambda branches: f"({'|'.join(branches)})")
        | st.tuples(inner, inner).map("".join)
    ),
    max_leaves=4,
)


def printed(words: list[str], content: bytes) -> bytes:
    """What GNU grep prints; it ends with 1 when nothing matches. It leaves out the count when it knows that without looking."""
    done = subprocess.run(["grep", "-a", *words], input=content, capture_output=True, env={"LC_ALL": "C"}, timeout=60)
    assert done.returncode in (0, 1), done.stderr
    return done.stdout or (b"0\n" if "-c" in words else b"")


def ours(words: list[str], content: bytes) -> bytes:
    found = whole_result(registry.make("grep", words), content)
    return found if isinstance(found, bytes) else b"%d\n" % found


@given(OPTIONS, PATTERNS, TEXTS)
@settings(max_examples=400, deadline=None)
def test_regular_expressions_match_as_in_gnu_grep(options: list[str], pattern: str, content: bytes) -> None:
    assert ours([*options, "--", pattern], content) == printed(["-E", *options, "--", pattern], content)


@given(OPTIONS, st.text(alphabet="aAb.*[\\$ -", max_size=3), TEXTS)
@settings(max_examples=200, deadline=None)
def test_fixed_strings_match_as_in_gnu_grep(options: list[str], text: str, content: bytes) -> None:
    assert ours(["-F", *options, "--", text], content) == printed(["-F", *options, "--", text], content)


@given(OPTIONS, PATTERNS, split(TEXTS))
@settings(deadline=None)
def test_matches_do_not_depend_on_the_split(options: list[str], pattern: str, runs: list[Run]) -> None:
    function = registry.make("grep", [*options, "--", pattern])
    assert function.splits
    assert split_result(function, runs) == whole_result(function, content_of(runs))


@pytest.mark.parametrize("words", [["-n", "b"], ["-nv", "b"], ["-n", "^$"]])
@given(split(st.lists(st.sampled_from([b"a\n", b"a\n", b"b\n", b"\n", b"b"]), max_size=40).map(b"".join)))
@settings(deadline=None)
def test_lines_have_the_numbers_that_gnu_grep_gives_them(words: list[str], runs: list[Run]) -> None:
    assert split_result(registry.make("grep", words), runs) == printed(words, content_of(runs))


@pytest.mark.parametrize("pattern", [".*b", ".*a.*", ".*", ".*|x", ".+b", ".**b"])
def test_a_pattern_that_begins_with_anything_matches_as_before(pattern: str) -> None:
    content = b"ab\n\nba\nxa\nb"
    assert ours([pattern], content) == printed(["-E", pattern], content)


def test_bytes_beyond_ascii_are_bytes() -> None:
    content = "é\nè\nx\n".encode()
    for words in (["é"], ["[é]"], ["-F", "é"], ["^..$"], ["-i", "É"]):
        assert ours(words, content) == printed(words[:-1] + ["-E"] * (words[0] != "-F") + words[-1:], content)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "one pattern, and was given 0"),
        (["a", "b"], "one pattern, and was given 2"),
        (["-e", "a", "b"], "one pattern, and was given 2"),
        (["-F", "-E", "a"], "-F or -E, not both"),
        (["-P", "a"], "option -P not recognized"),
        (["--count", "a"], "option --count not recognized"),
        (["a\nb"], "one line"),
        (["-F", "a\nb"], "one line"),
        (["-F", "a" * 5000], "of up to 4096 bytes"),
        (["*a"], "repeats nothing"),
        (["a|+"], "repeats nothing"),
        (["^*"], "repeats nothing"),
        (["(a"], r"a \( without a \)"),
        (["a)"], r"a \) without a \("),
        (["[a"], r"a \[ without a \]"),
        (["[[:alpha]"], "a class of characters that there is not"),
        (["[[:letter:]]"], "a class of characters that there is not: 'letter'"),
        (["[[=a=]]"], "not supported"),
        (["[b-a]"], "a range that is not in order"),
        (["a{2,1}"], "an interval that is not in order"),
        (["a{40000}"], "an interval that is not in order"),
        (["a{"], "a { that begins no interval"),
        (["a\\"], "ends with a backslash"),
        ([r"(a)\1"], "a backslash before '1'"),
        ([r"\d"], "a backslash before 'd'"),
        (["(" * 1000], "groups more than 50 deep"),
        ([True], "texts and whole numbers, and True is neither"),
        ([None], "texts and whole numbers"),
    ],
)
def test_wrong_arguments_are_an_error(words: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        registry.make("grep", words)


@given(st.text(alphabet="ab\\[]()*+?{}|^$.,-:123 w<\n", max_size=12), TEXTS)
@settings(max_examples=500, deadline=None)
def test_any_pattern_is_refused_or_matches_as_in_gnu_grep(pattern: str, content: bytes) -> None:
    try:
        found = ours(["--", pattern], content)
    except ValueError:
        assume(False)
    assert found == printed(["-E", "--", pattern], content)
