"""Random ops on the inode table do what they do to a model of plain dicts, and rows carry the table over at any time."""

from __future__ import annotations

import errno
import stat
from dataclasses import dataclass, field
from typing import Any

import hypothesis.strategies as st
from hypothesis import settings
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.rows import apply_rows, take_rows
from gridfs.meta.table import RENAME_EXCHANGE, RENAME_NOREPLACE, Changes, Table
from tests.unit.tables import DIRECTORY, FILE, dump

NAMES = st.sampled_from([b"a", b"b", b"c"])
WHICH = st.integers(0, 20)


@dataclass(eq=False)
class Entry:
    """A file or directory of the model: a directory has entries."""

    ino: int
    entries: dict[bytes, Entry] | None = None
    xattrs: dict[bytes, bytes] = field(default_factory=dict)

    def below(self) -> list[Entry]:
        """This entry and all below it."""
        return [self, *(entry for child in (self.entries or {}).values() for entry in child.below())]


class TableMachine(RuleBasedStateMachine):
    """Every rule does the same to `table` and to the tree of entries below `root`; `gone` are those without a name."""

    def __init__(self) -> None:
        super().__init__()
        self.table = Table()
        self.table.apply(("format", 0, 0, 0))
        self.root = Entry(ROOT_INO, {})
        self.gone: list[Entry] = []
        self.now_ns = 0

    def do(self, expected: int, kind: str, *arguments: Any) -> None:
        """Apply the op; it must end with the errno `expected`, 0 for success, and change nothing if it fails."""
        self.now_ns += 1
        now = () if kind == "reap" else (self.now_ns,)
        before = dump(self.table)
        try:
            self.table.apply((kind, *now, *arguments))
        except FilesystemError as error:
            assert errno.errorcode[error.errno or 0] == errno.errorcode.get(expected, "success")
            assert dump(self.table) == before
        else:
            assert not expected, f"{kind} should have failed with {errno.errorcode[expected]}"

    def entry(self, which: int) -> Entry:
        """Some entry, of those with a name or without."""
        entries = [*self.root.below(), *self.gone]
        return entries[which % len(entries)]

    def directory(self, which: int) -> tuple[Entry, dict[bytes, Entry]]:
        """Some directory, and what is in it."""
        directories = [entry for entry in [*self.root.below(), *self.gone] if entry.entries is not None]
        chosen = directories[which % len(directories)]
        assert chosen.entries is not None
        return chosen, chosen.entries

    def is_named(self, entry: Entry) -> bool:
        """Whether a path leads to the entry."""
        return entry in self.root.below()

    @rule(which=WHICH, name=NAMES, mode=st.sampled_from([FILE, DIRECTORY]))
    def make(self, which: int, name: bytes, mode: int) -> None:
        parent, entries = self.directory(which)
        expected = errno.EEXIST if name in entries else 0 if self.is_named(parent) else errno.ENOENT
        new = Entry(self.table.next_ino, {} if stat.S_ISDIR(mode) else None)
        self.do(expected, "make", new.ino, parent.ino, name, mode, 0, 0)
        if not expected:
            entries[name] = new

    @rule(which=WHICH, other=WHICH, name=NAMES)
    def link(self, which: int, other: int, name: bytes) -> None:
        (parent, entries), entry = self.directory(which), self.entry(other)
        faults = [
            (name in entries, errno.EEXIST),
            (not self.is_named(parent), errno.ENOENT),
            (entry.entries is not None, errno.EPERM),
            (not self.is_named(entry), errno.ENOENT),
        ]
        expected = next((code for fault, code in faults if fault), 0)
        self.do(expected, "link", entry.ino, parent.ino, name)
        if not expected:
            entries[name] = entry

    @rule(which=WHICH, name=NAMES, kind=st.sampled_from(["unlink", "rmdir"]))
    def remove(self, which: int, name: bytes, kind: str) -> None:
        parent, entries = self.directory(which)
        entry = entries.get(name)
        faults = [
            (entry is None, errno.ENOENT),
            (kind == "unlink" and entry is not None and entry.entries is not None, errno.EISDIR),
            (kind == "rmdir" and entry is not None and entry.entries is None, errno.ENOTDIR),
            (entry is not None and bool(entry.entries), errno.ENOTEMPTY),
        ]
        expected = next((code for fault, code in faults if fault), 0)
        self.do(expected, kind, parent.ino, name)
        if not expected:
            self.let_go(entries.pop(name))

    def let_go(self, entry: Entry) -> None:
        """One of the entry's names has been taken."""
        if not self.is_named(entry):
            self.gone.append(entry)

    @rule(which=WHICH, name=NAMES, other=WHICH, new_name=NAMES, flags=st.sampled_from([0, 0, RENAME_NOREPLACE]))
    def rename(self, which: int, name: bytes, other: int, new_name: bytes, flags: int) -> None:
        (parent, entries), (new_parent, new_entries) = self.directory(which), self.directory(other)
        entry, replaced = entries.get(name), new_entries.get(new_name)
        expected = self.rename_fault(entry, replaced, new_parent, flags)
        self.do(expected, "rename", parent.ino, name, new_parent.ino, new_name, flags)
        if not expected and replaced is not entry:
            del entries[name]
            lost = new_entries.pop(new_name, None)
            assert entry is not None
            new_entries[new_name] = entry
            if lost is not None:
                self.let_go(lost)

    def rename_fault(self, entry: Entry | None, replaced: Entry | None, new_parent: Entry, flags: int) -> int:
        """The errno that rename(2) ends with, 0 for success."""
        if entry is None:
            return errno.ENOENT
        if replaced is None and not self.is_named(new_parent):
            return errno.ENOENT
        if replaced is not None and flags == RENAME_NOREPLACE:
            return errno.EEXIST
        if entry.entries is not None and new_parent in entry.below():
            return errno.EINVAL
        if replaced is None or replaced is entry:
            return 0
        if (entry.entries is None) != (replaced.entries is None):
            return errno.ENOTDIR if replaced.entries is None else errno.EISDIR
        return errno.ENOTEMPTY if replaced.entries else 0

    @rule(which=WHICH, name=NAMES, other=WHICH, new_name=NAMES)
    def exchange(self, which: int, name: bytes, other: int, new_name: bytes) -> None:
        (parent, entries), (new_parent, new_entries) = self.directory(which), self.directory(other)
        one, two = entries.get(name), new_entries.get(new_name)
        expected = 0
        if one is None or two is None:
            expected = errno.ENOENT
        elif new_parent in one.below() or parent in two.below():
            expected = errno.EINVAL
        self.do(expected, "rename", parent.ino, name, new_parent.ino, new_name, RENAME_EXCHANGE)
        if not expected and one is not None and two is not None:
            entries[name], new_entries[new_name] = two, one

    @rule(which=WHICH, name=st.sampled_from([b"user.a", b"user.b"]), value=st.binary(max_size=3))
    def set_xattr(self, which: int, name: bytes, value: bytes) -> None:
        entry = self.entry(which)
        self.do(0, "set_xattr", entry.ino, name, value)
        entry.xattrs[name] = value

    @rule(which=WHICH)
    def reap(self, which: int) -> None:
        entry = self.entry(which)
        self.do(errno.EINVAL if self.is_named(entry) else 0, "reap", entry.ino)
        if entry in self.gone:
            self.gone.remove(entry)

    @invariant()
    def table_is_the_model(self) -> None:
        assert self.table.check() == []
        everything = {*self.root.below(), *self.gone}
        assert {entry.ino for entry in everything} == set(self.table.inodes)
        assert {entry.ino for entry in self.gone} == self.table.orphans
        for entry in everything:
            inode = self.table.inode(entry.ino)
            entries = None if entry.entries is None else {name: child.ino for name, child in entry.entries.items()}
            assert (inode.entries, inode.xattrs or {}) == (entries, entry.xattrs)

    def teardown(self) -> None:
        everything = Changes()
        everything.inodes.update(self.table.inodes)
        everything.names.update(
            ((ino, name), None) for ino in self.table.inodes for name in self.table.inodes[ino].entries or {}
        )
        everything.chunks.update((ino, index) for ino, index, _ in self.table.directory)
        replica = Table()
        while rows := take_rows(self.table, everything, Changes()):
            apply_rows(replica, rows)
        replica.next_ino = self.table.next_ino
        assert dump(replica) == dump(self.table)


TableMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None, database=None)
TestTable = TableMachine.TestCase
