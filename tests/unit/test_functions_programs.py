"""gzip, zstd and sort: what the programs of these names make of it, or make it from."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gridfs.offload import registry
from gridfs.offload.functions.program import through
from tests.unit.runs import Run, content_of, split, split_result, views, whole_result

CONTENTS = st.binary() | st.lists(st.sampled_from([b"a\n", b"10\n", b"9", b"\n", b"\xff", b" b"])).map(b"".join)
UNPACKERS = {"gzip": ["gunzip"], "zstd": ["zstd", "-d", "-q"]}


def printed(words: list[str], content: bytes) -> bytes:
    return subprocess.run(
        words, input=content, capture_output=True, env={**os.environ, "LC_ALL": "C"}, check=True, timeout=60
    ).stdout


@pytest.mark.parametrize("name", ["gzip", "zstd"])
@pytest.mark.parametrize("words", [[], [1], ["-9"]])
@given(runs=split(CONTENTS))
@settings(max_examples=15, deadline=None)
def test_what_is_compressed_in_runs_is_a_file_of_the_format(name: str, words: list[object], runs: list[Run]) -> None:
    function = registry.make(name, words)
    assert function.splits
    assert printed(UNPACKERS[name], split_result(function, runs)) == content_of(runs)


@pytest.mark.parametrize("name", ["gzip", "zstd"])
def test_an_empty_file_is_one_too(name: str) -> None:
    function = registry.make(name, [])
    nothing: list[list[Run]] = [[], [[]], [[b""]]]
    for runs in nothing:
        assert printed(UNPACKERS[name], compressed := split_result(function, runs)) == b""
        assert compressed


def test_a_level_is_passed_on() -> None:
    content = b"".join(b"%d and %d\n" % (number, number * number) for number in range(50_000))
    fast, small = (len(whole_result(registry.make("gzip", [level]), content)) for level in (1, 9))
    assert small < fast
    fast, small = (whole_result(registry.make("zstd", [level]), content) for level in (1, 19))
    assert fast != small == printed(["zstd", "-19", "-q", "-c"], content)


@pytest.mark.parametrize("options", [(), ("-n",), ("-r",), ("-u",), ("-n", "-r"), ("-r", "-u"), ("-n", "-r", "-u")])
@given(runs=split(CONTENTS))
@settings(max_examples=15, deadline=None)
def test_lines_are_sorted_as_by_sort(options: tuple[str, ...], runs: list[Run]) -> None:
    function = registry.make("sort", options)
    assert not function.splits
    in_order = [view for run in runs for view in run]
    assert split_result(function, [in_order]) == printed(["sort", *options], content_of(runs))


def test_what_is_larger_than_the_pipes_goes_through() -> None:
    content = os.urandom(1 << 20)
    assert b"".join(through(["cat"], views([content, b"", content]))) == content * 2


def test_a_program_that_is_not_there_is_said_when_it_is_needed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    function = registry.make("zstd", [])
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(ValueError, match=r"^zstd is not installed on this node$"):
        whole_result(function, b"x")


def test_a_program_that_fails_is_an_error_with_what_it_said() -> None:
    command = [sys.executable, "-c", "import sys; sys.exit('no space left')"]
    with pytest.raises(ValueError, match=r"failed: no space left$"):
        list(through(command, views([bytes(1 << 20)] * 3)))


def test_a_program_that_wants_no_more_is_none() -> None:
    assert b"".join(through(["head", "-c3"], views([bytes(1 << 20)] * 3))) == bytes(3)


def test_an_error_of_the_input_ends_the_program() -> None:
    def broken() -> Iterator[memoryview]:
        yield memoryview(b"x")
        raise OSError("the bytes are lost")

    with pytest.raises(OSError, match="the bytes are lost"):
        list(through(["cat"], broken()))
    assert children() == []


def test_who_wants_no_more_ends_the_program() -> None:
    output = through(["sh", "-c", "echo ready; exec sleep 30"], views([b"x"]))
    assert next(output) == b"ready\n"
    assert len(children()) == 1
    started = time.monotonic()
    output.close()  # type: ignore[attr-defined]
    assert children() == []
    assert time.monotonic() - started < 20


def children() -> list[str]:
    return Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()


def test_gzip_members_can_be_told_apart() -> None:
    """One for each run, without a time: the same content is the same bytes."""
    compressed = split_result(registry.make("gzip", []), [[b"same"], [b"same"]])
    assert compressed[: len(compressed) // 2] * 2 == compressed
    assert zlib.decompress(compressed[: len(compressed) // 2], 31) == b"same"


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("gzip", [10], "the level of gzip is a whole number from 1 to 9, and not '10'"),
        ("gzip", ["-0"], "the level of gzip is a whole number from 1 to 9, and not '0'"),
        ("zstd", [20], "the level of zstd is a whole number from 1 to 19, and not '20'"),
        ("zstd", ["--ultra"], "the level of zstd is a whole number|option"),
        ("sort", ["-k2"], "option -k not recognized"),
        ("sort", ["file"], "sort takes none beside its options, and was given 1"),
    ],
)
def test_wrong_arguments_are_an_error(name: str, words: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        registry.make(name, words)
