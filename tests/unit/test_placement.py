"""New chunks go by what each node could really give."""

from __future__ import annotations

import pytest

from gridfs.config import GIB
from gridfs.types import Address, ChunkServerStatistics, NodeSample
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
