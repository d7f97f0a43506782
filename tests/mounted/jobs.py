"""Jobs of the testbed, as programs ask for them and read of them; and who may have which."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any

from gridfs.offload.job import ENDED
from tests.mounted.local_filesystem import LocalFilesystem
from tests.suite.syscalls import eventually, fails
from tests.suite.testbed import STATE, Testbed

ATTRIBUTE = "user.offload"

Request = bytes | dict[str, Any]


def submitted(file: Path, request: Request) -> int:
    """The number of the job that is submitted. Raises OSError."""
    os.setxattr(file, ATTRIBUTE, request if isinstance(request, bytes) else json.dumps(request).encode())
    job: int = json.loads(os.getxattr(file, ATTRIBUTE))["id"]
    return job


def left(bed: Testbed, job: int, what: str) -> bytes:
    """What the job has left: status, result, stdout or stderr. Raises OSError."""
    return (bed.mountpoint / ".gridfs/jobs" / str(job) / what).read_bytes()


def status(bed: Testbed, job: int) -> dict[str, Any]:
    """The job's status; empty while the scheduler is being started again."""
    try:
        found: dict[str, Any] = json.loads(left(bed, job, "status"))
    except OSError as error:
        assert error.errno == errno.EIO, error
        return {}
    return found


def finished(bed: Testbed, job: int, patience_s: float = 40.0) -> dict[str, Any]:
    """Its status, once it has ended."""
    told: dict[str, Any] = {}

    def has_ended() -> bool:
        told.update(status(bed, job))
        return told.get("state") in ENDED

    eventually(has_ended, f"job {job} ends", patience_s)
    return told


def runs_on(bed: Testbed, job: int) -> str:
    """The host on which it runs, once it does."""
    eventually(lambda: status(bed, job).get("state") == "running", f"job {job} runs")
    return str(status(bed, job)["nodes"][0])


def local(bed: Testbed) -> LocalFilesystem:
    """The testbed, as a filesystem whose actors can be ended."""
    return LocalFilesystem(Path(json.loads(STATE.read_text())["home"]), bed.mountpoint)


class Settings:
    """`offload.toml` of the testbed. That it counts shows in the longest time that a job may take, which a refusal names.

    For that root has to be one of its users.
    """

    _DEFAULT_MARK = 86400

    def __init__(self, bed: Testbed, probe: Path) -> None:
        """`probe`: a file of whatever content."""
        self._path, self._probe = local(bed).home / "offload.toml", probe
        self._last_error = bed.mountpoint / ".gridfs/jobs/last-error"
        self._mark, self._text = self._DEFAULT_MARK, ""

    def allow(self, text: str) -> None:
        """Have that file, and wait until it counts."""
        if text != self._text:
            self._text, self._mark = text, self._mark - 1
            self._path.write_text(f"[offload]\ntimeout_max_s = {self._mark}\n{text}")
            self._until(self._mark)

    def remove(self) -> None:
        """Have no file, and wait until that counts."""
        self._path.unlink(missing_ok=True)
        self._text = ""
        self._until(self._DEFAULT_MARK)

    def _until(self, mark: int) -> None:
        def counts() -> bool:
            with fails(errno.EINVAL):
                submitted(self._probe, {"function": "wc", "timeout_s": 1e9})
            return f"at most {mark}\n" in self._last_error.read_text()

        eventually(counts, "the settings count")
