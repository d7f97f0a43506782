"""New chunks go by what each node could really give."""

from __future__ import annotations

from dataclasses import replace

import hypothesis.strategies as st
import msgpack
import pytest
from hypothesis import given

from gridfs.config import GIB
from gridfs.types import Address, ChunkServerStatistics, NodeSample, PlacementMap
from scheduler.placement import ServerView, plan
from scheduler.pressure import Level


def view(host: str, free_gib: float, used: float = 0.2, level: Level = Level.CALM, answers: bool = True) -> ServerView:
    """A chunk server with so much to give, on a node with that share of its memory in use."""
    sample = NodeSample(10 * GIB, int(10 * GIB * (1 - used)), 0.0)
    free = int(free_gib * GIB)
    statistics = ChunkServerStatistics(
        *(f"{host}-1", host, Address("10.0.0.1", 1), 8 * GIB, 8 * GIB - free, 0, free, 0, 7, 7, sample)
    )
    return ServerView(statistics, level, answers)


def weights(*views: ServerView) -> dict[str, float]:
    """Host -> weight in the map of these servers."""
    return {node.host: node.weight for node in plan(views, 1).nodes}


def test_weights_of_equally_calm_nodes_are_as_their_free_memory() -> None:
    found = weights(view("a", 1), view("b", 3))
    assert found["b"] == pytest.approx(3 * found["a"])


def test_pressure_lowers_a_weight() -> None:
    found = weights(view("a", 2, used=0.2), view("b", 2, used=0.85))
    assert 0 < found["b"] < found["a"] / 2


def test_a_hot_node_gets_nothing() -> None:
    assert weights(view("a", 2), view("b", 2, used=0.95, level=Level.HOT))["b"] == 0


def test_when_all_are_hot_chunks_go_by_free_memory_all_the_same() -> None:
    found = weights(view("a", 1, 0.95, Level.HOT), view("b", 2, 0.95, Level.HOT))
    assert found["b"] == pytest.approx(2 * found["a"])
    assert found["a"] > 0


def test_a_full_node_is_asked_last_and_not_never() -> None:
    """A client may hold a grant there that it has not used up."""
    assert 0 < weights(view("a", 0), view("b", 1))["a"] < 1e-3


def test_a_server_that_does_not_answer_is_listed_as_lost() -> None:
    lost, alive = plan([view("a", 1, answers=False), view("b", 1)], 7).nodes
    assert (lost.level, lost.weight, lost.alive, lost.chunks) == ("lost", 0, False, 7)
    assert alive.alive
    assert plan([], 7).epoch == 7


# -- the map ---------------------------------------------------------------------------------------------------------


def test_the_map_carries_the_epoch_and_all_servers_in_their_order() -> None:
    placement = plan([view("b", 1), view("a", 1, answers=False), view("c", 0)], 42)
    assert placement.epoch == 42
    assert [node.host for node in placement.nodes] == ["b", "a", "c"]


def test_the_map_says_where_jobs_are_taken_and_one_that_does_not_is_understood() -> None:
    placement = plan([view("a", 1)], 1, Address("10.0.0.9", 5))
    assert PlacementMap.unpack(msgpack.unpackb(msgpack.packb(placement.pack()))) == placement
    assert placement.jobs == ("10.0.0.9", 5)
    packed = placement.pack()
    del packed["jobs"]
    assert PlacementMap.unpack(packed) == replace(placement, jobs=None)
    assert PlacementMap.unpack(plan([], 1).pack()).jobs is None


def test_a_node_of_the_map_says_what_its_server_said() -> None:
    said = view("a", 3, level=Level.WARM)
    (node,) = plan([said], 1).nodes
    for field in ("server", "host", "address", "capacity_bytes", "used_bytes", "free_bytes", "chunks"):
        assert getattr(node, field) == getattr(said.statistics, field)
    assert node.level == "warm"


@given(st.lists(st.builds(view, st.text(), st.floats(0, 8), st.floats(0, 1), st.sampled_from(Level), st.booleans())))
def test_the_same_servers_give_the_same_map(views: list[ServerView]) -> None:
    before = tuple(views)
    assert plan(views, 3) == plan(views, 3)
    assert tuple(views) == before


# -- weights ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.integers(1, 8), min_size=2, max_size=8))
def test_equal_calm_nodes_share_in_proportion_to_free_memory(free: list[int]) -> None:
    found = weights(*(view(str(i), gib) for i, gib in enumerate(free)))
    for i, gib in enumerate(free):
        assert found[str(i)] / found["0"] == pytest.approx(gib / free[0])


@given(st.floats(0, 1), st.floats(0, 1), st.sampled_from([Level.CALM, Level.WARM]))
def test_a_weight_never_rises_with_pressure(one: float, other: float, level: Level) -> None:
    low, high = sorted((one, other))
    found = weights(view("a", 2, low, level), view("b", 2, high, level))
    assert found["a"] >= found["b"] > 0


def test_stalls_lower_a_weight_too() -> None:
    calm = view("a", 2)
    sample = replace(calm.statistics.sample, stalled_share=0.5)
    stalling = replace(calm, statistics=replace(calm.statistics, host="b", sample=sample))
    found = weights(calm, stalling)
    assert found["b"] == pytest.approx(found["a"] / 4)


def test_a_hot_node_takes_chunks_when_the_only_others_are_lost() -> None:
    found = weights(view("a", 2, 0.95, Level.HOT), view("b", 2, answers=False))
    assert found["a"] > 0
    assert found["b"] == 0


def test_a_hot_node_gets_nothing_even_when_the_only_others_are_full() -> None:
    found = weights(view("a", 2, 0.95, Level.HOT), view("b", 0))
    assert found["a"] == 0
    assert found["b"] > 0


@pytest.mark.parametrize("used", [0.95, 0.99, 1.0])
def test_when_all_are_hot_a_node_without_room_is_still_asked_last(used: float) -> None:
    found = weights(view("full", 0, used, Level.HOT), view("roomy", 4, used, Level.HOT))
    assert 0 < found["full"] < found["roomy"]


@pytest.mark.parametrize("level", list(Level))
def test_lost_comes_before_any_level(level: Level) -> None:
    (node,) = plan([view("a", 4, level=level, answers=False)], 1).nodes
    assert (node.level, node.weight, node.alive) == ("lost", 0, False)
