"""Writes and truncations of one file that overlap in time: they take effect in the order in which they were begun."""

from __future__ import annotations

import math
import os
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import trio
import trio.testing
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.budget import Limits
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER, running
from tests.vfs.faults import Kind, faulty
from tests.vfs.files import FILE

LIMIT_S = 30.0
REACH_BYTES = 3000
"""All happens this near to the border of two chunks, which lie on different nodes or on one, as it falls."""

LIMITS = Limits(window_bytes=2 * REACH_BYTES)
"""So small that writes wait for each other."""


class Write(NamedTuple):
    handle: int
    at: int
    length: int


class Truncate(NamedTuple):
    size: int


class Read(NamedTuple):
    handle: int
    at: int
    length: int


class Fsync(NamedTuple):
    handle: int


Step = Write | Truncate | Read | Fsync

handles, near = st.integers(0, 1), st.integers(-REACH_BYTES, REACH_BYTES).map(lambda distance: CHUNK_SIZE_BYTES + distance)
steps = st.lists(
    st.one_of(
        st.builds(Write, handles, near, st.integers(1, REACH_BYTES)),
        st.builds(Write, handles, near, st.integers(1, REACH_BYTES)),
        st.builds(Truncate, st.one_of(near, st.just(0))),
        st.builds(Read, handles, near, st.integers(1, REACH_BYTES)),
        st.builds(Fsync, handles),
    ),
    min_size=5,
    max_size=40,
)


class Overlap:
    """Begins each step before the last has returned. `contents` are the file's after each change, the first one begun first."""

    def __init__(self, filesystem: Filesystem, ino: int, fhs: list[int]) -> None:
        self.filesystem, self._ino, self._fhs = filesystem, ino, fhs
        self.contents = [b""]
        self._returned = 0

    async def take(self, nursery: trio.Nursery, step: Step) -> None:
        """Begin a change, and go on once it waits for something; see a read or an fsync through."""
        if isinstance(step, Write):
            data = bytes([1 + len(self.contents) % 255]) * step.length
            before = self.contents[-1].ljust(step.at, b"\0")
            self.contents.append(before[: step.at] + data + before[step.at + step.length :])
            await self._begin(nursery, partial(self.filesystem.data.write, self._fhs[step.handle], step.at, data))
        elif isinstance(step, Truncate):
            self.contents.append(self.contents[-1][: step.size].ljust(step.size, b"\0"))
            await self._begin(nursery, partial(self.filesystem.change, self._ino, size=step.size))
        elif isinstance(step, Fsync):
            await self.filesystem.data.fsync(self._fhs[step.handle])
        else:
            possible = self.contents[self._returned :]
            check(bytes(await self.filesystem.read(self._fhs[step.handle], step.at, step.length)), step, possible)

    async def _begin(self, nursery: trio.Nursery, call: Callable[[], object]) -> None:
        number = len(self.contents) - 1

        async def see_through() -> None:
            await call()  # type: ignore[misc]
            assert self._returned == number - 1, "changes return in the order in which they were begun"
            self._returned = number

        nursery.start_soon(see_through)
        await trio.testing.wait_all_tasks_blocked()


def check(seen: bytes, step: Read, possible: list[bytes]) -> None:
    """A read has, byte for byte, what had returned before it, or what was under way; nothing older."""
    parts = [content[step.at : step.at + step.length] for content in possible]
    assert len(seen) in {len(part) for part in parts}
    for position, byte in enumerate(seen):
        assert byte in {part[position] if position < len(part) else 0 for part in parts}


async def run(directory: Path, program: list[Step], delay_s: float) -> None:
    with trio.fail_after(LIMIT_S):
        async with running(directory, interposed=True) as cluster, cluster.mounted(limits=LIMITS) as filesystem:
            ino = (await filesystem.make(USER, ROOT_INO, b"file", FILE)).ino
            overlap = Overlap(filesystem, ino, [await filesystem.open(ino, os.O_RDWR) for _ in range(2)])
            late = partial(faulty, cluster, method="write", n=1, kind=Kind.DELAY, times=math.inf)
            with late(node="node1", delay_s=delay_s), late(node="node2", delay_s=delay_s / 3):
                async with trio.open_nursery() as nursery:
                    for step in program:
                        await overlap.take(nursery, step)
            final = overlap.contents[-1]
            for fh in overlap._fhs:
                await filesystem.data.fsync(fh)
                assert bytes(await filesystem.read(fh, 0, len(final) + 1)) == final
            cluster.check()
            assert cluster.meta.engine.table.inode(ino).size == len(final)


@settings(max_examples=30, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(steps, st.sampled_from([0.001, 0.01]))
def test_changes_that_overlap_take_effect_in_the_order_in_which_they_were_begun(program: list[Step], delay_s: float) -> None:
    with tempfile.TemporaryDirectory() as directory:
        trio.run(run, Path(directory), program, delay_s)
