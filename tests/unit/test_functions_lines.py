"""Lines of a file that is split anywhere."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.offload.functions import records
from gridfs.offload.functions.records import Body, Fragment, Lines, blocks, cut, joined
from tests.unit.runs import BLOCK_BYTES, Run, content_of, pieces, small_blocks, split, views

pytestmark = pytest.mark.usefixtures("small_blocks")
__all__ = ["small_blocks"]

CONTENTS = st.text(alphabet="ab\n", max_size=60).map(str.encode)


def packed(runs: list[Run]) -> list[list[bytes]]:
    """Partial results whose bodies are the lines themselves."""
    parts = [list(cut(blocks(views(run)), number == 0)) for number, run in enumerate(runs)]
    return [[(part if isinstance(part, Fragment) else Body(part.content)).packed() for part in run] for run in parts]


@given(split(CONTENTS))
def test_blocks_do_not_depend_on_views(runs: list[Run]) -> None:
    content = content_of(runs)
    expected = [content[at : at + BLOCK_BYTES] for at in range(0, len(content), BLOCK_BYTES)]
    assert list(blocks(views([view for run in runs for view in run]))) == expected


@given(split(CONTENTS))
def test_every_line_comes_once_and_in_order(runs: list[Run]) -> None:
    found = [part.content if isinstance(part, Lines) else part.value for part in joined(packed(runs))]
    assert b"".join(found) == content_of(runs)
    assert all(lines.endswith(b"\n") for lines in found[:-1])


@given(split(CONTENTS))
def test_only_lines_that_cross_are_joined(runs: list[Run]) -> None:
    crossing = [part.content for part in joined(packed(runs)) if isinstance(part, Lines)]
    assert all(line.count(b"\n") <= 1 for line in crossing)
    assert len(crossing) <= len(runs)


@given(st.data(), split(CONTENTS))
def test_where_pieces_of_a_partial_result_end_does_not_matter(data: st.DataObject, runs: list[Run]) -> None:
    partials = packed(runs)
    others = [data.draw(pieces(b"".join(partial))) for partial in partials]
    assert list(joined(others)) == list(joined(partials))


@pytest.mark.parametrize(
    "runs", [[[b"x" * 11]], [[b"\n" + b"x" * 11]], [[b"x" * 6], [b"x" * 5]], [[b"x" * 6], [b"x" * 5 + b"\n"]]]
)
def test_a_line_that_is_too_long_is_an_error(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_MAX_BYTES", 10)
    with pytest.raises(ValueError, match="a line is longer than"):
        list(joined(packed(runs)))


@pytest.mark.parametrize("runs", [[[b"x" * 9 + b"\n"] * 3], [[b"x" * 6], [b"x" * 3 + b"\n" + b"y" * 10]]])
def test_a_line_of_just_the_limit_is_none(runs: list[Run], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(records, "LINE_MAX_BYTES", 10)
    assert list(joined(packed(runs)))
