"""A whole inode table as text: JSON lines, described in docs/DUMP.md. Pure: lines in, a table out, and back."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import stat
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from gridfs.config import NAME_MAX_BYTES
from gridfs.errors import GridfsError
from gridfs.meta.inode import ROOT_INO, Inode
from gridfs.meta.rows import loading
from gridfs.meta.table import Table

FORMAT, VERSION = "gridfs inode table", 1
_NUMBERS = ("ino", "mode", "uid", "gid", "nlink", "size", "rdev", "parent", "atime_ns", "mtime_ns", "ctime_ns")
"""The fields of an inode that are plain numbers, in the order in which it packs."""
_HEADER = ("format", "version", "time_ns", "next_ino", "inodes", "names", "chunks")


# -- writing ---------------------------------------------------------------------------------------------------------


def dump(table: Table, time_ns: int) -> Iterator[bytes]:
    """The lines of a table as it is: a header, the rows, and a checksum of all that came before."""
    digest = hashlib.sha256()
    for row in _rows(table, time_ns):
        line = _line(row)
        digest.update(line)
        yield line
    yield _line({"sha256": digest.hexdigest()})


def _line(row: dict[str, Any]) -> bytes:
    return json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def _rows(table: Table, time_ns: int) -> Iterator[dict[str, Any]]:
    names = sum(len(inode.entries or ()) for inode in table.inodes.values())
    counts = (len(table.inodes), names, len(table.directory))
    yield dict(zip(_HEADER, (FORMAT, VERSION, time_ns, table.next_ino, *counts), strict=True))
    for inode in table.inodes.values():
        *numbers, target, xattrs = inode.pack()
        row: dict[str, Any] = {"row": "inode", **dict(zip(_NUMBERS, numbers, strict=True))}
        if target is not None:
            row["target"] = _text(target)
        if xattrs is not None:
            row["xattrs"] = [[_text(name), _text(value)] for name, value in xattrs.items()]
        yield row
    for parent, inode in table.inodes.items():
        for name, ino in (inode.entries or {}).items():
            yield {"row": "name", "parent": parent, "name": _text(name), "ino": ino}
    for ino, index, servers in table.directory:
        yield {"row": "chunk", "ino": ino, "index": index, "servers": list(servers)}


def _text(value: bytes) -> str | dict[str, str]:
    """Bytes as JSON: text where they are UTF-8, else {"base64": ...}."""
    try:
        return value.decode()
    except UnicodeDecodeError:
        return {"base64": base64.b64encode(value).decode()}


# -- reading ---------------------------------------------------------------------------------------------------------


class _WrongError(Exception):
    """What is wrong with one line."""


def load(lines: Iterable[bytes]) -> Table:
    """The table that `dump` gave these lines for.

    Raises GridfsError with a sentence unless they are whole, unchanged, and a sound table.
    """
    reader, number = _Reader(), 0
    with loading(reader.table):
        for number, line in enumerate(lines, 1):
            try:
                reader.take(line)
            except _WrongError as wrong:
                raise GridfsError(f"line {number} of the dump {wrong}: nothing was loaded") from wrong
    if not reader.ended:
        raise GridfsError(f"the dump ends after {number:,} lines, without its last one: nothing was loaded")
    faults = reader.faults()
    if faults:
        raise GridfsError(f"the dump holds no sound table, {faults[0]}: nothing was loaded")
    return reader.table


class _Reader:
    """Takes the lines of a dump, one after another."""

    def __init__(self) -> None:
        self.table = Table()
        self.ended = False
        self._header: dict[str, Any] = {}
        self._counts = {"inodes": 0, "names": 0, "chunks": 0}
        self._digest = hashlib.sha256()
        self._takers: dict[Any, Callable[[dict[str, Any]], None]]
        self._takers = {"inode": self._take_inode, "name": self._take_name, "chunk": self._take_chunk}

    def take(self, line: bytes) -> None:
        """Raises _WrongError."""
        if self.ended:
            raise _WrongError("comes after the last one")
        row = _parse(line)
        if not self._header:
            self._take_header(row)
        elif "sha256" in row:
            if row["sha256"] != self._digest.hexdigest():
                raise _WrongError("is another checksum than that of the lines before it, so the dump was changed")
            self.ended = True
        elif row.get("row") in self._takers:
            self._takers[row["row"]](row)
        else:
            raise _WrongError("is no inode, name, chunk or checksum")
        self._digest.update(line)

    def faults(self) -> list[str]:
        """What is wrong with the table as a whole."""
        wrong = [
            f"which should have {self._header[kind]} {kind} and has {count}"
            for kind, count in self._counts.items()
            if self._header[kind] != count
        ]
        faults = self.table.check()
        if ROOT_INO not in self.table.inodes or not self.table.inodes[ROOT_INO].is_directory:
            faults.append("it has no root directory")
        return wrong + faults

    def _take_header(self, row: dict[str, Any]) -> None:
        if row.get("format") != FORMAT:
            raise _WrongError("is not the header of a dump of gridfs")
        if row.get("version") != VERSION:
            raise _WrongError(f"says version {row.get('version')}, this gridfs reads {VERSION}")
        for field in _HEADER[2:]:
            _number(row, field)
        self._header = row
        self.table.next_ino = row["next_ino"]

    def _take_inode(self, row: dict[str, Any]) -> None:
        numbers = [_number(row, field) for field in _NUMBERS]
        target = _bytes(row["target"]) if "target" in row else None
        xattrs = _xattrs(row["xattrs"]) if "xattrs" in row else None
        inode = Inode((*numbers, target, xattrs))
        if inode.ino in self.table.inodes or inode.ino < 1:
            raise _WrongError(f"has inode {inode.ino}, which is there already or no number for one")
        if not stat.S_IFMT(inode.mode) or inode.mode >> 16:
            raise _WrongError(f"has mode {inode.mode:o}, which no inode has")
        self.table.inodes[inode.ino] = inode
        if not inode.nlink:
            self.table.orphans.add(inode.ino)
        self._counts["inodes"] += 1

    def _take_name(self, row: dict[str, Any]) -> None:
        parent, ino, name = _number(row, "parent"), _number(row, "ino"), _bytes(row.get("name"))
        directory = self.table.inodes.get(parent)
        if directory is None or directory.entries is None:
            raise _WrongError(f"has a name in inode {parent}, which is no directory")
        if not 0 < len(name) <= NAME_MAX_BYTES or name in (b".", b"..") or set(name) & {0, ord("/")}:
            raise _WrongError(f"has {name!r}, which is no name")
        if name in directory.entries:
            raise _WrongError(f"has {name!r}, which is there already")
        directory.entries[name] = self._inode(ino).ino
        self._counts["names"] += 1

    def _inode(self, ino: int) -> Inode:
        inode = self.table.inodes.get(ino)
        if inode is None:
            raise _WrongError(f"is about inode {ino}, which does not exist")
        return inode

    def _take_chunk(self, row: dict[str, Any]) -> None:
        ino, index, servers = _number(row, "ino"), _number(row, "index"), row.get("servers")
        if not isinstance(servers, list) or not servers or not all(isinstance(server, str) for server in servers):
            raise _WrongError("has no list of servers")
        if index < 0 or self.table.directory.servers(ino, index):
            raise _WrongError(f"has chunk {index} of inode {ino}, which is there already or no chunk")
        self.table.directory.place(self._inode(ino).ino, index, tuple(servers))
        self._counts["chunks"] += 1


def _parse(line: bytes) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise _WrongError(f"is no JSON ({error})") from error
    if not isinstance(row, dict):
        raise _WrongError("is no JSON object")
    return row


def _number(row: dict[str, Any], field: str) -> int:
    value = row.get(field)
    if type(value) is not int or not -(1 << 63) <= value < 1 << 63:
        raise _WrongError(f"has no number {field}")
    return value


def _bytes(value: Any) -> bytes:
    """The inverse of `_text`."""
    try:
        if isinstance(value, str):
            return value.encode()
        if isinstance(value, dict) and isinstance(value.get("base64"), str):
            return base64.b64decode(value["base64"], validate=True)
    except (UnicodeEncodeError, binascii.Error) as error:
        raise _WrongError(f"has text that stands for no bytes ({error})") from error
    raise _WrongError("has neither text nor base64 where there should be")


def _xattrs(value: Any) -> dict[bytes, bytes]:
    if not isinstance(value, list) or not all(isinstance(pair, list) and len(pair) == 2 for pair in value):
        raise _WrongError("has no list of attributes")
    return {_bytes(name): _bytes(content) for name, content in value}
