"""A task stays on the master while that has memory to spare, goes to the roomiest worker else, or is refused with reasons."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gridfs.config import GIB, MIB
from gridfs.errors import GridfsError
from gridfs.types import NodeSample
from scheduler.headroom import NodeView, Promise, decide, promised

TOTAL = 100 * GIB


def node(host: str, available: int, promised: int = 0, stalled: float = 0.0, total: int = TOTAL) -> NodeView:
    """A node of 100 GiB with so much available; the one called master is the master."""
    return NodeView(host, f"id of {host}", host == "master", NodeSample(total, available, stalled), promised)


views = st.lists(
    st.builds(
        lambda number, available, promised, stalled: node(f"worker{number}", available, promised, stalled),
        *(st.integers(0, 5), st.integers(0, TOTAL), st.integers(0, TOTAL), st.floats(0, 1)),
    ),
    unique_by=lambda view: view.host,
    max_size=4,
)
masters = st.lists(st.builds(lambda available: node("master", available), st.integers(0, TOTAL)), max_size=1)
sizes = st.integers(0, 2 * TOTAL)

# -- where it goes ---------------------------------------------------------------------------------------------------


def test_a_task_that_fits_stays_on_the_master_however_roomy_the_workers_are() -> None:
    decision = decide([node("worker1", TOTAL), node("master", 50 * GIB)], 10 * GIB)
    assert (decision.host, decision.node_id) == ("master", "id of master")
    assert decision.headroom_bytes == 50 * GIB
    assert "it fits on the master (50.0 GiB of 100.0 GiB free for 10.0 GiB)" in str(decision)


@pytest.mark.parametrize(
    ("master", "size", "why"),
    [
        (node("master", 19 * GIB), MIB, "master would be 81% in use, more than 80%"),
        (node("master", 30 * GIB), 11 * GIB, "master would be 81% in use, more than 80%"),
        (node("master", 30 * GIB), 31 * GIB, "master has 30.0 GiB available"),
        (node("master", 30 * GIB, promised=15 * GIB), MIB, "master would be 85% in use"),
        (node("master", 2 * GIB - 1, total=4 * GIB), MIB, "master has 2.0 GiB available, less than 2.0 GiB"),
    ],
    ids=["is full", "would be full", "is too small", "is promised to others", "has less than 2 GiB"],
)
def test_a_task_leaves_a_master_that(master: NodeView, size: int, why: str) -> None:
    decision = decide([master, node("worker1", 40 * GIB), node("worker2", 50 * GIB), node("worker3", 45 * GIB)], size)
    assert decision.host == "worker2"
    assert why in decision.reason


@pytest.mark.parametrize(
    ("master", "size"),
    [(node("master", 20 * GIB + MIB), MIB), (node("master", 2 * GIB, total=4 * GIB), MIB)],
    ids=["80 % with it", "2 GiB"],
)
def test_a_master_at_the_border_keeps_it(master: NodeView, size: int) -> None:
    assert decide([master, node("worker1", TOTAL)], size).host == "master"


def test_memory_that_is_promised_on_a_worker_is_no_headroom() -> None:
    assert decide([node("worker1", 50 * GIB, promised=20 * GIB), node("worker2", 40 * GIB)], GIB).host == "worker2"


def test_a_worker_that_would_be_hot_gets_no_task() -> None:
    """Since its owner needs the memory: by use, and by tasks that stall."""
    with pytest.raises(GridfsError, match="worker1 would be 93% in use"):
        decide([node("worker1", 10 * GIB)], 3 * GIB)
    with pytest.raises(GridfsError, match="worker1 would be 50% in use"):
        decide([node("worker1", 50 * GIB, stalled=0.9)], MIB)


def test_a_refusal_says_why_for_every_node() -> None:
    with pytest.raises(GridfsError) as refused:
        decide([node("master", GIB), node("worker1", 3 * GIB), node("worker2", 20 * GIB, promised=16 * GIB)], 5 * GIB)
    assert str(refused.value) == (
        "no node can hold a task of 5.0 GiB: master has 1.0 GiB available; worker1 has 3.0 GiB available; "
        "worker2 has 4.0 GiB available"
    )


def test_without_a_node_it_is_refused() -> None:
    with pytest.raises(GridfsError, match="no other node answers"):
        decide([], 0)


@given(masters, views, sizes)
def test_the_chosen_node_can_hold_it_and_no_worker_that_can_has_more(
    master: list[NodeView], workers: list[NodeView], size: int
) -> None:
    try:
        decision = decide([*master, *workers], size)
    except GridfsError:
        return
    chosen = next(view for view in [*master, *workers] if view.host == decision.host)
    assert size < decision.headroom_bytes == chosen.headroom_bytes
    if chosen.is_master:
        assert chosen.sample_with(size).used_share <= 0.8
    else:
        larger = [view for view in workers if view.headroom_bytes > chosen.headroom_bytes]
        for view in larger:
            with pytest.raises(GridfsError):
                decide([view], size)


@given(masters, views, sizes, sizes)
def test_what_is_refused_is_refused_when_it_is_larger_too(
    master: list[NodeView], workers: list[NodeView], one: int, other: int
) -> None:
    small, large = sorted((one, other))
    try:
        decide([*master, *workers], small)
    except GridfsError:
        with pytest.raises(GridfsError):
            decide([*master, *workers], large)


# -- what is promised ------------------------------------------------------------------------------------------------


def test_what_a_task_may_still_take_is_what_was_promised_less_what_has_gone_since() -> None:
    one, other = Promise(10, available_bytes=100), Promise(20, available_bytes=95)
    assert promised([], 100) == 0
    assert promised([one, other], 100) == 30
    assert promised([one, other], 88) == 18
    assert promised([one, other], 60) == 0


def test_memory_that_was_given_back_since_does_not_count_as_promised() -> None:
    assert promised([Promise(10, available_bytes=100)], 120) == 10
