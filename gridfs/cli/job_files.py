"""The jobs of a mount, through the files that tell of them: plain system calls, so anybody may who may use the mount."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from gridfs.errors import GridfsError

ENDED = ("done", "failed", "cancelled")
ATTRIBUTE = "user.offload"
SILENCE_S = 30.0
"""So long a job that is waited for may not be heard of: the scheduler is back sooner, if Ray can start it again."""
_POLL_FIRST_S, _POLL_S = 0.02, 0.5
_KIND = "fuse.gridfs"

Status = dict[str, Any]


class JobFiles:
    """`.gridfs/jobs` of one mount. Every method raises GridfsError with a sentence."""

    def __init__(self, mountpoint: str) -> None:
        self.mountpoint = mountpoint
        self._directory = os.path.join(mountpoint, ".gridfs", "jobs")

    @staticmethod
    def of_file(path: str) -> JobFiles:
        """Those of the mount that the file is on."""
        _stat(path)
        point = os.path.realpath(path)
        while not os.path.ismount(point):
            point = os.path.dirname(point)
        found = JobFiles(point)
        if not os.path.isdir(found._directory):
            raise GridfsError(f"{path} is not in a gridfs filesystem: gridfs status lists the mounts")
        return found

    @staticmethod
    def of_machine(mountpoint: str | None) -> JobFiles:
        """Those of the mount at `mountpoint`, else of the one that we are in, else of the only one there is."""
        if mountpoint is not None:
            return JobFiles.of_file(mountpoint)
        from gridfs.cli import mounts

        points = [point for point, kind in mounts.mountpoints().items() if kind == _KIND]
        here = [point for point in points if f"{os.getcwd()}/".startswith(f"{point}/")]
        if not points:
            raise GridfsError("gridfs is not mounted on this machine: run gridfs mount /mnt/gridmem")
        if len(here or points) > 1:
            raise GridfsError(f"there are several mounts, {', '.join(sorted(points))}: name one with --mountpoint")
        return JobFiles((here or points)[0])

    def submit(self, path: str, request: dict[str, Any]) -> int:
        """Have the job done on the file; returns its id."""
        began_ns = time.time_ns()
        try:
            os.setxattr(path, ATTRIBUTE, json.dumps(request).encode())
            job: int = json.loads(os.getxattr(path, ATTRIBUTE))["id"]
        except OSError as error:
            raise GridfsError(f"{path}: {self._why(began_ns) or _by_the_kernel(error)}") from error
        return job

    def ids(self) -> list[int]:
        """The jobs that we may see, newest first."""
        with _told("the jobs"):
            return sorted((int(name) for name in os.listdir(self._directory) if name.isdigit()), reverse=True)

    def status(self, job: int) -> Status:
        """What is known of a job."""
        status: Status = json.loads(self.read(job, "status"))
        return status

    def read(self, job: int, what: str) -> bytes:
        """What a job has left: status, result, stdout or stderr."""
        with _told(f"job {job}"), open(os.path.join(self._directory, str(job), what), "rb") as file:
            return file.read()

    def cancel(self, job: int) -> bool:
        """End a job; False if it has ended."""
        with _told(f"job {job}"):
            try:
                os.removexattr(os.path.join(self._directory, str(job)), ATTRIBUTE)
            except OSError as error:
                if error.errno != errno.ENODATA:
                    raise
                return False
        return True

    def wait(self, job: int, advance: Callable[[int, int], None]) -> Status:
        """The status of a job that has ended; `advance` hears how many bytes it has taken in, of how many.

        A scheduler that is being started again is waited for, SILENCE_S at most.
        """
        pause_s, heard_s = _POLL_FIRST_S, time.monotonic()
        while True:
            try:
                status = self.status(job)
            except Silence:
                if time.monotonic() - heard_s > SILENCE_S:
                    raise
            else:
                heard_s = time.monotonic()
                advance(status["progress"], status["size"])
                if status["state"] in ENDED:
                    return status
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _POLL_S)

    def _why(self, began_ns: int) -> str:
        """What was refused since then, by the mount and not by the kernel."""
        try:
            with open(os.path.join(self._directory, "last-error"), errors="replace") as file:
                return file.read().strip() if os.fstat(file.fileno()).st_mtime_ns >= began_ns else ""
        except OSError:
            return ""


class Absent(GridfsError):
    """There is no such job, or none that we may see."""


class Silence(GridfsError):
    """The scheduler has not answered."""


@contextmanager
def _told(what: str) -> Iterator[None]:
    """Errors of the system become sentences."""
    try:
        yield
    except FileNotFoundError as error:
        raise Absent(f"there is no {what} that you may see: gridfs jobs lists them") from error
    except PermissionError as error:
        raise GridfsError(f"{what} is another user's") from error
    except OSError as error:
        if error.errno == errno.EIO:
            raise Silence(f"the scheduler does not answer, so nothing is known of {what}: gridfs status tells more") from error
        raise GridfsError(f"{error.filename}: {error.strerror}") from error


def _by_the_kernel(error: OSError) -> str:
    """What there is to say of a submission that never came to the mount."""
    needed = ", and a job needs the right to write its file" if error.errno in (errno.EACCES, errno.EPERM) else ""
    return f"{error.strerror}{needed}"


def _stat(path: str) -> None:
    try:
        os.stat(path)
    except OSError as error:
        raise GridfsError(f"{path}: {error.strerror}") from error
