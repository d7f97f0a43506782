"""Bytes sent through a program of the node, in at its standard input and out of its standard output."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator, Sequence
from subprocess import PIPE

_PIECE_BYTES = 1 << 18
_ERROR_MAX_BYTES = 500


def through(command: Sequence[str], run: Iterator[memoryview]) -> Iterator[bytes]:
    """What the program makes of the run. Raises ValueError with a sentence if it is not installed, or fails.

    It ends when this generator is closed. Both pipes are looked after in turn, so that neither end waits for the other.
    """
    with open(os.memfd_create("errors"), "w+b") as errors:
        environment = {**os.environ, "LC_ALL": "C"}
        try:
            program = subprocess.Popen(command, bufsize=0, stdin=PIPE, stdout=PIPE, stderr=errors, env=environment)
        except FileNotFoundError:
            raise ValueError(f"{command[0]} is not installed on this node") from None
        with program:
            try:
                yield from _pumped(program, run)
                program.wait()
            finally:
                program.kill()
        if program.returncode:
            errors.seek(0)
            said = errors.read(_ERROR_MAX_BYTES).decode(errors="backslashreplace").strip()
            raise ValueError(f"{command[0]} failed: {said or f'exit status {program.returncode}'}")


def _pumped(program: subprocess.Popen[bytes], run: Iterator[memoryview]) -> Iterator[bytes]:
    assert program.stdin
    assert program.stdout
    into, out_of = program.stdin.fileno(), program.stdout.fileno()
    os.set_blocking(into, False)
    poll = select.poll()
    poll.register(out_of, select.POLLIN)
    poll.register(into, select.POLLOUT)
    view: memoryview | None = None
    while True:
        for ready, _ in poll.poll():
            if ready == out_of:
                piece = os.read(out_of, _PIECE_BYTES)
                if not piece:
                    return
                yield piece
                continue
            view = view or next(filter(None, run), None)
            try:
                view = view and view[os.write(into, view[:_PIECE_BYTES]) :]
            except BrokenPipeError:
                view = None  # the program wants no more, which may be an error: its exit status says so
            if view is None:
                poll.unregister(into)
                program.stdin.close()
