"""Jobs as tests make them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from gridfs.config import CHUNK_SIZE_BYTES, GIB
from gridfs.offload.job import Input, Job, Output, Request, Submitter
from scheduler.jobs.policy import NodeView
from scheduler.pressure import Level

ALICE, BOB = 1001, 1002


def request(name: str = "sha256", kind: Any = "function", **fields: Any) -> Request:
    """A request; a command has its name as its only word."""
    return Request(kind, name, **{"arguments": (name,) if kind == "command" else (), **fields})


def source(*servers: Sequence[str] | None, ino: int = 7, size: int | None = None) -> Input:
    """A file of whole chunks, each on those servers; None is a hole."""
    chunks = {index: tuple(having) for index, having in enumerate(servers) if having is not None}
    return Input(ino, "file.log", len(servers) * CHUNK_SIZE_BYTES if size is None else size, chunks)


def job(number: int = 1, uid: int = ALICE, file: Input | None = None, **fields: Any) -> Job:
    """A job that waits."""
    asked = fields.pop("request", request())
    output: Output | None = fields.pop("output", None)
    return Job(number, asked, Submitter(uid, uid, (uid,)), source(["a-1"]) if file is None else file, output, 1000, **fields)


def node(host: str, level: Level = Level.CALM, available: int = 8 * GIB, **fields: Any) -> NodeView:
    """A worker whose chunk server is HOST-1."""
    return NodeView(host, f"{host}-1", level, available, **{"total_bytes": 10 * GIB, **fields})


def told(**fields: Any) -> Mapping[str, Any]:
    """What a runner gives."""
    names: dict[str, Any] = {"partials": [], "result": None, "stdout": b"", "stderr": b"", "exit_code": None}
    counts = {"local_bytes": 0, "network_bytes": 0, "output_bytes": 0}
    return {**names, **counts, "error": "", "failure": "", **fields}
