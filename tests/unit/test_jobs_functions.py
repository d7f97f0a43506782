"""What the scheduler knows of functions: which split, and whose partial results come together in its own process."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import msgpack
import pytest

from gridfs.offload.job import Request
from scheduler.jobs.functions import COMPRESSED_MAX_BYTES, BuiltIn
from tests.unit.jobs import request

PAIR = request("module_of_no_scheduler:pair", "python", split=True)


@pytest.mark.parametrize(
    ("asked", "size", "splits"),
    [
        (request("wc"), 1, True),
        (request("sha256"), 1, False),
        (request("gzip"), COMPRESSED_MAX_BYTES, True),
        (request("gzip"), COMPRESSED_MAX_BYTES + 1, False),
        (request("wc", "command"), 1, False),
        (request("wc", "command", split=True), 1, False),
        (request("sha256", split=True), 1, False),
        (request("m:f", "python"), 1, False),
        (PAIR, 1 << 40, True),
    ],
)
def test_which_jobs_split(asked: Request, size: int, splits: bool) -> None:
    assert BuiltIn().splits(asked, size) is splits


def test_partials_of_a_built_in_function_come_together_here_unless_they_make_a_stream() -> None:
    asked = request("histogram")
    partials = [msgpack.packb([msgpack.packb([1] * 256)])] * 2
    assert BuiltIn().reduce(asked, partials) == [2] * 256
    assert BuiltIn().reduce(request("gzip"), partials) is None


def test_a_python_module_is_left_to_the_nodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "module_of_no_scheduler.py").write_text("pair = None")
    monkeypatch.syspath_prepend(tmp_path)
    functions: Any = BuiltIn()
    functions.check(PAIR)
    assert functions.splits(PAIR, 1)
    assert functions.reduce(PAIR, [msgpack.packb([b"\x01"])]) is None
    assert "module_of_no_scheduler" not in sys.modules
