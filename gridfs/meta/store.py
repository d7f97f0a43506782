"""The inode table on disk: SQLite in WAL mode, one row an inode, a name, a chunk.

After a batch of ops the rows they touched are written in one transaction, together with the number of the last op, so that a
restarted server knows just what it has applied. With `synchronous=NORMAL` a killed process loses nothing; a power failure may
lose the newest transactions, and leaves an older consistent table (sqlite.org/pragma.html#pragma_synchronous).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgpack

from gridfs.errors import GridfsError
from gridfs.meta.rows import Page, load_chunks, load_inodes, load_names, loading, pack_inode, paged
from gridfs.meta.table import Changes, Table

FORMAT = 2
"""Raised whenever rows change their meaning; a store of another format is refused."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS inodes(ino INTEGER PRIMARY KEY, row BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS names(parent INTEGER, position INTEGER, name BLOB, ino INTEGER NOT NULL,
                                 PRIMARY KEY(parent, name)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS chunks(ino INTEGER, idx INTEGER, servers BLOB NOT NULL, PRIMARY KEY(ino, idx)) WITHOUT ROWID;
"""


class Store:
    """One table's rows. Used by one thread, the one that made it."""

    def __init__(self, path: Path) -> None:
        """Open or create the store. Raises GridfsError when it is of another format or no store at all."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path = path
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            found = self.fact("format", FORMAT)
        except (sqlite3.DatabaseError, ValueError) as error:
            raise GridfsError(f"{path} is not a gridfs inode store ({error}): move it away and start again") from error
        if found != FORMAT:
            raise GridfsError(f"{path} is of format {found}, this gridfs reads {FORMAT}: use the version that wrote it")
        self._write_facts({"format": FORMAT})

    def fact(self, name: str, default: Any = None) -> Any:
        """A value kept with `save`."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else msgpack.unpackb(row[0])

    def load(self) -> Table:
        """The table as the last `save` left it. Raises GridfsError when the store is damaged."""
        try:
            return self._load()
        except (sqlite3.DatabaseError, ValueError, KeyError) as error:
            raise GridfsError(f"{self._path} is damaged ({error}): move it away and start again") from error

    def _load(self) -> Table:
        table = Table()
        with loading(table):
            load_inodes(table, (row for (row,) in self._database.execute("SELECT row FROM inodes")))
            load_names(table, self._database.execute("SELECT parent, name, ino FROM names ORDER BY parent, position"))
            load_chunks(table, self._database.execute("SELECT ino, idx, servers FROM chunks"))
        table.next_ino = max(table.next_ino, self.fact("next_ino", 0))
        return table

    def snapshot(self) -> Iterator[Page]:
        """All rows as the last `save` before the first page left them, in loading order; later saves do not show.

        A reader of its own: it holds up nobody, and ends when it is exhausted or let go.
        """
        with closing(sqlite3.connect(self._path, isolation_level=None)) as reader:
            reader.execute("BEGIN")
            yield from paged("inodes", (row for (row,) in reader.execute("SELECT row FROM inodes")))
            yield from paged("names", reader.execute("SELECT parent, name, ino FROM names ORDER BY parent, position"))
            yield from paged("chunks", reader.execute("SELECT ino, idx, servers FROM chunks"))

    def save(self, table: Table, changes: Changes, facts: dict[str, Any]) -> None:
        """Write the rows named in `changes` and the facts, in one transaction; all of it is kept, or none."""
        execute = self._database.executemany
        self._database.execute("BEGIN IMMEDIATE")
        try:
            present = [(ino, pack_inode(table.inodes[ino])) for ino in changes.inodes if ino in table.inodes]
            execute("INSERT OR REPLACE INTO inodes VALUES (?, ?)", present)
            execute("DELETE FROM inodes WHERE ino = ?", [(i,) for i in changes.inodes if i not in table.inodes])
            self._save_names(table, changes)
            chunks = [(ino, index, table.directory.servers(ino, index)) for ino, index in changes.chunks]
            placed = [(ino, index, msgpack.packb(servers)) for ino, index, servers in chunks if servers]
            execute("INSERT OR REPLACE INTO chunks VALUES (?, ?, ?)", placed)
            execute("DELETE FROM chunks WHERE ino = ? AND idx = ?", [chunk[:2] for chunk in chunks if not chunk[2]])
            self._write_facts({**facts, "next_ino": table.next_ino})
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite rolls back by itself when the disk is full
                self._database.execute("ROLLBACK")
            raise

    def _save_names(self, table: Table, changes: Changes) -> None:
        """Names keep the order in which they were made: position counts up for ever."""
        made, gone = [], []
        position = self.fact("position", 0)
        for parent, name in changes.names:
            directory = table.inodes.get(parent)
            ino = directory.entries.get(name) if directory and directory.entries else None
            if ino is None:
                gone.append((parent, name))
            else:
                position += 1
                made.append((parent, position, name, ino))
        self._database.executemany("INSERT OR REPLACE INTO names VALUES (?, ?, ?, ?)", made)
        self._database.executemany("DELETE FROM names WHERE parent = ? AND name = ?", gone)
        if made:
            self._write_facts({"position": position})

    def _write_facts(self, facts: dict[str, Any]) -> None:
        rows = [(name, msgpack.packb(value)) for name, value in facts.items()]
        self._database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)

    def close(self) -> None:
        """Close the database; what was saved stays."""
        self._database.close()
