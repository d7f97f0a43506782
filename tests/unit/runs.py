"""Files split into runs and views, and what functions make of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import strategies as st

from gridfs.offload.functions import records
from gridfs.offload.functions.function import Function

Run = list[bytes]
"""The views of a run."""

BLOCK_BYTES = 4


@pytest.fixture(scope="module")
def small_blocks() -> Iterator[None]:
    """Blocks so small that a short content has many."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(records, "BLOCK_BYTES", BLOCK_BYTES)
        yield


@st.composite
def pieces(draw: st.DrawFn, content: bytes, unit: int = 1) -> list[bytes]:
    """`content` in pieces, which begin at multiples of `unit`; some may be empty."""
    cuts = sorted(draw(st.lists(st.integers(0, len(content) // unit), max_size=6)))
    edges = [0, *(cut * unit for cut in cuts), len(content)]
    return [content[start:end] for start, end in pairwise(edges)]


@st.composite
def split(draw: st.DrawFn, contents: st.SearchStrategy[bytes], unit: int = 1) -> list[Run]:
    """Some content in runs, each in views. The runs begin at multiples of `unit`."""
    return [draw(pieces(run)) for run in draw(pieces(draw(contents), unit))]


def content_of(runs: Sequence[Run]) -> bytes:
    return b"".join(view for run in runs for view in run)


def views(run: Run) -> Iterator[memoryview]:
    """The views of a run, each of which ends when the next one is asked for."""
    for content in run:
        memory = bytearray(content)
        with memoryview(memory) as view:
            yield view
        memory[:] = b"!" * len(memory)


def partial(function: Function, run: Run, first: bool = True, last: bool = True, offset: int = 0) -> bytes:
    return b"".join(function.map(views(run), first, last, offset))


def split_result(function: Function, runs: Sequence[Run]) -> Any:
    """What the function makes of the runs, with partial results that travelled in pieces of other lengths."""
    partials, offset = [], 0
    for number, run in enumerate(runs):
        partials.append(partial(function, run, number == 0, number == len(runs) - 1, offset))
        offset += len(content_of([run]))
    result = function.reduce(iter([packed[:3], packed[3:]]) for packed in partials)
    return b"".join(result) if function.streams else json.loads(json.dumps(result))


def whole_result(function: Function, content: bytes) -> Any:
    """What it makes of the content in one piece."""
    return split_result(function, [[content]])
