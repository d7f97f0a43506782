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


# -- score -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("used", "expected"), [(0, 0), (0.8, 0.4), (0.92, 0.85), (1, 1)])
def test_the_score_of_a_node_without_stalls_at_each_knee(used: float, expected: float) -> None:
    assert score(sample(used)) == pytest.approx(expected)


@given(st.floats(0, 0.79))
def test_below_80_percent_a_calm_node_stays_calm_and_one_percent_more_adds_half_a_percent(used: float) -> None:
    assert score(sample(used + 0.01)) - score(sample(used)) == pytest.approx(0.005, abs=1e-5)
    assert level(score(sample(used)), Level.CALM) is Level.CALM


@given(shares)
def test_a_node_whose_tasks_stall_all_the_time_has_the_full_score(used: float) -> None:
    assert score(sample(used, 1.0)) == 1


@given(st.floats(-10, 10), st.integers(0, 1000), st.integers(0, 3000))
def test_the_score_is_0_to_1_even_of_figures_that_do_not_fit_together(stalled: float, total: int, available: int) -> None:
    assert 0 <= score(NodeSample(total, available, stalled)) <= 1


# -- level -----------------------------------------------------------------------------------------------------------

levels = st.sampled_from(Level)
ORDER = list(Level)


@pytest.mark.parametrize(
    ("pressure", "from_calm", "from_warm", "from_hot"),
    [
        (0.399, Level.CALM, Level.CALM, Level.CALM),
        (0.4, Level.CALM, Level.WARM, Level.WARM),
        (0.499, Level.CALM, Level.WARM, Level.WARM),
        (0.5, Level.WARM, Level.WARM, Level.WARM),
        (0.649, Level.WARM, Level.WARM, Level.WARM),
        (0.65, Level.WARM, Level.WARM, Level.HOT),
        (0.799, Level.WARM, Level.WARM, Level.HOT),
        (0.8, Level.HOT, Level.HOT, Level.HOT),
    ],
)
def test_both_sides_of_every_threshold(pressure: float, from_calm: Level, from_warm: Level, from_hot: Level) -> None:
    assert [level(pressure, previous) for previous in Level] == [from_calm, from_warm, from_hot]


@given(shares, levels)
def test_a_steady_pressure_keeps_its_level(pressure: float, previous: Level) -> None:
    settled = level(pressure, previous)
    assert level(pressure, settled) is settled


@given(shares, shares, levels)
def test_more_pressure_never_means_a_lower_level(one: float, other: float, previous: Level) -> None:
    low, high = sorted((one, other))
    assert ORDER.index(level(low, previous)) <= ORDER.index(level(high, previous))


@given(st.floats(0, 0.91), st.lists(st.floats(0, 0.09), max_size=30), levels)
def test_a_pressure_that_wobbles_around_any_border_never_turns_the_level_back(
    border: float, wobble: list[float], start: Level
) -> None:
    """Within less than the 0.1 between a level's two thresholds, the level only rises or only falls."""
    seen = [ORDER.index(start)]
    for shift in wobble:
        seen.append(ORDER.index(level(border + shift, ORDER[seen[-1]])))
    assert seen in (sorted(seen), sorted(seen, reverse=True))
