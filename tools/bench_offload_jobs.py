"""Jobs as a program asks for them: through extended attributes, with plain system calls."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from bench_memory import mountpoint_of

ATTRIBUTE = "user.offload"
ENDED = ("done", "failed", "cancelled")
JOB_TIMEOUT_S = 600.0
_POLL_S = 0.002
_DIGESTS = re.compile(r"[0-9a-f]+")


@dataclass(frozen=True, slots=True)
class SubmittedJob:
    """A job of this process."""

    id: int
    file: Path

    def wait(self) -> dict[str, Any]:
        """Its last status. Raises ClickException when it has not become done."""
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while (status := newest(self.file))["state"] not in ENDED:
            if time.monotonic() > deadline:
                raise click.ClickException(f"job {self.id} has not ended within {JOB_TIMEOUT_S:.0f} s")
            time.sleep(_POLL_S)
        if status["id"] != self.id:
            raise click.ClickException(f"somebody else runs jobs on {self.file}")
        if status["state"] != "done":
            raise click.ClickException(f"job {self.id} ({status['request']}) {status['state']}: {status['error']}")
        return status


def submit(file: Path, request: str) -> SubmittedJob:
    """Ask for a job on `file`. Raises OSError as setxattr(2)."""
    os.setxattr(file, ATTRIBUTE, request.encode())
    return SubmittedJob(newest(file)["id"], file)


def submit_and_wait(file: Path, request: str) -> dict[str, Any]:
    """The last status of a job on `file`."""
    return submit(file, request).wait()


def newest(file: Path) -> dict[str, Any]:
    """The status of this process's newest job on `file`."""
    status: dict[str, Any] = json.loads(os.getxattr(file, ATTRIBUTE))
    return status


def left(file: Path, job: int, what: str) -> str:
    """What the job has left: its status, result, stdout or stderr."""
    return (mountpoint_of(file.parent) / ".gridfs/jobs" / str(job) / what).read_text()


def check_alike(file: Path, status: dict[str, Any], printed: str, output: str) -> None:
    """Raise ClickException unless job and program say the same: by the numbers they print, or what is in their outputs."""
    if output:
        digests = [_digest(file.with_name(name)) for name in (output, f"{output}.program")]
        alike = digests[0] == digests[1]
    else:
        said = json.dumps(status["result"]) + left(file, status["id"], "stdout")
        alike = set(_DIGESTS.findall(printed)) <= set(_DIGESTS.findall(said))
    if not alike:
        raise click.ClickException(f"job {status['id']} ({status['request']}) and the program do not agree")


def _digest(path: Path) -> str:
    line = 'zstd -q -dc "$1" | sha256sum'
    return subprocess.run(["sh", "-c", line, "sh", str(path)], check=True, capture_output=True, text=True).stdout
