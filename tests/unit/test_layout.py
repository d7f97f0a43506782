"""Which chunks a range of bytes touches, and which nodes take a new chunk."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gridfs.chunk.layout import Piece, pick, pieces
from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.types import Address, PlacementMap, PlacementNode

C = CHUNK_SIZE_BYTES
DRAWS = 20_000


def placement(*weights: float, level: str = "calm") -> PlacementMap:
    """A map of nodes "0", "1", ... with these weights."""
    address = Address("192.0.2.1", 1)
    nodes = (PlacementNode(str(i), f"host{i}", address, weight, 0, 0, 0, 0, level) for i, weight in enumerate(weights))
    return PlacementMap(1, tuple(nodes))


def picks(nodes: PlacementMap, count: int = 1) -> list[tuple[str, ...]]:
    """Who takes each of 20,000 chunks."""
    chunks = ((ino, index) for ino in range(1, 201) for index in range(DRAWS // 200))
    return [tuple(node.server for node in pick(nodes, ino, index, count)) for ino, index in chunks]


# -- pieces ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("offset", "length", "expected"),
    [
        (0, 0, []),
        (C, 0, []),
        (0, 1, [Piece(0, 0, 0, 1)]),
        (0, C, [Piece(0, 0, 0, C)]),
        (0, C + 1, [Piece(0, 0, 0, C), Piece(1, 0, C, 1)]),
        (C - 1, 2, [Piece(0, C - 1, 0, 1), Piece(1, 0, 1, 1)]),
        (C, C, [Piece(1, 0, 0, C)]),
        (5 * C + 7, 2 * C, [Piece(5, 7, 0, C - 7), Piece(6, 0, C - 7, C), Piece(7, 0, 2 * C - 7, 7)]),
    ],
)
def test_a_range_is_cut_at_the_borders_of_chunks(offset: int, length: int, expected: list[Piece]) -> None:
    assert list(pieces(offset, length)) == expected


@given(st.integers(0, 1 << 62), st.integers(0, 20 * C))
def test_pieces_cover_the_range_exactly_and_stay_within_their_chunks(offset: int, length: int) -> None:
    covered = 0
    for piece in pieces(offset, length):
        assert piece.start == covered
        assert piece.index * C + piece.offset == offset + piece.start
        assert 0 < piece.length <= C - piece.offset
        covered += piece.length
    assert covered == length


# -- pick ------------------------------------------------------------------------------------------------------------


def test_each_node_gets_chunks_in_proportion_to_its_weight() -> None:
    weights = (1.0, 2.0, 0.5, 4.5)
    counts = Counter(server for (server,) in picks(placement(*weights)))
    for server, weight in enumerate(weights):
        assert counts[str(server)] == pytest.approx(DRAWS * weight / sum(weights), rel=0.07)


def test_only_the_proportion_of_weights_counts() -> None:
    assert picks(placement(1.0, 3.0)) == picks(placement(10.0, 30.0))


def test_a_node_without_weight_or_life_gets_nothing() -> None:
    nodes = placement(1.0, 0.0, 1.0)
    lost = replace(nodes.nodes[2], level="lost")
    nodes = PlacementMap(1, (*nodes.nodes[:2], lost))
    assert set(picks(nodes)) == {("0",)}
    assert set(picks(nodes, count=3)) == {("0",)}


@pytest.mark.parametrize("nodes", [placement(), placement(0.0, 0.0), placement(1.0, level="lost")])
def test_when_nobody_takes_chunks_nobody_is_picked(nodes: PlacementMap) -> None:
    assert pick(nodes, 1, 0, 2) == []


@pytest.mark.parametrize(("weight", "gains"), [(0.0, False), (0.5, False), (2.0, True)])
def test_a_change_of_one_weight_moves_chunks_to_or_from_that_node_only(weight: float, gains: bool) -> None:
    before, after = picks(placement(1.0, 1.0, 1.0)), picks(placement(1.0, weight, 1.0))
    moved = [(old, new) for (old,), (new,) in zip(before, after, strict=True) if old != new]
    assert moved
    assert all((new if gains else old) == "1" for old, new in moved)


def test_a_node_that_joins_takes_its_share_and_moves_nothing_else() -> None:
    before, after = picks(placement(1.0, 1.0)), picks(placement(1.0, 1.0, 1.0))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {("2",)}
    assert len(moved) == pytest.approx(DRAWS / 3, rel=0.07)


def test_the_order_of_the_nodes_does_not_matter() -> None:
    nodes = placement(1.0, 2.0, 3.0)
    assert picks(nodes, 3) == picks(PlacementMap(2, nodes.nodes[::-1]), 3)


def test_replicas_are_on_different_nodes_and_the_first_is_the_only_ones_choice() -> None:
    for one, three in zip(picks(placement(1.0, 1.0, 1.0, 1.0)), picks(placement(1.0, 1.0, 1.0, 1.0), 3), strict=True):
        assert len(set(three)) == 3
        assert three[0] == one[0]
