"""stats and top: values of CSV columns, of JSON lines, and whole lines."""

from __future__ import annotations

import csv
import json
import math
import statistics
from collections import Counter
from fractions import Fraction
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.offload import registry
from gridfs.offload.functions import columns, top
from gridfs.offload.functions.stats import exact_sum
from tests.unit.runs import Run, content_of, small_blocks, split, split_result, whole_result

pytestmark = pytest.mark.usefixtures("small_blocks")
__all__ = ["small_blocks"]

LINES = st.lists(st.sampled_from(list(b'aab1,.-e"\n\n\r;'))).map(bytes)
NUMBERS = st.floats(allow_nan=False, allow_infinity=False)
CELLS = st.sampled_from(
    ["1", "-2.5", "1e300", "-1e300", "0.1", " 7 ", "", "x", "1_0", "nan", "inf", "1e999", '"3,5"', '"4"', "٣"]
)
TABLES = st.lists(st.lists(CELLS, min_size=1, max_size=3)).map(lambda rows: "\n".join(map(",".join, rows)).encode())
RECORDS = st.sampled_from(
    [
        *(
            '{"a":1}',
            '{"a":-0.5,"b":{"c":2}}',
            '{"b":{"c":"x"}}',
            '{"b":[1]}',
            '{"a":true}',
            '{"a":"12"}',
            '{"a":NaN}',
            '{"a":1e999}',
        ),
        *("[]", "1", "{", "", '{"a":1} {"a":2}', '{"a":null}', "[" * 3000, '{"a":' + "1" * 5000 + "}", '{"a":"é\\ud800"}'),
    ]
)
OBJECTS = st.lists(RECORDS, max_size=6).map("\n".join).map(str.encode)


# -- fields ----------------------------------------------------------------------------------------------------------


@given(st.text(alphabet='ab",; ', max_size=12))
def test_fields_are_those_that_csv_finds(record: str) -> None:
    expected = next(csv.reader([record]), None) or [""]
    assert [field.decode() for field in columns.fields(record.encode(), b",")] == expected


# -- stats -----------------------------------------------------------------------------------------------------------


def stats(column: object, content: bytes, *options: str) -> Any:
    return whole_result(registry.make("stats", [column, *options]), content)


@given(st.lists(NUMBERS, min_size=1))
def test_stats_are_those_of_the_numbers(numbers: list[float]) -> None:
    found = stats(2, "".join(f"x,{number!r}\n" for number in numbers).encode())
    assert (found["count"], found["min"], found["max"]) == (len(numbers), min(numbers), max(numbers))
    assert found["mean"] == statistics.mean(numbers)
    try:
        assert found["sum"] == float(sum(map(Fraction, numbers), Fraction(0)))
    except OverflowError:
        assert found["sum"] is None
    assert found["invalid"] == 0


@given(st.lists(NUMBERS))
def test_a_sum_is_exact(numbers: list[float]) -> None:
    assert exact_sum(numbers) == sum(map(Fraction, numbers))


@pytest.mark.parametrize(
    "field", [b"", b"x", b"nan", b"-inf", b"1_0", b"1e999", b"0x1", b"1 2", "٣".encode(), b"--1", b"1e", b"\f1"]
)
def test_what_is_no_finite_number_is_invalid(field: bytes) -> None:
    assert stats(2, b"a,1\nb," + field + b"\nc\nd,2.5\n\n") == {
        "count": 2,
        "min": 1.0,
        "max": 2.5,
        "sum": 3.5,
        "mean": 1.75,
        "invalid": 2,
    }


@pytest.mark.parametrize(("field", "number"), [(b" 7 ", 7.0), (b'"8"', 8.0), (b"+1.", 1.0), (b".5", 0.5), (b"1E2", 100.0)])
def test_a_number_may_be_written_in_several_ways(field: bytes, number: float) -> None:
    assert stats(1, field + b"\r\n")["sum"] == number


def test_without_numbers_there_are_none_to_tell() -> None:
    assert stats(1, b"") == {"count": 0, "min": None, "max": None, "sum": 0.0, "mean": None, "invalid": 0}


def test_a_sum_beyond_the_doubles_is_none_and_the_mean_is_there() -> None:
    found = stats(1, b"1e308\n1e308\n1.5e308\n")
    assert found["sum"] is None
    assert math.isclose(found["mean"], 1.1666666666666666e308)


def test_a_column_is_found_by_its_name_in_the_first_line() -> None:
    content = b'id,"price, net"\r\n1,2.5\r\n2,3.5\r\n'
    assert stats("price, net", content)["sum"] == 6.0
    assert not registry.make("stats", ["price, net"]).splits
    assert stats("net", b"net\n5")["sum"] == 5.0
    assert stats("a", b"b;a\n1;2\n", "-d;")["sum"] == 2.0
    assert stats("a", b"b\ta\n1\t2\n", "-d", "\\t")["sum"] == 2.0
    with pytest.raises(ValueError, match="there is no column 'gross': the first line has net"):
        stats("gross", b"net\n5\n")


def test_a_key_of_json_lines_is_found_in_every_line() -> None:
    content = b'{"a": 1, "b": {"c": 2}}\n{"b": {"c": 5}, "a": "x"}\nno JSON\n{"a": true}\n'
    assert stats(".b.c", content)["sum"] == 7.0
    assert stats(".a", content) == {"count": 1, "min": 1.0, "max": 1.0, "sum": 1.0, "mean": 1.0, "invalid": 3}
    assert stats("a", content) == stats(".a", content)


@pytest.mark.parametrize("column", [1, 2, "a", ".a"])
@given(split(TABLES | LINES | OBJECTS))
def test_stats_do_not_depend_on_the_split(column: object, runs: list[Run]) -> None:
    agrees_however_split(registry.make("stats", [column]), runs)


def agrees_however_split(function: Any, runs: list[Run]) -> None:
    """Views only, where the function must see the file in order."""
    content = content_of(runs)
    if not function.splits:
        runs = [[view for run in runs for view in run]]
    try:
        expected = whole_result(function, content)
    except ValueError as error:
        with pytest.raises(ValueError, match="there is no column"):
            split_result(function, runs)
        assert "there is no column" in str(error)
    else:
        assert split_result(function, runs) == expected


# -- top -------------------------------------------------------------------------------------------------------------


def top_of(count: int, keys: list[bytes], invalid: int = 0) -> dict[str, Any]:
    """The oracle."""
    ordered = sorted(Counter(keys).items(), key=lambda item: (-item[1], item[0]))
    shown = [{"key": key.decode(errors="backslashreplace"), "count": times} for key, times in ordered[:count]]
    return {"top": shown, "keys": len(ordered), "lines": len(keys), "invalid": invalid}


@given(st.integers(1, 4), LINES)
def test_top_counts_lines(count: int, content: bytes) -> None:
    lines = content.removesuffix(b"\n").split(b"\n") if content else []
    assert whole_result(registry.make("top", [count]), content) == top_of(count, lines)


@given(st.lists(st.lists(st.sampled_from(["a", "b", "é"]), min_size=1, max_size=3)))
def test_top_counts_values_of_a_column(rows: list[list[str]]) -> None:
    content = "".join(",".join(row) + "\n" for row in rows).encode()
    keys = [row[1].encode() for row in rows if len(row) > 1]
    assert whole_result(registry.make("top", [2, 2]), content) == top_of(2, keys, len(rows) - len(keys))


def test_top_counts_values_of_a_named_column_to_the_last_line() -> None:
    assert whole_result(registry.make("top", [9, "b"]), b"a,b\n1,x\n2,y") == top_of(9, [b"x", b"y"])


def test_top_counts_values_of_a_key() -> None:
    content = '{"a":"é"}\n{"a":"é"}\n{"a":1}\n{"a":"1"}\n{"a":1.5}\n{"a":[1, {"b":2}]}\n{"a":true}\n{"b":1}\n{'.encode()
    keys = ["é", "é", "1", "1", "1.5", '[1,{"b":2}]', "true"]
    assert whole_result(registry.make("top", [9, ".a"]), content) == top_of(9, [key.encode() for key in keys], 2)


@pytest.mark.parametrize("words", [[2], [2, 1], [2, 2], [2, "a"], [2, ".a"], [2, ".b.c"]])
@given(split(LINES | TABLES | OBJECTS))
def test_top_does_not_depend_on_the_split(words: list[object], runs: list[Run]) -> None:
    agrees_however_split(registry.make("top", words), runs)


def test_bytes_that_are_not_utf_8_are_shown() -> None:
    assert whole_result(registry.make("top", [1]), b"\xff\n")["top"] == [{"key": "\\xff", "count": 1}]


@pytest.mark.parametrize(("name", "value"), [("KEYS_MAX", 3), ("KEYS_MAX_BYTES", 5)])
def test_too_many_keys_are_an_error_wherever_they_are(name: str, value: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(top, name, value)
    function = registry.make("top", [1])
    assert split_result(function, [[b"a\nb\n"], [b"a\nc\nc\n"]])["keys"] == 3
    for runs in ([[b"aa\nbb\ncc\ndd\n"]], [[b"aa\nbb\n"], [b"cc\ndd\n"]]):
        with pytest.raises(ValueError, match="different keys"):
            split_result(function, runs)


def test_many_keys_travel() -> None:
    lines = [b"%d" % number for number in range(30_000)] * 2
    assert whole_result(registry.make("top", [5]), b"\n".join(lines)) == top_of(5, lines)


# -- arguments -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "words", "sentence"),
    [
        ("stats", [], "stats takes 1 beside its options, and was given 0"),
        ("stats", [0], "the number of a column is a whole number from 1 to 100000, and not '0'"),
        ("stats", ["."], "a column is a number, a name, or .key"),
        ("stats", [".a..b"], "a column is a number, a name, or .key"),
        ("stats", [""], "a column is a number, a name, or .key"),
        ("stats", [1, "-d", "ab"], "the delimiter is one byte"),
        ("stats", [1, "-d", '"'], "the delimiter is one byte"),
        ("stats", [1.5], "texts and whole numbers, and 1.5 is neither"),
        ("top", [], "top takes 1 to 2 beside its options, and was given 0"),
        ("top", [0], "the number of keys is a whole number from 1 to 100000, and not '0'"),
        ("top", ["many"], "the number of keys is a whole number"),
        ("top", [1, "-d;"], "a delimiter only with a column"),
    ],
)
def test_wrong_arguments_are_an_error(name: str, words: list[object], sentence: str) -> None:
    with pytest.raises(ValueError, match=sentence):
        registry.make(name, words)


def test_a_result_is_json() -> None:
    assert "NaN" not in json.dumps(stats(1, b"nan\n1\n"), allow_nan=False)
