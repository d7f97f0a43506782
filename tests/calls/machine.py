"""Random calls, made of a filesystem and of the model side by side: results, errnos and the whole tree are the same after each.

The examples are the same in every run. For a longer search with new ones each time, set GRIDFS_MACHINE_EXAMPLES to how many
each machine shall try, e.g. `GRIDFS_MACHINE_EXAMPLES=2000 pytest tests/vfs/test_machine.py`.
"""

from __future__ import annotations

import errno
import os
import stat
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import hypothesis.strategies as st
from hypothesis import HealthCheck, note, settings
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule, run_state_machine_as_test

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.vfs.filesystem import kernel_time_ns
from tests.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, Attributes, Calls
from tests.calls.model import ModelCalls

TOP = "w"
"""What every path begins with: one directory of the filesystem, made by the machine."""
PATHS = st.sampled_from([f"{TOP}/{path}" for path in ("a", "b", "c", "a/a", "a/b", "b/a", "a/a/a", "b/a/c")])
FILES, DIRECTORY = st.integers(0, 2), 3
"""Handles: three of files, one of a directory."""
WHO = st.integers(0, 1)
"""Which of several mounts makes the call."""
CLOCK_NS = 17 * 10**17
"""The model's time when it starts, in 2023. Times that utimens sets are long before or after."""
TIMES_NS = st.sampled_from([-5, 10**18 + 7, 4 * 10**18])
POSITIONS = (0, 1, 4094, CHUNK_SIZE_BYTES - 2, CHUNK_SIZE_BYTES, 2 * CHUNK_SIZE_BYTES - 1, 1 << 40)
WINDOW_BYTES = 16
XATTRS = st.sampled_from(["trusted.a", "trusted.b"])
"""Of the namespace that the kernel allows everywhere, symlinks included."""
OPEN_FLAGS = st.sampled_from([0, os.O_TRUNC, os.O_CREAT, os.O_CREAT, os.O_CREAT | os.O_EXCL, os.O_CREAT | os.O_TRUNC])
KINDS = {stat.S_IFREG: 0, stat.S_IFIFO: 0, stat.S_IFSOCK: 0, stat.S_IFCHR: os.makedev(1, 3)}


def profile(examples: int, steps: int) -> settings:
    """The settings of a machine: the same `examples` every time, or as many new ones as the environment asks for."""
    wanted = os.environ.get("GRIDFS_MACHINE_EXAMPLES")
    return settings(
        max_examples=int(wanted or examples),
        stateful_step_count=steps,
        derandomize=not wanted,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )


def run(make: Callable[[], RuleBasedStateMachine], chosen: settings) -> None:
    """Run the machines that `make` makes."""
    run_state_machine_as_test(make, settings=chosen)  # type: ignore[arg-type] # any callable will do


class Entry(NamedTuple):
    """All that can be told of a name. `same` is the first path that leads to the same inode."""

    attributes: Attributes
    same: str
    names: list[str]
    target: bytes
    xattrs: dict[str, bytes]


@dataclass
class World:
    """One filesystem under test, with its mounts, and which times it must keep as the model says.

    `moments` has for each time of the model what the real time was before and after.
    """

    name: str
    mounts: list[Calls]
    times: tuple[str, ...]
    moments: dict[int, tuple[int, int]] = field(default_factory=dict)

    def compare(self, path: str, found: Attributes, expected: Attributes) -> None:
        """Assert that the attributes are those of the model."""
        for name in self.times:
            real_ns, time_ns = getattr(found, name), getattr(expected, name)
            first_ns, last_ns = self.moments.get(time_ns, (time_ns, time_ns))
            what = f"{self.name}: {name} of {path} is {real_ns}, step {time_ns - CLOCK_NS} was from {first_ns} to {last_ns}"
            assert first_ns <= real_ns <= last_ns, what
        assert plain(found) == plain(expected), f"{self.name}: {path}"


def plain(attributes: Attributes) -> Attributes:
    """The attributes without what differs from one filesystem to the next."""
    return attributes._replace(ino=0, atime_ns=0, mtime_ns=0, ctime_ns=0)


def outcome(call: Callable[..., Any], *arguments: Any) -> Any:
    """What the call returns, or the name of the errno it fails with."""
    try:
        return call(*arguments)
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, repr(error))


def tree(calls: Calls, path: str = TOP, seen: dict[int, str] | None = None) -> dict[str, Entry]:
    """Everything from `path` on down."""
    seen = {} if seen is None else seen
    attributes = calls.stat(path)
    same = seen.setdefault(attributes.ino, path)
    xattrs = {name: calls.getxattr(path, name) for name in calls.listxattr(path)}
    target = calls.readlink(path) if stat.S_ISLNK(attributes.mode) else b""
    names = calls.listdir(path) if attributes.is_directory else []
    found = {path: Entry(attributes, same, names, target, xattrs)}
    for name in names:
        found |= tree(calls, f"{path}/{name}", seen)
    return found


class Machine(RuleBasedStateMachine):
    """Each rule makes one call everywhere. `worlds` and `close_to_open` are for subclasses to say.

    Where several mounts share a filesystem, what one writes the other need not see before it is closed (`close_to_open`): then
    handles are closed after a write, and bytes are read through handles that were opened just then.
    """

    worlds: list[World]
    close_to_open = False
    asks_kernel = True
    """False where the kernel is not there to answer renames that it sees through by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.model = ModelCalls()
        self.model.now_ns = CLOCK_NS
        self.open_on: dict[int, int] = {}
        """Handle -> the mount that it was opened on."""
        self.sound = True

    # -- doing and comparing -----------------------------------------------------------------------------------------

    def everywhere(self, who: int, action: Callable[[Calls], Any]) -> tuple[Any, list[Any]]:
        """What `action` returns of the model, and of a mount of each world; the model's clock moves on."""
        self.model.now_ns += 1
        expected, found = action(self.model), []
        for world in self.worlds:
            before_ns = kernel_time_ns()
            found.append(action(world.mounts[who % len(world.mounts)]))
            world.moments[self.model.now_ns] = before_ns, time.time_ns()
        return expected, found

    def do(self, who: int, name: str, *arguments: Any) -> Any:
        """Make one call everywhere, and compare what it returns, and the trees afterwards."""
        expected = self.call(who, name, *arguments)
        self.sound = False
        for mount in range(max(len(world.mounts) for world in self.worlds)):
            self.compare_trees(mount)
        self.sound = True
        return expected

    def call(self, who: int, name: str, *arguments: Any) -> Any:
        """Make one call everywhere, and compare what it returns."""
        self.sound = False
        expected, found = self.everywhere(who, lambda calls: outcome(getattr(calls, name), *arguments))
        note(f"-> {expected}")
        for world, result in zip(self.worlds, found, strict=True):
            assert result == expected, f"{world.name}: {name}{arguments} gave {result}, not {expected}"
        self.sound = True
        return expected

    def compare_trees(self, who: int) -> None:
        """Everything with a name, and what has none but is open."""
        expected, found = self.everywhere(who, tree)
        for world, names in zip(self.worlds, found, strict=True):
            assert {path: entry[1:] for path, entry in names.items()} == {p: entry[1:] for p, entry in expected.items()}, (
                world.name
            )
            for path, entry in names.items():
                world.compare(path, entry.attributes, expected[path].attributes)
        for handle, mount in self.open_on.items():
            open_file, found = self.everywhere(mount, lambda calls, handle=handle: calls.fstat(handle))  # type: ignore[misc]
            for world, attributes in zip(self.worlds, found, strict=True):
                world.compare(f"handle {handle}", attributes, open_file)

    def follows(self, path: str, *, last: bool = False) -> bool:
        """Whether the kernel would follow a symlink on the way, or at the end: that is none of our business."""
        parts = path.split("/")
        steps = ["/".join(parts[:count]) for count in range(1, len(parts) + last)]
        return any(self.model.kind(step) == stat.S_IFLNK for step in steps)

    # -- names -------------------------------------------------------------------------------------------------------

    @initialize()
    def start(self) -> None:
        """Some ground to stand on: directories, one of them setgid, and open files."""
        self.do(0, "mkdir", TOP)
        for name in ("a", "b", "a/a"):
            self.do(0, "mkdir", f"{TOP}/{name}")
        for handle, name in enumerate(("c", "a/b")):
            self.open(handle, handle, f"{TOP}/{name}", os.O_CREAT)
        self.do(0, "chown", f"{TOP}/b", 77, 88)
        self.do(0, "chmod", f"{TOP}/b", 0o2775)

    @rule(who=WHO, path=PATHS, mode=st.sampled_from([0o755, 0o700, 0o1777]))
    def mkdir(self, who: int, path: str, mode: int) -> None:
        if not self.follows(path):
            self.do(who, "mkdir", path, mode)

    @rule(who=WHO, path=PATHS, kind=st.sampled_from(list(KINDS)), mode=st.sampled_from([0o644, 0o600, 0]))
    def mknod(self, who: int, path: str, kind: int, mode: int) -> None:
        if not self.follows(path):
            self.do(who, "mknod", path, kind | mode, KINDS[kind])

    @rule(who=WHO, path=PATHS, text=st.sampled_from([b"a", b"../b", b"nowhere" * 50]))
    def symlink(self, who: int, path: str, text: bytes) -> None:
        if not self.follows(path):
            self.do(who, "symlink", text, path)

    @rule(who=WHO, path=PATHS)
    def readlink(self, who: int, path: str) -> None:
        if not self.follows(path):
            self.do(who, "readlink", path)

    @rule(who=WHO, old=PATHS, new=PATHS)
    def link(self, who: int, old: str, new: str) -> None:
        if not self.follows(old) and not self.follows(new):
            self.do(who, "link", old, new)

    @rule(who=WHO, path=PATHS)
    def unlink(self, who: int, path: str) -> None:
        if not self.follows(path):
            self.do(who, "unlink", path)

    @rule(who=WHO, path=PATHS)
    def rmdir(self, who: int, path: str) -> None:
        if not self.follows(path):
            self.do(who, "rmdir", path)

    @rule(who=WHO, old=PATHS, new=PATHS, flags=st.sampled_from([0, 0, 0, RENAME_NOREPLACE]))
    def rename(self, who: int, old: str, new: str, flags: int) -> None:
        above = flags == 0 and old.startswith(f"{new}/") and self.model.kind(old) != stat.S_IFDIR
        seen_through = above or (flags == RENAME_EXCHANGE and self.model.same(old, new))
        if not self.follows(old) and not self.follows(new) and (self.asks_kernel or not seen_through):
            self.do(who, "rename", old, new, flags)

    @rule(who=WHO, old=PATHS, new=PATHS)
    def exchange(self, who: int, old: str, new: str) -> None:
        self.rename(who, old, new, RENAME_EXCHANGE)

    @rule(who=WHO, path=PATHS)
    def listdir(self, who: int, path: str) -> None:
        if not self.follows(path, last=True):
            self.do(who, "listdir", path)

    # -- attributes --------------------------------------------------------------------------------------------------

    @rule(who=WHO, path=PATHS, mode=st.sampled_from([0o644, 0o755, 0, 0o1777, 0o2775]))
    def chmod(self, who: int, path: str, mode: int) -> None:
        """setgid is for directories here: of files the kernel takes it away now and then."""
        if not self.follows(path, last=True):
            self.do(who, "chmod", path, mode if self.model.kind(path) == stat.S_IFDIR else mode & ~stat.S_ISGID)

    @rule(who=WHO, path=PATHS, uid=st.sampled_from([-1, 0, 77]), gid=st.sampled_from([-1, 0, 88]))
    def chown(self, who: int, path: str, uid: int, gid: int) -> None:
        if not self.follows(path) and (uid, gid) != (-1, -1):
            self.do(who, "chown", path, uid, gid)

    @rule(who=WHO, path=PATHS, atime_ns=TIMES_NS, mtime_ns=TIMES_NS)
    def utimens(self, who: int, path: str, atime_ns: int, mtime_ns: int) -> None:
        if not self.follows(path):
            self.do(who, "utimens", path, atime_ns, mtime_ns)

    @rule(who=WHO, path=PATHS, size=st.sampled_from(POSITIONS))
    def truncate(self, who: int, path: str, size: int) -> None:
        if not self.follows(path, last=True):
            self.do(who, "truncate", path, size)

    @rule(who=WHO, path=PATHS, name=XATTRS, value=st.binary(max_size=3))
    def setxattr(self, who: int, path: str, name: str, value: bytes) -> None:
        if not self.follows(path):
            self.do(who, "setxattr", path, name, value)

    @rule(who=WHO, path=PATHS, name=XATTRS, call=st.sampled_from(["getxattr", "removexattr"]))
    def getxattr_or_remove_it(self, who: int, path: str, name: str, call: str) -> None:
        if not self.follows(path):
            self.do(who, call, path, name)

    # -- handles -----------------------------------------------------------------------------------------------------

    @rule(who=WHO, handle=FILES, path=PATHS, flags=OPEN_FLAGS)
    def open(self, who: int, handle: int, path: str, flags: int) -> None:
        """Fifos and devices are left out: the filesystem is not asked to open them."""
        if not self.follows(path, last=True) and self.model.kind(path) in (0, stat.S_IFREG, stat.S_IFDIR):
            self.close(handle)
            if self.do(who, "open", handle, path, flags | os.O_RDWR) is None:
                self.open_on[handle] = who

    @rule(who=WHO, path=PATHS)
    def opendir(self, who: int, path: str) -> None:
        if not self.follows(path, last=True):
            self.close(DIRECTORY)
            if self.do(who, "open", DIRECTORY, path, os.O_RDONLY | os.O_DIRECTORY) is None:
                self.open_on[DIRECTORY] = who

    @rule(handle=st.integers(0, DIRECTORY))
    def close(self, handle: int) -> None:
        if handle in self.open_on:
            self.do(self.open_on.pop(handle), "close", handle)

    @rule(who=WHO, handle=FILES, path=PATHS, offset=st.sampled_from(POSITIONS), data=st.binary(min_size=1, max_size=8))
    def write(self, who: int, handle: int, path: str, offset: int, data: bytes) -> None:
        """Through the handle, which is opened if it is not open."""
        if handle not in self.open_on:
            self.open(who, handle, path, os.O_CREAT)
        if handle in self.open_on:
            write = self.call if self.close_to_open else self.do  # the other mount need not see it before it is closed
            write(self.open_on[handle], "write", handle, offset, data)
            if self.close_to_open:
                self.close(handle)

    @precondition(lambda self: not self.close_to_open)
    @rule(handle=FILES, offset=st.sampled_from(POSITIONS))
    def read(self, handle: int, offset: int) -> None:
        if handle in self.open_on:
            self.do(self.open_on[handle], "read", handle, offset, WINDOW_BYTES)

    @rule(handle=FILES, size=st.sampled_from(POSITIONS))
    def ftruncate(self, handle: int, size: int) -> None:
        if handle in self.open_on:
            self.do(self.open_on[handle], "ftruncate", handle, size)

    @rule(handle=st.integers(0, DIRECTORY))
    def fsync(self, handle: int) -> None:
        if handle in self.open_on:
            self.do(self.open_on[handle], "fsync", handle)

    @rule()
    def list_handle(self) -> None:
        if DIRECTORY in self.open_on:
            self.do(self.open_on[DIRECTORY], "entries", DIRECTORY)

    @rule(who=WHO, path=PATHS)
    def read_whole(self, who: int, path: str) -> None:
        """Open, read wherever there may be something, close."""
        if self.model.kind(path) == stat.S_IFREG:
            handle = DIRECTORY + 1
            self.call(who, "open", handle, path, os.O_RDONLY)
            for offset in POSITIONS:
                self.call(who, "read", handle, offset, WINDOW_BYTES)
            self.do(who, "close", handle)

    # -- the end -----------------------------------------------------------------------------------------------------

    def finish(self) -> None:
        """Close all handles, read all files on every mount, and remove everything; nothing is there then."""
        for handle in list(self.open_on):
            self.close(handle)
        for path in tree(self.model):
            for mount in range(max(len(world.mounts) for world in self.worlds)):
                self.read_whole(mount, path)
        *everything, _ = reversed(tree(self.model).items())
        for path, entry in everything:
            self.do(0, "rmdir" if entry.attributes.is_directory else "unlink", path)
        self.model.rmdir(TOP)
        for world in self.worlds:
            world.mounts[0].rmdir(TOP)
