"""A job: what was asked for, by whom, of which bytes, and what has become of it.

Everything here is frozen, and packs to and from what msgpack carries: it crosses from the mount to the scheduler, from there to
the nodes, and into the store of jobs.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from gridfs.config import CHUNK_SIZE_BYTES, GIB, MIB

Kind = Literal["function", "python", "command"]
State = Literal["queued", "running", "done", "failed", "cancelled"]
ENDED: frozenset[State] = frozenset({"done", "failed", "cancelled"})

TIMEOUT_S = 3600.0
MEMORY_BYTES = GIB
"""What a job gets when it does not say."""
KEPT_OUTPUT_BYTES = MIB
"""So much of stdout and of stderr is kept with the job, each; of a result as much."""


@dataclass(frozen=True, slots=True)
class Request:
    """What somebody wants done with a file."""

    kind: Kind
    name: str
    """The built-in's name, "module:function", or the first word of a command (its first line, with a shell)."""
    arguments: tuple[Any, ...] = ()
    """What follows the name; of a command all its words, the first one included; of one with a shell its text alone."""
    output: str = ""
    """Where the result goes: relative to the file's directory, or from "/", the filesystem's root, on; empty if it is kept."""
    overwrite: bool = False
    """Whether the output may replace a file."""
    shell: bool = False
    timeout_s: float = TIMEOUT_S
    memory_bytes: int = MEMORY_BYTES
    idempotent: bool = False
    """Whether it may be run again when its node dies. Built-in functions always may."""
    split: bool = False
    """Of a Python function that is a map and reduce pair: each node works on its own chunks, instead of one node on all."""

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Request:
        """The inverse of `dataclasses.asdict`."""
        return Request(**{**packed, "arguments": tuple(packed["arguments"])})


@dataclass(frozen=True, slots=True)
class Submitter:
    """Who asked, as the kernel knows them."""

    uid: int
    gid: int
    groups: tuple[int, ...] = ()
    """Supplementary groups."""

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Submitter:
        """The inverse of `dataclasses.asdict`."""
        return Submitter(packed["uid"], packed["gid"], tuple(packed["groups"]))


@dataclass(frozen=True, slots=True)
class Input:
    """The file as it was when the job was submitted: its bytes are held by the chunk servers under the job's id."""

    ino: int
    name: str
    """Its name then, for people."""
    size: int
    chunks: dict[int, tuple[str, ...]] = field(default_factory=dict)
    """Chunk index -> the servers that hold it. One that is missing is a hole."""

    @property
    def chunk_count(self) -> int:
        """Of the whole file, holes included."""
        return -(-self.size // CHUNK_SIZE_BYTES)

    def length(self, index: int) -> int:
        """How many bytes of the file lie in that chunk."""
        return max(0, min(CHUNK_SIZE_BYTES, self.size - index * CHUNK_SIZE_BYTES))

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Input:
        """The inverse of `dataclasses.asdict`."""
        chunks = {int(index): tuple(servers) for index, servers in packed["chunks"].items()}
        return Input(packed["ino"], packed["name"], packed["size"], chunks)


@dataclass(frozen=True, slots=True)
class Output:
    """Where the result goes, found and allowed when the job was submitted."""

    parent: int
    """The directory's inode."""
    name: bytes
    path: str
    """For people: from the filesystem's root."""
    overwrite: bool = False
    mode: int = 0o644


@dataclass(frozen=True, slots=True)
class Job:
    """One job. Times in nanoseconds since the epoch, 0 for what has not happened; sizes in bytes."""

    id: int
    request: Request
    submitter: Submitter
    input: Input
    output: Output | None
    submitted_ns: int
    state: State = "queued"
    started_ns: int = 0
    ended_ns: int = 0
    progress_bytes: int = 0
    """Of the input, taken in by the job."""
    nodes: tuple[str, ...] = ()
    """The hosts it runs on, or ran."""
    local_bytes: int = 0
    network_bytes: int = 0
    """Read on the node that has them, and fetched from another one."""
    attempts: int = 0
    exit_code: int | None = None
    error: str = ""
    decision: str = ""
    """Why these nodes, and what moving the bytes instead would have cost."""
    result: Any = None
    """What JSON can carry; None while there is none, or when it went to the output."""
    stdout: bytes = b""
    stderr: bytes = b""
    output_bytes: int = 0

    @property
    def has_ended(self) -> bool:
        """True once nothing more will come of it."""
        return self.state in ENDED

    def with_changes(self, **changes: Any) -> Job:
        """The job, with these fields changed."""
        return replace(self, **changes)

    def pack(self) -> dict[str, Any]:
        """The job as plain dicts, lists and values."""
        return asdict(self)

    @staticmethod
    def unpack(packed: dict[str, Any]) -> Job:
        """The inverse of `pack`."""
        output = packed["output"]
        changed = {
            "request": Request.unpack(packed["request"]),
            "submitter": Submitter.unpack(packed["submitter"]),
            "input": Input.unpack(packed["input"]),
            "output": None if output is None else Output(**output),
            "nodes": tuple(packed["nodes"]),
        }
        return Job(**{**packed, **changed})

    def status(self) -> dict[str, Any]:
        """What people are told, as JSON carries it; without stdout and stderr."""
        return {
            "id": self.id,
            "state": self.state,
            "file": self.input.name,
            "kind": self.request.kind,
            "request": " ".join([self.request.name, *map(str, self.request.arguments[self.request.kind == "command" :])]),
            "uid": self.submitter.uid,
            "size": self.input.size,
            "progress": self.progress_bytes,
            "nodes": list(self.nodes),
            "bytes_local": self.local_bytes,
            "bytes_network": self.network_bytes,
            "submitted": self.submitted_ns / 1e9,
            "started": self.started_ns / 1e9 or None,
            "ended": self.ended_ns / 1e9 or None,
            "attempts": self.attempts,
            "exit_code": self.exit_code,
            "error": self.error,
            "decision": self.decision,
            "result": self.result,
            "output": self.output.path if self.output else None,
            "output_bytes": self.output_bytes,
        }

    def status_json(self) -> bytes:
        """`status` as text."""
        return json.dumps(self.status()).encode()
