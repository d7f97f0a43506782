"""What `user.offload` takes: each way to write a request, and a sentence for everything else."""

from __future__ import annotations

import errno
import json
from dataclasses import asdict
from typing import Any

import msgpack
import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.config import GIB, MIB
from gridfs.errors import FilesystemError
from gridfs.offload.job import Request
from gridfs.offload.request import parse

DEEP = "[" * 20_000


def made(**content: Any) -> Request:
    return parse(json.dumps(content).encode())


def refused(value: bytes) -> str:
    """The sentence with which the value is refused."""
    with pytest.raises(FilesystemError) as raised:
        parse(value)
    assert raised.value.errno == errno.EINVAL
    sentence = raised.value.strerror or ""
    assert sentence
    assert "\n" not in sentence
    assert len(sentence) < 600
    return sentence


@pytest.mark.parametrize(
    ("value", "request_"),
    [
        (b"sha256", Request("function", "sha256")),
        (b"  sha256\n", Request("function", "sha256")),
        (b"grep -c ERROR", Request("function", "grep", ("-c", "ERROR"))),
        (b"grep -F 'two words'", Request("function", "grep", ("-F", "two words"))),
        (b'{"function": "sha256"}', Request("function", "sha256")),
        (b'{"function": "grep -c", "args": ["a b"]}', Request("function", "grep", ("-c", "a b"))),
        (b'{"run": "zstd -3"}', Request("command", "zstd", ("zstd", "-3"))),
        (b'{"run": ["cp", "{}", "a b"]}', Request("command", "cp", ("cp", "{}", "a b"))),
        (b'{"run": "wc -l | head", "shell": true}', Request("command", "wc -l | head", ("wc -l | head",), shell=True)),
        (b'{"run": "a\\nb", "shell": true}', Request("command", "a", ("a\nb",), shell=True)),
        (b'{"run": "ls", "shell": false}', Request("command", "ls", ("ls",))),
        (b'{"python": "mymod:score"}', Request("python", "mymod:score")),
        (b'{"python": "m:f", "split": true}', Request("python", "m:f", split=True)),
        (b'{"python": "m:f", "split": false}', Request("python", "m:f")),
        (b'{"python": "a.b:c.d", "args": [3, null, {"x": [1.5]}]}', Request("python", "a.b:c.d", (3, None, {"x": [1.5]}))),
    ],
)
def test_a_request_is_what_it_says(value: bytes, request_: Request) -> None:
    assert parse(value) == request_


def test_what_goes_with_every_kind_is_kept() -> None:
    options = {"output": "out/x", "overwrite": True, "timeout_s": 5, "memory": "2MiB", "idempotent": True}
    expected = {"output": "out/x", "overwrite": True, "timeout_s": 5.0, "memory_bytes": 2 * MIB, "idempotent": True}
    for kind in ({"run": "cat"}, {"function": "sha256"}, {"python": "m:f"}):
        request = asdict(made(**kind, **options))
        assert {key: request[key] for key in expected} == expected
    assert made(run="cat", memory=GIB).memory_bytes == GIB


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (b"", "empty"),
        (b" \n ", "empty"),
        (b"frobnicate x", "'frobnicate' is no function"),
        (b"SHA256", "is no function"),
        (b"''", "no word"),
        (b"grep 'open", "cannot be split"),
        (b"sha256 x", "sha256"),
        (b"\xff\xfe", "UTF-8"),
        (b"sha256\0", "zero byte"),
        (b"x" * 65_537, "65536"),
        (b"[1]", "is no function"),
        (b"{", "not valid"),
        (b'{"run": "cat"', "not valid"),
        (b'{"run": "cat"} x', "not valid"),
        (b"{}", "none of them"),
        (b'{"run": "cat", "function": "sha256"}', "function and run"),
        (b'{"run": "cat", "run": "rm"}', "twice"),
        (b'{"run": "cat", "Output": "x"}', "'Output' is not known"),
        (b'{"run": ""}', "no word"),
        (b'{"run": []}', "neither text nor"),
        (b'{"run": [""]}', "neither text nor"),
        (b'{"run": [1]}', "neither text nor"),
        (b'{"run": {"a": 1}}', "no text"),
        (b'{"run": null}', "no text"),
        (b'{"run": "  ", "shell": true}', "empty"),
        (b'{"run": ["ls"], "shell": true}', "no text"),
        (b'{"run": "ls", "shell": 1}', "true or false"),
        (b'{"run": "ls", "args": []}', "words in run"),
        (b'{"function": "sha256", "shell": true}', "shell goes with run"),
        (b'{"function": "frobnicate"}', "is no function"),
        (b'{"function": "sha256", "args": ["x"]}', "sha256"),
        (b'{"function": ["sha256"]}', "no text"),
        (b'{"python": "module"}', "module:function"),
        (b'{"python": "a:b;import os"}', "module:function"),
        (b'{"python": "../m:f"}', "module:function"),
        (b'{"python": "m:f", "args": {}}', "no list"),
        (b'{"python": "m:f", "shell": false}', "shell goes with run"),
        (b'{"python": "m:f", "split": 1}', "true or false"),
        (b'{"function": "wc", "split": true}', "split goes with python"),
        (b'{"run": "ls", "split": false}', "split goes with python"),
        (b'{"run": "ls", "output": ""}', "no path"),
        (b'{"run": "ls", "output": 5}', "no text"),
        (b'{"run": "ls", "output": "' + b"x" * 4096 + b'"}', "no path"),
        (b'{"run": "ls", "output": "a\\u0000b"}', "character"),
        (b'{"run": "ls", "output": "\\udcff"}', "character"),
        (b'{"run": ["ls", "\\ud800"]}', "character"),
        (b'{"python": "m:f", "args": [{"\\ud800": 1}]}', "character"),
        (b'{"run": "ls", "overwrite": true}', "output"),
        (b'{"run": "ls", "overwrite": "yes", "output": "x"}', "true or false"),
        (b'{"run": "ls", "timeout_s": 0}', "seconds"),
        (b'{"run": "ls", "timeout_s": -1}', "seconds"),
        (b'{"run": "ls", "timeout_s": true}', "seconds"),
        (b'{"run": "ls", "timeout_s": "5"}', "seconds"),
        (b'{"run": "ls", "timeout_s": NaN}', "NaN"),
        (b'{"run": "ls", "timeout_s": Infinity}', "Infinity"),
        (b'{"run": "ls", "timeout_s": 1e999}', "too large"),
        (b'{"run": "ls", "memory": 0}', "size"),
        (b'{"run": "ls", "memory": 1.5}', "size"),
        (b'{"run": "ls", "memory": true}', "size"),
        (b'{"run": "ls", "memory": "much"}', "size"),
        (b'{"run": "ls", "memory": "9999999999T"}', "size"),
        (b'{"run": "ls", "idempotent": 1}', "true or false"),
        (b'{"python": "m:f", "args": [' + b"9" * 60_000 + b"]}", "too large"),
        (b'{"python": "m:f", "args": [18446744073709551616]}', "too large"),
        (f'{{"python": "m:f", "args": {DEEP}'.encode(), "deep"),
        (f'{{"python": "m:f", "args": [{"[" * 40}{"]" * 40}]}}'.encode(), "deep"),
    ],
)
def test_anything_else_is_einval_with_a_sentence(value: bytes, words: str) -> None:
    assert words in refused(value)


_text = st.text("a:. '\"{\0\ud800é\n", max_size=5)
_json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | _text,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_text, inner, max_size=3),
    max_leaves=8,
)
_keys = st.sampled_from(
    ["run", "function", "python", "args", "output", "overwrite", "shell", "timeout_s", "memory", "idempotent", "split", "more"]
)
_likely = st.sampled_from(["sha256", "m:f", "ls -l", "x", True, False, 5, "5MiB", ["a"], "../x", "a\nb"])


@given(
    st.binary(max_size=200) | st.dictionaries(_keys, _likely | _json, max_size=5).map(lambda value: json.dumps(value).encode())
)
def test_whatever_is_written_is_a_request_that_can_travel_or_einval(value: bytes) -> None:
    try:
        request = parse(value)
    except FilesystemError as error:
        assert error.errno == errno.EINVAL
        return
    assert Request.unpack(msgpack.unpackb(msgpack.packb(asdict(request)))) == request
    assert request.timeout_s > 0
    assert request.memory_bytes > 0
