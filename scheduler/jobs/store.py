"""Jobs on disk: SQLite in WAL mode, one row a job. What the scheduler has told anybody of a job is here before.

With `synchronous=NORMAL` a killed process loses nothing; a power failure may lose the newest changes, and with them the
chunks, which are in memory.
"""

from __future__ import annotations

import errno
import json
import sqlite3
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any, NamedTuple

import msgpack

from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload.job import Input, Job, Output, Request, Submitter

FORMAT = 1
"""Raised whenever rows change their meaning; a store of another format is refused."""

_SUBMISSION = ("id", "request", "submitter", "input", "output", "submitted_ns")
_OUTPUTS = ("result", "stdout", "stderr")
_STATE = tuple(field.name for field in fields(Job) if field.name not in (*_SUBMISSION, *_OUTPUTS))
"""What changes while the job lives; what was submitted is written once."""

_SCHEMA = """
CREATE TABLE IF NOT EXISTS facts(name TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS jobs(id INTEGER PRIMARY KEY, uid INTEGER NOT NULL, ino INTEGER NOT NULL, ended_ns INTEGER NOT NULL,
                                submission BLOB NOT NULL, state BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS places(id INTEGER PRIMARY KEY, chunks BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS outputs(id INTEGER PRIMARY KEY, result BLOB NOT NULL, stdout BLOB NOT NULL, stderr BLOB NOT NULL);
CREATE INDEX IF NOT EXISTS jobs_of_file ON jobs(ino, id);
CREATE INDEX IF NOT EXISTS ended ON jobs(ended_ns, id);
"""
_TABLES = ("jobs", "places", "outputs")
"""Where a job's chunks are is needed until it ends; what it leaves is there from then on."""


class Summary(NamedTuple):
    """What is known of an ended job without reading it."""

    id: int
    ended_ns: int
    size_bytes: int
    """What it takes here, about."""


class JobStore:
    """All jobs of one filesystem. Used by one thread, the one that made it.

    Every change is kept when the call returns. One that cannot be kept raises EIO with a sentence, and nothing has changed.
    """

    def __init__(self, path: Path, filesystem: str) -> None:
        """Open or create the store. Jobs of another filesystem than this one are forgotten, their numbers are not used again.

        Raises GridfsError when it is of another format or no store at all.
        """
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            self._database = sqlite3.connect(path, isolation_level=None)
            path.chmod(0o600)
            self._database.execute("PRAGMA journal_mode=WAL")
            self._database.execute("PRAGMA synchronous=NORMAL")
            self._database.executescript(_SCHEMA)
            found = self.fact("format", FORMAT)
            known = self.fact("filesystem", filesystem)
        except (sqlite3.DatabaseError, ValueError) as error:
            raise GridfsError(f"{path} is not a store of jobs ({error}): move it away") from error
        if found != FORMAT:
            raise GridfsError(f"{path} is of format {found}, this gridfs reads {FORMAT}: use the version that wrote it")
        with self._transaction():
            if known != filesystem:
                for table in _TABLES:
                    self._database.execute(f"DELETE FROM {table}")  # noqa: S608 - ours
            self._write_facts({"format": FORMAT, "filesystem": filesystem})

    def fact(self, name: str, default: Any = None) -> Any:
        """A value kept with `set_fact`."""
        row = self._database.execute("SELECT value FROM facts WHERE name = ?", (name,)).fetchone()
        return default if row is None else msgpack.unpackb(row[0])

    def set_fact(self, name: str, value: Any) -> None:
        """Keep a value."""
        with self._transaction():
            self._write_facts({name: value})

    def take_id(self) -> int:
        """A number that no job has had, nor will have but the one that it is taken for."""
        with self._transaction():
            taken = int(self.fact("last_id", 0)) + 1
            self._write_facts({"last_id": taken})
        return taken

    def save(self, job: Job) -> None:
        """Write the job as it is. Of one that has ended the places of its chunks are forgotten."""
        execute = self._database.execute
        state = msgpack.packb({name: getattr(job, name) for name in _STATE})
        with self._transaction():
            if job.state == "running":  # what was submitted may be long, and has not changed
                execute("UPDATE jobs SET state = ?, ended_ns = 0 WHERE id = ?", (state, job.id))
                return
            row = (job.id, job.submitter.uid, job.input.ino, job.ended_ns, _pack_submission(job), state)
            execute("INSERT OR REPLACE INTO jobs VALUES (?, ?, ?, ?, ?, ?)", row)
            if job.has_ended:
                result = b"" if job.result is None else json.dumps(job.result).encode()
                execute("INSERT OR REPLACE INTO outputs VALUES (?, ?, ?, ?)", (job.id, result, job.stdout, job.stderr))
                execute("DELETE FROM places WHERE id = ?", (job.id,))
            else:
                execute("INSERT OR REPLACE INTO places VALUES (?, ?)", (job.id, msgpack.packb(job.input.chunks)))

    def load(self, job: int) -> Job | None:
        """The job, without the places of its chunks; None if there is none of that number."""
        row = self._database.execute("SELECT submission, state FROM jobs WHERE id = ?", (job,)).fetchone()
        if row is None:
            return None
        result, stdout, stderr = self._outputs(job)
        return replace(_unpack(*row), result=json.loads(result) if result else None, stdout=stdout, stderr=stderr)

    def _outputs(self, job: int) -> tuple[bytes, bytes, bytes]:
        row = self._database.execute("SELECT result, stdout, stderr FROM outputs WHERE id = ?", (job,)).fetchone()
        return row or (b"", b"", b"")

    def living(self) -> list[Job]:
        """The jobs that have not ended, oldest first."""
        query = (
            "SELECT submission, state, chunks FROM jobs JOIN places ON jobs.id = places.id WHERE ended_ns = 0 ORDER BY jobs.id"
        )
        return [_unpack(*row) for row in self._database.execute(query)]

    def newest(self, ino: int, uid: int | None) -> int | None:
        """The number of the newest job on that file, of that user's or anybody's (None)."""
        query = "SELECT id FROM jobs WHERE ino = ? AND (? IS NULL OR uid = ?) ORDER BY id DESC LIMIT 1"
        row = self._database.execute(query, (ino, uid, uid)).fetchone()
        return None if row is None else int(row[0])

    def listed(self, uid: int | None, count_max: int) -> Iterator[Job]:
        """The newest jobs of that user or of all (None), newest first, without result, stdout and stderr."""
        query = "SELECT submission, state FROM jobs WHERE (? IS NULL OR uid = ?) ORDER BY id DESC LIMIT ?"
        return (_unpack(*row) for row in self._database.execute(query, (uid, uid, count_max)))

    def ended(self) -> list[Summary]:
        """All jobs that have ended, in the order in which they did."""
        size = " + ".join(f"length({column})" for column in ("submission", "state", "result", "stdout", "stderr"))
        query = f"""SELECT jobs.id, ended_ns, {size} FROM jobs JOIN outputs ON jobs.id = outputs.id
                    WHERE ended_ns > 0 ORDER BY ended_ns, jobs.id"""  # noqa: S608 - ours
        return [Summary(*row) for row in self._database.execute(query)]

    def remove(self, jobs: list[int]) -> None:
        """Forget jobs."""
        with self._transaction():
            for table in _TABLES:
                self._database.executemany(f"DELETE FROM {table} WHERE id = ?", [(job,) for job in jobs])  # noqa: S608 - ours

    def close(self) -> None:
        """Close the database; what was saved stays."""
        self._database.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        try:
            with self._database:
                self._database.execute("BEGIN IMMEDIATE")
                yield
        except sqlite3.Error as error:
            raise FilesystemError(errno.EIO, f"the store of jobs cannot be written: {error}") from error

    def _write_facts(self, facts: dict[str, Any]) -> None:
        rows = [(name, msgpack.packb(value)) for name, value in facts.items()]
        self._database.executemany("INSERT OR REPLACE INTO facts VALUES (?, ?)", rows)


def _pack_submission(job: Job) -> bytes:
    parts: dict[str, Any] = {name: getattr(job, name) for name in ("id", "submitted_ns")}
    source = {name: getattr(job.input, name) for name in ("ino", "name", "size")}
    parts |= {"request": asdict(job.request), "submitter": asdict(job.submitter), "input": source}
    parts["output"] = None if job.output is None else asdict(job.output)
    packed: bytes = msgpack.packb(parts)
    return packed


def _unpack(submission: bytes, state: bytes, chunks: bytes | None = None) -> Job:
    packed = msgpack.unpackb(submission)
    places = {} if chunks is None else msgpack.unpackb(chunks, strict_map_key=False)
    changed = {
        "request": Request.unpack(packed["request"]),
        "submitter": Submitter.unpack(packed["submitter"]),
        "input": Input.unpack({**packed["input"], "chunks": places}),
        "output": None if packed["output"] is None else Output(**packed["output"]),
    }
    told = msgpack.unpackb(state)
    return Job(**{**packed, **changed, **told, "nodes": tuple(told["nodes"])})
