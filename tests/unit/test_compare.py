"""The comparison of an inode table with inventories: each fault by itself, and what is none."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.fsck.compare import Fault, Look, certain, faults
from gridfs.fsck.report import Paths, Report
from gridfs.meta.inode import ROOT_INO
from gridfs.types import Address, ChunkId, PlacementMap, PlacementNode
from tests.unit.tables import SYMLINK, Steps

ONE, TWO, DEAD = "one-1", "two-2", "dead-3"
LAST = 100
"""Length of the last chunk of the file."""


class World:
    """A sound filesystem: directory a with the file a/f of two chunks, one on each server; to be broken by a test."""

    def __init__(self) -> None:
        self.steps = Steps()
        self.directory = self.steps.mkdir(b"a")
        self.file = self.steps.make(b"f", self.directory)
        self.steps.do("place", self.file, 0, (ONE,))
        self.steps.do("place", self.file, 1, (TWO,))
        self.resize(CHUNK_SIZE_BYTES + LAST)
        self.held = {ONE: {ChunkId(self.file, 0): CHUNK_SIZE_BYTES}, TWO: {ChunkId(self.file, 1): LAST}}
        self.mounts = 1

    def resize(self, size: int) -> None:
        """A write has been committed, or lost: chunks stay where they are."""
        self.steps.inode(self.file).size = size

    def look(self) -> Look:
        """What fsck sees."""
        nodes = [
            PlacementNode(server, server[:-2], Address("127.0.0.1", 1), 1.0, 1, 0, 1, 0, "lost" if server == DEAD else "calm")
            for server in (ONE, TWO, DEAD)
        ]
        return Look(self.held, self.steps.table, PlacementMap(1, tuple(nodes)), self.mounts)

    def faults(self) -> list[tuple[str, int, int, str]]:
        """(kind, inode, index, server) of each."""
        return [(fault.kind, fault.ino, fault.index, fault.server) for fault in faults(self.look())]


def forget_place(world: World) -> None:
    world.steps.table.directory.put(world.file, 1, ())


def lose_server(world: World) -> None:
    world.steps.table.directory.place(world.file, 1, (DEAD,))
    del world.held[TWO][ChunkId(world.file, 1)]


def unknown_server(world: World) -> None:
    world.steps.table.directory.place(world.file, 1, ("earlier-9",))
    del world.held[TWO][ChunkId(world.file, 1)]


def moved(world: World) -> None:
    world.held[ONE][ChunkId(world.file, 1)] = LAST


def no_copy(world: World) -> None:
    world.steps.table.directory.place(world.file, 0, ())
    world.held[ONE].clear()


FILE, GONE = 3, 99
CASES: list[tuple[str, Callable[[World], object], list[tuple[str, int, int, str]]]] = [
    ("sound", lambda world: None, []),
    ("missing", lambda world: world.held[TWO].clear(), [("missing", FILE, 1, TWO)]),
    ("orphaned, placed nowhere", forget_place, [("orphaned", FILE, 1, TWO)]),
    ("orphaned, placed elsewhere", moved, [("orphaned", FILE, 1, ONE)]),
    ("orphaned, no inode", lambda world: world.held[ONE].update({ChunkId(GONE, 0): 5}), [("orphaned", GONE, 0, ONE)]),
    (
        "orphaned, no regular file",
        lambda world: world.held[ONE].update({ChunkId(world.directory, 0): 5}),
        [("orphaned", 2, 0, ONE)],
    ),
    ("too long", lambda world: world.held[TWO].update({ChunkId(world.file, 1): LAST + 1}), [("wrong-length", FILE, 1, TWO)]),
    ("beyond the end", lambda world: world.resize(CHUNK_SIZE_BYTES), [("wrong-length", FILE, 1, TWO)]),
    ("lost", lose_server, [("lost", FILE, 1, DEAD)]),
    ("lost long ago", unknown_server, [("lost", FILE, 1, "earlier-9")]),
    (
        "no copy",
        no_copy,
        [("under-replicated", FILE, 0, "")],
    ),
    ("shorter than it may be", lambda world: world.held[TWO].update({ChunkId(world.file, 1): 1}), []),
    (
        "placed, nothing written yet",
        lambda world: (world.steps.do("place", world.file, 2, (ONE,)), world.steps.do("place", world.file, 9, (TWO,))),
        [],
    ),
    ("an inventory that could not be read", lambda world: world.held.pop(TWO), []),
]


@pytest.mark.parametrize(("change", "expected"), [case[1:] for case in CASES], ids=[case[0] for case in CASES])
def test_faults_of(change: Callable[[World], object], expected: list[tuple[str, int, int, str]]) -> None:
    world = World()
    change(world)
    assert world.faults() == expected


def test_an_orphan_counts_only_while_no_mount_could_hold_it() -> None:
    world = World()
    world.steps.do("unlink", world.directory, b"f")
    assert world.faults() == []
    world.mounts = 0
    assert world.faults() == [("unreaped", world.file, -1, "")]


BREACHES: list[tuple[str, Callable[[World], object], str]] = [
    ("nlink", lambda world: setattr(world.steps.inode(world.file), "nlink", 2), "nlink 2"),
    ("name", lambda world: world.steps.table.directory_entries(ROOT_INO).update({b"x": 77}), "does not exist"),
    ("size of a directory", lambda world: setattr(world.steps.inode(world.directory), "size", 4096), "its kind makes 0"),
    ("size of a file", lambda world: setattr(world.steps.inode(world.file), "size", -1), "no file can have"),
    ("target", lambda world: setattr(world.steps.inode(world.steps.make(b"s", mode=SYMLINK)), "target", None), "no target"),
    ("chunk of a directory", lambda world: world.steps.table.directory.place(world.directory, 0, (ONE,)), "no regular file"),
    ("chunk without inode", lambda world: world.steps.table.directory.place(GONE, 0, (ONE,)), "has no inode"),
]


@pytest.mark.parametrize(("change", "sentence"), [case[1:] for case in BREACHES], ids=[case[0] for case in BREACHES])
def test_broken_invariants_are_told_after_one_look(change: Callable[[World], object], sentence: str) -> None:
    world = World()
    change(world)
    found = faults(world.look())
    told = [fault.text for fault in found if fault.kind == "invariant"]
    assert any(sentence in text for text in told), told
    assert [fault.text for fault in certain([], found)] == told


def test_a_circle_of_directories_cannot_be_reached() -> None:
    world = World()
    one, two = world.steps.mkdir(b"one"), 0
    two = world.steps.mkdir(b"two", one)
    table = world.steps.table
    del table.directory_entries(ROOT_INO)[b"one"]
    table.inode(ROOT_INO).nlink -= 1
    table.directory_entries(two)[b"one"] = one
    table.inode(two).nlink += 1
    table.inode(one).parent = two
    assert [fault.text for fault in faults(world.look())] == [
        f"directory {one} cannot be reached from the root",
        f"directory {two} cannot be reached from the root",
    ]


def changed_between(change: Callable[[World], object]) -> list[Fault]:
    """The chunk is missing, lies elsewhere and is too long in two looks, with a change in between."""
    world = World()
    world.held[TWO].clear()
    world.held[ONE] = {ChunkId(world.file, 0): CHUNK_SIZE_BYTES, ChunkId(world.file, 1): LAST}
    first = faults(world.look())
    change(world)
    return certain(first, faults(world.look()))


def test_what_is_the_same_in_two_looks_is_certain() -> None:
    assert {fault.kind for fault in changed_between(lambda world: None)} == {"missing", "orphaned"}


@pytest.mark.parametrize(
    "change",
    [
        lambda world: world.steps.do("extend", 10_000, world.file, 1),
        lambda world: world.steps.do("change", world.file, None, None, None, world.steps.inode(world.file).size),
        lambda world: world.held.update(World().held),
    ],
    ids=["written", "truncated", "arrived"],
)
def test_a_file_that_changed_between_two_looks_is_not_judged(change: Callable[[World], object]) -> None:
    assert changed_between(change) == []


def test_paths_are_told_of_every_name_and_in_words_for_a_terminal() -> None:
    world = World()
    world.steps.do("link", world.file, ROOT_INO, b"new\nline\xff")
    paths = Paths(world.steps.table)
    assert paths.of(world.file) == [b"/new\nline\xff", b"/a/f"]
    assert (paths.of(ROOT_INO), paths.of(world.directory), paths.of(GONE)) == ([b"/"], [b"/a"], [])
    world.held[TWO].clear()
    look = world.look()
    report = Report(look, faults(look), [])
    line, summary = report.lines()
    assert line.startswith(r"missing: chunk 1 of inode 3, '/new\nline\udcff', /a/f: the chunk server on two does not have it")
    assert summary == "1 faults, 1 left: 3 inodes, 2 chunks, 2 chunk servers"
    assert report.values()["faults"][0]["paths"] == ["/new\nline\udcff", "/a/f"]


def test_chunks_of_one_file_on_one_server_are_told_together() -> None:
    world = World()
    for index in (4, 5, 6, 9):
        world.held[ONE][ChunkId(GONE, index)] = 1
    look = world.look()
    assert next(Report(look, faults(look), []).lines()).startswith("orphaned: chunks 4-6, 9 of inode 99: ")
