"""A function of somebody's module is called over the chunks; what it returns comes back, and what it raises is a sentence."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gridfs.config import MIB
from gridfs.offload import python
from gridfs.offload.process import Child, Ending
from gridfs.offload.python import Context
from tests.unit.children import LIMITS, ME, leaves_nothing, run

__all__ = ["leaves_nothing"]

pytestmark = pytest.mark.usefixtures("leaves_nothing")

CONTEXT = Context(job=7, args=(3, "x"), name="data", size=6, node="here")
MODULE = """
import sys

def count(chunks, context): return sum(map(len, chunks))
def told(chunks, context): return [context.job, list(context.args), context.name, context.size, context.node]
def all(chunks, context): return b"".join(chunks)
def large(chunks, context): return bytes(5 << 20)
def doubled(chunks, context):
    for chunk in chunks:
        yield bytes(chunk) * 2
def values(chunks, context): return {"a": [1, 2.5, None, True], "b": "é"}
def nothing(chunks, context): return None
def text(chunks, context): return "text"
def blocks(chunks, context): return [b"ab", bytearray(b"cd"), memoryview(b"ef")]
def empty(chunks, context): return []
def mixed(chunks, context):
    yield b"ab"
    yield "cd"
def unknown(chunks, context): return object()
def endless(chunks, context): return float("nan")
def raises(chunks, context): raise RuntimeError("first\\nsecond")
def exits(chunks, context): sys.exit(3)
def exhausts(chunks, context): raise MemoryError
def prints(chunks, context): print("hello")

class Words:
    @staticmethod
    def map(chunk, context): return {"words": len(bytes(chunk).split()), b"raw": b"x"}
    @staticmethod
    def reduce(partials, context): return sum(partial["words"] for partial in partials)

class Tuples:
    @staticmethod
    def map(chunk, context): return (bytes(chunk), {1: None})
    @staticmethod
    def reduce(partials, context): return repr(list(partials))

class Sets:
    @staticmethod
    def map(chunk, context): return {1}
    @staticmethod
    def reduce(partials, context): return len(list(partials))

class Nested:
    inner = Words
number = 3
"""


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobmodule.py").write_text(MODULE)
    (tmp_path / "broken.py").write_text("import nonesuch_inside")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)


def chunks() -> Iterator[memoryview]:
    return map(memoryview, (b"ab ", b"c d"))


def called(name: str, call: Any = python.call) -> tuple[Any, bytes | None, Ending, str]:
    """Its value, its bytes, its end, and standard error."""
    with Child(lambda write: call(name, chunks(), CONTEXT, write), ME, LIMITS) as child:
        outcome = python.outcome(child.chunks())
        data = None if outcome.stream is None else b"".join(outcome.stream)
        return outcome.value, data, child.wait(), child.stderr.decode()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("count", 6),
        ("told", [7, [3, "x"], "data", 6, "here"]),
        ("values", {"a": [1, 2.5, None, True], "b": "é"}),
        ("nothing", None),
        ("text", "text"),
        ("empty", []),
        ("Words", 3),
        ("Nested.inner", 3),
    ],
)
def test_a_value_comes_back(name: str, value: Any) -> None:
    assert called(f"jobmodule:{name}") == (value, None, Ending(0), "")


@pytest.mark.parametrize(
    ("name", "data"),
    [("all", b"ab c d"), ("doubled", b"ab ab c dc d"), ("blocks", b"abcdef"), ("large", bytes(5 * MIB))],
)
def test_bytes_come_back(name: str, data: bytes) -> None:
    assert called(f"jobmodule:{name}") == (None, data, Ending(0), "")


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("jobmodule:raises", "jobmodule:raises failed: RuntimeError: first second"),
        ("jobmodule:exits", "jobmodule:exits failed: SystemExit: 3"),
        ("jobmodule:mixed", "jobmodule:mixed failed: TypeError: one piece of the result is of type str, not bytes"),
        ("jobmodule:unknown", "failed: TypeError: the result is of type object, neither bytes nor what JSON carries"),
        ("jobmodule:endless", "failed: ValueError: Out of range float values are not JSON compliant"),
        ("broken:any", "broken:any failed: ModuleNotFoundError: No module named 'nonesuch_inside'"),
    ],
)
def test_an_error_is_a_sentence_with_its_traceback_in_stderr(name: str, error: str) -> None:
    _, _, ending, stderr = called(name)
    assert error in ending.error
    assert (ending.failure, ending.exit_code) == ("function", 1)
    assert "Traceback" in stderr
    assert stderr.count("Traceback") == 1


@pytest.mark.parametrize(
    ("name", "error"),
    [
        ("nonesuch:f", "there is no module nonesuch on this node"),
        ("nonesuch.inner:f", "there is no module nonesuch.inner on this node"),
        ("jobmodule:nonesuch", "the module jobmodule has no nonesuch"),
        ("jobmodule:number", "jobmodule:number is no function"),
        ("jobmodule:sys.exit", "jobmodule:sys.exit is sys's, which the module jobmodule only uses"),
    ],
)
def test_what_there_is_not_is_a_sentence_alone(name: str, error: str) -> None:
    assert called(name) == (None, None, Ending(1, failure="function", error=error), "")


def test_no_memory_is_told_as_that() -> None:
    assert called("jobmodule:exhausts")[2].out_of_memory


def test_what_it_prints_is_on_standard_error() -> None:
    assert called("jobmodule:prints") == (None, None, Ending(0), "hello\n")


def test_partials_of_several_nodes_are_reduced() -> None:
    partials = run(lambda write: python.map_run("jobmodule:Words", chunks(), CONTEXT, write))[0]
    assert len(partials) == 2
    with Child(lambda write: python.reduce("jobmodule:Words", partials * 2, CONTEXT, write), ME, LIMITS) as child:
        assert python.outcome(child.chunks()).value == 6


def test_a_pair_on_one_node_gives_what_it_gives_on_several() -> None:
    partials = run(lambda write: python.map_run("jobmodule:Tuples", chunks(), CONTEXT, write))[0]
    with Child(lambda write: python.reduce("jobmodule:Tuples", partials, CONTEXT, write), ME, LIMITS) as child:
        several = python.outcome(child.chunks()).value
    assert called("jobmodule:Tuples", python.call_pair) == (several, None, Ending(0), "")
    assert several == "[[b'ab ', {1: None}], [b'c d', {1: None}]]"


def test_a_partial_that_could_not_travel_is_an_error_on_one_node_too_unless_it_never_will() -> None:
    assert "Sets failed: TypeError: can not serialize" in called("jobmodule:Sets", python.call_pair)[2].error
    assert called("jobmodule:Sets")[0] == 2


@pytest.mark.parametrize("call", [python.map_run, python.call_pair, python.reduce])
def test_what_is_no_pair_cannot_be_split_and_one_sentence_says_so(call: Any) -> None:
    error = "jobmodule:count has no map and reduce, so it cannot be split"
    assert called("jobmodule:count", call)[2:] == (Ending(1, failure="function", error=error), "")


def test_modules_are_imported_in_the_child_alone() -> None:
    called("jobmodule:count")
    assert "jobmodule" not in sys.modules


def test_names() -> None:
    assert python.module_of("a.b:c.d") == "a.b"
    for bad in ("", "a", "a:", ":b", "a:b:c", "a b:c", "a..b:c", "a/b:c", "a:b()", "1a:b"):
        with pytest.raises(ValueError, match="is not of the form module:function"):
            python.module_of(bad)
