"""The parts of a scrub that ask nobody: its pace, its batches, and what it makes of what servers say."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Callable

import pytest

from gridfs.config import CHUNK_SIZE_BYTES, MIB
from gridfs.fsck.pace import Pace
from gridfs.fsck.report import Report
from gridfs.fsck.verdict import Case, cases, seem_wrong
from gridfs.fsck.walk import BATCH_BYTES, BATCH_CHUNKS, batches
from gridfs.meta.xattrs import REPLICAS
from gridfs.types import ChunkId
from tests.unit.test_compare import DEAD, FILE, LAST, ONE, TWO, World

# -- pace ------------------------------------------------------------------------------------------------------------


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


def test_work_begins_when_what_was_booked_before_is_over_at_the_rate() -> None:
    pace = Pace(10, Clock())
    assert [pace.book(size_bytes) for size_bytes in (20, 5, 0, 1)] == [0, 2, 2.5, 2.5]


def test_an_idle_time_is_not_made_up_for() -> None:
    clock = Clock()
    pace = Pace(10, clock)
    pace.book(20)
    clock.now_s += 1
    assert pace.book(10) == 1
    clock.now_s += 1000
    assert [pace.book(10), pace.book(10)] == [0, 1]


# -- batches ---------------------------------------------------------------------------------------------------------

SIZES = {
    "none": [],
    "one that is larger than a batch": [BATCH_BYTES + 1, 1],
    "full chunks": [CHUNK_SIZE_BYTES] * 3,
    "many small ones": [1] * (2 * BATCH_CHUNKS + 1),
    "of all sizes": [MIB, 5 * MIB, 3 * MIB, 0, 7 * MIB, 2 * MIB, 2 * MIB],
}


@pytest.mark.parametrize("sizes", SIZES.values(), ids=list(SIZES))
def test_batches_hold_every_chunk_once_in_order_and_no_more_than_one_request_may(sizes: list[int]) -> None:
    lengths = {ChunkId(5, index): size for index, size in enumerate(sizes)}
    found = list(batches(lengths, lengths))
    assert [chunk_id for batch in found for chunk_id in batch] == list(lengths)
    for batch in found:
        assert 0 < len(batch) <= BATCH_CHUNKS
        assert len(batch) == 1 or sum(lengths[chunk_id] for chunk_id in batch) <= BATCH_BYTES
    for batch, following in itertools.pairwise(found):
        size_bytes = sum(lengths[chunk_id] for chunk_id in [*batch, following[0]])
        assert len(batch) == BATCH_CHUNKS or size_bytes > BATCH_BYTES


# -- verdict ---------------------------------------------------------------------------------------------------------


class Scrubbed(World):
    """The world of fsck, whose file has chunk 0 on both servers, and what walks have found."""

    def __init__(self) -> None:
        super().__init__()
        self.steps.table.directory.place(self.file, 0, (ONE, TWO))
        self.states: dict[ChunkId, dict[str, str]] = {}
        self.first = copy.deepcopy(self.steps.table)

    def found(self, states: dict[str, str], index: int = 0) -> None:
        """What the servers say of their copies."""
        self.states[ChunkId(self.file, index)] = states

    def place(self, *servers: str) -> None:
        """Chunk 0 has been there since before the first snapshot."""
        for table in (self.first, self.steps.table):
            table.directory.place(self.file, 0, servers)

    def cases(self) -> list[Case]:
        return list(cases(self.first, self.steps.table, self.look().placement, self.states))


def only(world: Scrubbed) -> Case:
    (case,) = world.cases()
    return case


def test_what_is_good_or_open_is_no_fault() -> None:
    world = Scrubbed()
    assert world.cases() == []
    assert not seem_wrong(world.first, world.look().placement, world.states)
    world.found({ONE: "open", TWO: "open"})
    assert world.cases() == []
    assert not seem_wrong(world.first, world.look().placement, world.states)


@pytest.mark.parametrize(
    ("states", "kind", "text", "unsound", "sound"),
    [
        ({ONE: "bad"}, "bad", "its copy on one is bad", (ONE,), (TWO,)),
        ({TWO: "bad", ONE: "open"}, "bad", "its copy on two is bad", (TWO,), (ONE,)),
        ({ONE: "bad", TWO: "bad"}, "lost", "no copy is left, the one on one, two is bad", (ONE, TWO), ()),
        ({ONE: "bad", TWO: "missing"}, "lost", "no copy is left, the one on one is bad", (ONE, TWO), ()),
        ({ONE: "bad", TWO: "silent"}, "bad", "its copy on one is bad, and two does not answer", (ONE,), ()),
        ({ONE: "missing"}, "missing", "one does not have it, 8.0 MiB read as zeros", (ONE,), (TWO,)),
        ({ONE: "missing", TWO: "silent"}, "missing", "its copy on one is missing, and two does not answer", (ONE,), ()),
    ],
)
def test_what_is_made_of_copies(
    states: dict[str, str], kind: str, text: str, unsound: tuple[str, ...], sound: tuple[str, ...]
) -> None:
    world = Scrubbed()
    world.found(states)
    assert seem_wrong(world.first, world.look().placement, world.states)
    case = only(world)
    assert (case.fault.kind, case.unsound, case.sound, case.wanted) == (kind, unsound, sound, 2)
    assert case.fault.text.endswith(text)


def test_a_chunk_is_short_when_servers_are_lost_or_the_file_wants_more() -> None:
    world = Scrubbed()
    world.place(ONE, DEAD)
    assert seem_wrong(world.first, world.look().placement, {})
    case = only(world)
    assert (case.fault.kind, case.fault.text, case.living) == ("under-replicated", "it has 1 of 2 copies", (ONE,))
    world.place(DEAD)
    assert only(world).fault.text == "the chunk server on dead is lost with it"
    world.place(ONE)
    assert world.cases() == []
    world.steps.do("set_xattr", world.file, REPLICAS, b"3", 0, False)
    world.first = copy.deepcopy(world.steps.table)
    assert [(case.fault.text, case.wanted) for case in world.cases()] == [("it has 1 of 3 copies", 3)] * 2


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.steps.do("change", world.file, None, None, None, None, None, 5),
        lambda world: world.resize(0),
        lambda world: world.first.directory.place(world.file, 0, (TWO,)),
        lambda world: world.first.inodes.pop(world.file),
    ],
    ids=["written", "claimed by nobody", "placed since", "made since"],
)
def test_a_missing_copy_that_may_be_on_its_way_is_not_judged(change: Callable[[Scrubbed], object]) -> None:
    world = Scrubbed()
    world.found({ONE: "missing"})
    change(world)
    assert world.cases() == []


def test_a_chunk_that_became_short_a_moment_ago_is_not_judged() -> None:
    world = Scrubbed()
    world.steps.do("set_xattr", world.file, REPLICAS, b"2", 0, False)
    assert world.cases() == []


def test_a_copy_that_was_withdrawn_meanwhile_or_whose_file_is_gone_is_not_judged() -> None:
    world = Scrubbed()
    world.found({ONE: "bad"})
    world.steps.table.directory.place(world.file, 0, (TWO,))
    assert world.cases() == []
    world = Scrubbed()
    world.found({ONE: "bad"})
    del world.steps.table.inodes[FILE]
    assert world.cases() == []


def test_lost_bytes_are_told_as_a_range_of_the_file() -> None:
    world = Scrubbed()
    world.place(ONE)
    for index, server in enumerate((ONE, TWO)):
        world.found({server: "bad"}, index)
    found = [case.fault for case in world.cases()]
    first, second, _ = Report(world.look(), found, []).lines()
    assert first.startswith(f"lost: chunk 0 of inode {FILE}, bytes 0-8,388,607, /a/f: no copy is left, the one on one is bad")
    assert f"bytes 8,388,608-{CHUNK_SIZE_BYTES + LAST - 1:,}, /a/f" in second
