"""What a check has found and done, in words and as plain values."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.fsck.compare import LOST, MISSING, Fault, Look
from gridfs.fsck.repair import Repair
from gridfs.meta.inode import ROOT_INO
from gridfs.meta.table import Table

_ADVICE = {LOST: "remove the file, or copy it in again", MISSING: "remove the file, or copy it in again"}
_PATHS_MAX = 3


@dataclass(frozen=True, slots=True)
class Report:
    """The newest look, its faults, and what became of those that `--repair` looked at."""

    look: Look
    faults: list[Fault]
    repairs: list[Repair]

    @property
    def left(self) -> list[Fault]:
        """The faults that are still there."""
        mended = {repair.fault for repair in self.repairs if repair.done}
        return [fault for fault in self.faults if fault not in mended]

    def lines(self) -> Iterator[str]:
        """For people: faults, chunks of one file on one server together; then repairs; then one line that sums up."""
        paths = Paths(self.look.table) if self.faults else None
        for group in _grouped(self.faults):
            yield _line(group, [_shown(path) for path in paths.of(group[0].ino)] if paths else [])
        yield from (repair.text for repair in self.repairs)
        if not self.faults:
            yield f"clean: {self.counts()}"
        else:
            yield f"{len(self.faults):,} faults, {len(self.left):,} left: {self.counts()}"

    def counts(self) -> str:
        """How much was looked at."""
        table = self.look.table
        return f"{len(table.inodes):,} inodes, {len(table.directory):,} chunks, {len(self.look.inventories)} chunk servers"

    def values(self) -> dict[str, Any]:
        """For programs. Paths are text as Python's os.fsdecode makes it: bytes that are no UTF-8 become lone surrogates."""
        outcome = {repair.fault: repair for repair in self.repairs}
        table, paths = self.look.table, Paths(self.look.table)
        return {
            "clean": not self.left,
            "inodes": len(table.inodes),
            "chunks": len(table.directory),
            "chunk_servers": sorted(self.look.inventories),
            "mounts": self.look.mounts,
            "faults": [_values(fault, paths.of(fault.ino), outcome.get(fault)) for fault in self.faults],
        }


def _line(group: list[Fault], paths: list[str]) -> str:
    fault = group[0]
    if not fault.ino:
        return f"{fault.kind}: {fault.text}"
    what = f"inode {fault.ino}" if fault.index < 0 else f"{_indices([each.index for each in group])} of inode {fault.ino}"
    if fault.kind == LOST and fault.keep_bytes:
        what += f", bytes {_byte_ranges(group)}"
    if paths:
        what += f", {', '.join(paths[:_PATHS_MAX])}" + (", ..." if len(paths) > _PATHS_MAX else "")
    advice = f" ({_ADVICE[fault.kind]})" if fault.kind in _ADVICE else ""
    return f"{fault.kind}: {what}: {fault.text}{' (the first of them)' if len(group) > 1 else ''}{advice}"


def _values(fault: Fault, paths: list[bytes], repair: Repair | None) -> dict[str, Any]:
    return {
        "kind": fault.kind,
        "text": fault.text,
        "ino": fault.ino or None,
        "index": fault.index if fault.index >= 0 else None,
        "server": fault.server or None,
        "claimed_bytes": fault.keep_bytes,
        "paths": [os.fsdecode(path) for path in paths],
        "mended": repair is not None and repair.done,
        "repair": repair.text if repair else None,
    }


class Paths:
    """The paths of a table's inodes."""

    def __init__(self, table: Table) -> None:
        """Reads the whole table once."""
        self._names: dict[int, list[tuple[int, bytes]]] = defaultdict(list)
        for parent, inode in table.inodes.items():
            for name, ino in (inode.entries or {}).items():
                self._names[ino].append((parent, name))

    def of(self, ino: int) -> list[bytes]:
        """Every path of an inode from the filesystem's root, one for each name; none for an orphan."""
        if ino == ROOT_INO:
            return [b"/"]
        return [self._directory(parent) + b"/" + name for parent, name in self._names.get(ino, ())]

    def _directory(self, ino: int) -> bytes:
        """The path of a directory, empty for the root; one that the root does not lead to begins with "?"."""
        path, seen = b"", {ROOT_INO}
        while ino not in seen:
            seen.add(ino)
            if not self._names.get(ino):
                return b"?" + path
            ino, name = self._names[ino][0]
            path = b"/" + name + path
        return path if ino == ROOT_INO else b"?" + path


def _grouped(found: list[Fault]) -> Iterator[list[Fault]]:
    """Faults of one kind about chunks of one inode on one server come together, in the order in which they were found."""
    groups: dict[tuple[Any, ...], list[Fault]] = defaultdict(list)
    for fault in found:
        alone = fault.index < 0
        groups[fault.kind, fault.ino, fault.server, fault.text if alone else ""].append(fault)
    yield from groups.values()


def _indices(indices: list[int]) -> str:
    """chunk 3; chunks 0-2, 5."""
    spans: list[list[int]] = []
    for index in sorted(indices):
        if spans and index == spans[-1][1] + 1:
            spans[-1][1] = index
        else:
            spans.append([index, index])
    text = ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in spans)
    return f"chunk{'s' if len(indices) > 1 else ''} {text}"


def _byte_ranges(group: list[Fault]) -> str:
    """Which bytes of the file the chunks hold, first and last."""
    ranges: list[list[int]] = []
    for index, length in sorted((fault.index, fault.keep_bytes) for fault in group):
        begin = index * CHUNK_SIZE_BYTES
        if ranges and ranges[-1][1] == begin:
            ranges[-1][1] = begin + length
        else:
            ranges.append([begin, begin + length])
    return ", ".join(f"{begin:,}-{end - 1:,}" for begin, end in ranges)


def _shown(path: bytes) -> str:
    """The path on one line that every terminal takes."""
    text = os.fsdecode(path)
    return text if text.isprintable() else repr(text)
