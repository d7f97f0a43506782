"""Jobs run where the bytes are, and say why."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import pytest
from hypothesis import given

from gridfs.config import CHUNK_SIZE_BYTES, GIB, MIB
from gridfs.offload.job import Input
from scheduler.jobs.policy import BytesLostError, NodeView, NoNodeError, Plan, Wait, decide
from scheduler.pressure import Level
from tests.unit.jobs import node, source

AB = (node("a"), node("b"))


def plan(file: Input, *nodes: NodeView, busy: tuple[str, ...] = (), splits: bool = False, memory: int = GIB) -> Any:
    """What is decided."""
    return decide(file, memory, nodes, busy, splits=splits)


def planned(file: Input, *nodes: NodeView, **given: Any) -> Plan:
    """The plan, where there is one."""
    found = plan(file, *nodes, **given)
    assert isinstance(found, Plan)
    return found


# -- what cannot be split --------------------------------------------------------------------------------------------


def test_it_runs_on_the_node_that_holds_most_and_says_what_moves() -> None:
    found = planned(source(["a-1"], ["b-1"], ["b-1"]), *AB)
    assert (found.mode, found.hosts, found.parts[0].runs) == ("whole", ("b",), ((0, 3),))
    assert "b holds 16.0 MiB of 24.0 MiB (no node has more), so 8.0 MiB cross the network" in found.decision
    assert found.decision.endswith("would have cost 24.0 MiB")


def test_a_hot_node_and_one_short_of_memory_are_passed_over() -> None:
    file = source(*[["b-1"]] * 9)
    hot, small = node("b", Level.HOT), node("b", available=GIB // 2)
    assert planned(file, node("a"), hot).hosts == ("a",)
    found = planned(file, node("a"), small)
    assert found.hosts == ("a",)
    assert "b has 72.0 MiB, and is busy or short of memory" in found.decision


def test_when_all_are_short_of_memory_it_runs_all_the_same() -> None:
    found = planned(source(["b-1"]), node("a", Level.HOT), node("b", Level.HOT))
    assert found.hosts == ("b",)
    assert "every node is short of memory" in found.decision


def test_it_waits_for_a_busy_node_that_has_much_more() -> None:
    file = source(*[["a-1"]] * 4, ["b-1"])
    assert plan(file, *AB, busy=("a",)) == Wait(frozenset({"a"}))
    assert planned(file, *AB, busy=("b",)).hosts == ("a",)


def test_it_does_not_wait_when_little_would_move_or_another_has_a_copy() -> None:
    assert planned(source(["a-1"], ["a-1"]), *AB, busy=("a",)).hosts == ("b",)
    assert planned(source(*[["a-1", "b-1"]] * 9), *AB, busy=("a",)).hosts == ("b",)


def test_an_empty_file_goes_to_any_node_that_is_free() -> None:
    assert planned(source(), *AB, busy=("a",)).parts[0].runs == ((0, 0),)


def test_more_memory_than_any_node_has_is_refused() -> None:
    with pytest.raises(NoNodeError, match=r"the largest node, a, has 10\.0 GiB"):
        plan(source(["a-1"]), *AB, memory=11 * GIB)


# -- what can be split -----------------------------------------------------------------------------------------------


def test_each_node_works_on_its_own_runs() -> None:
    found = planned(source(["a-1"], ["a-1"], ["b-1"], ["a-1"]), *AB, splits=True)
    assert found.mode == "map"
    assert {part.host: part.runs for part in found.parts} == {"a": ((0, 2), (3, 4)), "b": ((2, 3),)}
    assert found.hosts[0] == "a"
    assert "a 24.0 MiB, b 8.0 MiB" in found.decision


def test_where_one_node_has_all_it_is_not_split() -> None:
    assert planned(source(["a-1"], ["a-1"]), *AB, splits=True).mode == "whole"


def test_where_all_have_copies_each_gets_an_adjacent_half() -> None:
    found = planned(source(*[["a-1", "b-1"]] * 6), *AB, splits=True)
    assert sorted(part.runs for part in found.parts) == [((0, 3),), ((3, 6),)]


def test_a_hot_node_gets_only_what_no_other_has() -> None:
    found = planned(source(["a-1", "b-1"], ["b-1"], ["a-1", "b-1"]), node("a"), node("b", Level.HOT), splits=True)
    assert {part.host: part.runs for part in found.parts} == {"a": ((0, 1), (2, 3)), "b": ((1, 2),)}


def test_a_split_job_waits_for_all_its_nodes() -> None:
    assert plan(source(["a-1"], ["b-1"]), *AB, busy=("b",), splits=True) == Wait(frozenset({"a", "b"}))


@given(st.lists(st.one_of(st.none(), st.lists(st.sampled_from("abc"), min_size=1, max_size=3, unique=True)), max_size=40))
def test_whatever_is_where_every_chunk_is_worked_on_once_by_one_that_has_it(having: list[list[str] | None]) -> None:
    file = source(*[None if hosts is None else [f"{host}-1" for host in hosts] for hosts in having])
    found = planned(file, node("a"), node("b"), node("c"), splits=True)
    runs = [(run, part.server) for part in found.parts for run in part.runs]
    indices = sorted(index for (first, end), _ in runs for index in range(first, end))
    assert indices == list(range(len(having)))
    if found.mode == "map":
        chosen = {index: server for (first, end), server in runs for index in range(first, end)}
        assert all(chosen[index] in servers for index, servers in file.chunks.items())
        neighbours = sorted((run, server) for run, server in runs)
        assert all(left[1] != right[1] for left, right in pairwise(neighbours))


# -- what is not there -----------------------------------------------------------------------------------------------


def test_bytes_without_a_server_are_lost() -> None:
    with pytest.raises(BytesLostError, match="the bytes are lost: chunk 1 was on gone-1 only"):
        plan(source(["a-1"], ["gone-1"]), *AB)


def test_a_silent_server_is_waited_for_unless_another_has_a_copy() -> None:
    silent = node("b", answers=False)
    assert plan(source(["a-1"], ["b-1"]), node("a"), silent) == Wait(frozenset({"b"}))
    assert planned(source(["a-1"], ["b-1", "a-1"]), node("a"), silent, splits=True).hosts == ("a",)
    assert plan(source(), silent) == Wait(frozenset())
    assert plan(source()) == Wait(frozenset())


def test_the_last_chunk_counts_with_what_it_has() -> None:
    file = source(["a-1"], ["b-1"], size=CHUNK_SIZE_BYTES + MIB)
    assert planned(file, *AB).hosts == ("a",)
