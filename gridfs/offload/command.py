"""Commands: a program that is fed the file on its standard input, or told a path that has the file's content."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterable
from typing import NoReturn

from gridfs.errors import GridfsError
from gridfs.offload import sandbox
from gridfs.offload.job import Job, Request, Submitter
from gridfs.offload.pipes import GIVEN, Buffer, write_all
from gridfs.offload.process import Child, Limits, NotStarted

PLACEHOLDER = "{}"
PATH = f"/proc/self/fd/{GIVEN}"
"""What stands in a command for PLACEHOLDER. A program that is started by the command finds the same there."""
_SHELL = "/bin/sh"
_NOT_FOUND, _NOT_RUN = 127, 126
"""Exit codes, as of a shell."""


def needs_path(request: Request) -> bool:
    """Whether the command names the file, instead of reading its standard input."""
    return any(PLACEHOLDER in str(word) for word in request.arguments)


def start(job: Job, pieces: Iterable[Buffer], spare_bytes: int) -> Child:
    """Start the command of `job`, with `pieces`, the file's content in order, on its standard input, or behind PATH.

    `Child.chunks` gives its standard output, `Child.wait` its end. What `pieces` raises, `wait` raises; or, when the command
    needs a path, this: then all of the content is copied first. That path can be read by the submitter, at any offset, and not
    be written. It takes as much memory of this node as the file is long: GridfsError if that is over `spare_bytes`. For the
    rest as `Child`.
    """
    request = job.request
    if not needs_path(request):
        return Child(_work(request), job.submitter, Limits.of(request, 0), job=job.id, feed=pieces, program=True)
    if job.input.size > spare_bytes:
        raise GridfsError(
            f"The command names the file by {PLACEHOLDER}, which takes {job.input.size} bytes of the node's memory, and"
            f" {spare_bytes} are to spare; let it read its standard input."
        )
    content = _copy(pieces, job.submitter)
    try:
        limits = Limits.of(request, job.input.size)
        return Child(_work(request), job.submitter, limits, job=job.id, program=True, given=content)
    finally:
        os.close(content)


def words(request: Request) -> list[str]:
    """The command as it is run: with a shell or without, and PATH in its place."""
    told = [str(word).replace(PLACEHOLDER, PATH) for word in request.arguments]
    return [_SHELL, "-c", *told] if request.shell else told


def _work(request: Request) -> Callable[[object], NoReturn]:
    """What replaces a child by the command."""
    told, memory_bytes = words(request), request.memory_bytes

    def work(_: object) -> NoReturn:
        path = _find(told[0])
        environment = dict(os.environ)
        sandbox.limit_data(memory_bytes)
        try:
            os.execve(path, told, environment)
        except OSError as error:
            raise NotStarted(f"{told[0]!r} cannot be run on this node: {error.strerror}", _NOT_RUN) from None

    return work


def _find(program: str) -> str:
    """Where the program is, as the submitter may run it."""
    if "/" in program:
        return program
    for directory in os.environ["PATH"].split(":"):
        path = f"{directory}/{program}"
        if os.path.isfile(path) and os.access(path, os.X_OK):
            return path
    raise NotStarted(f"there is no program {program!r} on this node", _NOT_FOUND)


def _copy(pieces: Iterable[Buffer], submitter: Submitter) -> int:
    """A descriptor of a file in memory with that content."""
    fd = os.memfd_create("input", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    try:
        for piece in pieces:
            write_all(fd, piece)
        os.fchown(fd, submitter.uid, submitter.gid)
        os.fchmod(fd, 0o400)
        fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_SEAL)
        os.lseek(fd, 0, os.SEEK_SET)
    except BaseException:
        os.close(fd)
        raise
    return fd
