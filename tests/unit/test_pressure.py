"""Pressure is a score that only rises with need, and a level that does not flutter."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.types import NodeSample
from scheduler.pressure import Level, level, score

shares = st.floats(0, 1)


def sample(used: float, stalled: float = 0.0) -> NodeSample:
    """A node of a million bytes with that share in use."""
    return NodeSample(1_000_000, round(1_000_000 * (1 - used)), stalled)


@given(shares, shares, shares)
def test_the_score_never_falls_when_more_memory_is_used(one: float, other: float, stalled: float) -> None:
    low, high = sorted((one, other))
    assert 0 <= score(sample(low, stalled)) <= score(sample(high, stalled)) <= 1


@given(shares, shares, shares)
def test_the_score_never_falls_when_tasks_stall_more(used: float, one: float, other: float) -> None:
    low, high = sorted((one, other))
    assert score(sample(used, low)) <= score(sample(used, high))


def test_the_score_rises_sharply_above_80_percent_and_passes_0_8_at_92() -> None:
    assert score(sample(0.92)) > 0.8
    assert score(sample(0.92)) - score(sample(0.80)) > 5 * (score(sample(0.80)) - score(sample(0.68)))


@pytest.mark.parametrize(
    ("pressure", "previous", "wanted"),
    [
        (0.45, Level.CALM, Level.CALM),
        (0.45, Level.WARM, Level.WARM),
        (0.39, Level.WARM, Level.CALM),
        (0.5, Level.CALM, Level.WARM),
        (0.7, Level.WARM, Level.WARM),
        (0.7, Level.HOT, Level.HOT),
        (0.64, Level.HOT, Level.WARM),
        (0.3, Level.HOT, Level.CALM),
        (0.8, Level.CALM, Level.HOT),
    ],
)
def test_a_level_is_left_at_a_lower_score_than_it_was_entered(pressure: float, previous: Level, wanted: Level) -> None:
    assert level(pressure, previous) is wanted
