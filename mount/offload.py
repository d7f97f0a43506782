"""`user.offload`: a job is submitted, looked at and cancelled by an extended attribute of the file that it works on."""

from __future__ import annotations

import errno
import json
import logging
import time
from typing import Any

from gridfs.config import XATTR_SIZE_MAX_BYTES
from gridfs.errors import FilesystemError
from gridfs.offload import access
from gridfs.offload.client import JobsClient, Status
from gridfs.offload.job import Output, Request, Submitter
from gridfs.offload.request import parse
from gridfs.vfs.filesystem import Filesystem
from mount.recent import Recent, Refusal

log = logging.getLogger(__name__)

PAIR_S = 0.1
"""getxattr(2) is called twice, for the size and for the value: the second call within this time gets what the first did."""
OWN_S = 10.0
"""For so long the process that has submitted a job is told of that one, whoever submits others meanwhile."""
_BUSY = {errno.EAGAIN: errno.EBUSY}
_REQUEST_SHOWN = 1000


class Offload:
    """The jobs of one mount's files. Owned by the trio thread of the filesystem.

    Who it is that asks is a `Submitter`, and the number of the process; 0 for one that cannot be told from others.
    """

    def __init__(self, filesystem: Filesystem, jobs: JobsClient) -> None:
        self._filesystem, self._jobs = filesystem, jobs
        self._told = Recent[bytes](PAIR_S)
        self._own = Recent[int](OWN_S)
        self.errors = Recent[Refusal]()
        """User -> why the last thing that was asked for here was refused."""

    async def set(self, ino: int, value: bytes, submitter: Submitter, pid: int) -> None:
        """Submit the job that `value` asks for.

        Raises EINVAL, EACCES, ENOENT and as `access.resolve_output`; EPERM and EIO as `JobsClient.submit`, and for its EAGAIN
        EBUSY: of EAGAIN the kernel would make EOPNOTSUPP (__vfs_setxattr_noperm in linux/fs/xattr.c).
        """
        try:
            job = await self._submit(ino, parse(value), submitter)
        except FilesystemError as error:
            self.errors.put(submitter.uid, Refusal(error.strerror or "", time.time_ns()))
            log.info("user %d submits no job on inode %d: %s", submitter.uid, ino, error.strerror)
            raise FilesystemError(_BUSY.get(error.errno or 0, error.errno or errno.EIO), error.strerror or "") from error
        self._told.take((pid, ino))
        if pid:
            self._own.put((pid, submitter.uid, ino), job)

    async def _submit(self, ino: int, request: Request, submitter: Submitter) -> int:
        await self._filesystem.ready()
        if not self._filesystem.table.inode(ino).is_regular:
            raise FilesystemError(errno.EINVAL, "jobs work on regular files")
        parent, name = await self._filesystem.places.find(self._filesystem.table, ino)
        table, output = self._filesystem.table, None
        if not access.may(table, ino, submitter, access.READ):
            raise FilesystemError(errno.EACCES, f"user {submitter.uid} may not read the file")
        if request.output:
            output = access.resolve_output(table, parent, request.output, submitter, overwrite=request.overwrite)
            _refuse_self(output, parent, name)
        submit = self._jobs.submit
        shown = name.decode(errors="backslashreplace")
        return await self._filesystem.data.snapshot(ino, shown, lambda source: submit(request, submitter, source, output))

    async def get(self, ino: int, uid: int, pid: int) -> bytes:
        """The status of the newest job on the file, as JSON. Raises ENODATA where `uid` can see none, EIO."""
        answer = self._told.take((pid, ino)) if pid else None
        if answer is None:
            answer = shortened(await self._status(ino, uid, pid))
            self._told.put((pid, ino), answer)
        return answer

    async def _status(self, ino: int, uid: int, pid: int) -> Status:
        own = self._own.get((pid, uid, ino))
        status = await (self._jobs.newest(ino, uid) if own is None else self._jobs.status(own, uid))
        if status is None:
            raise FilesystemError(errno.ENODATA)
        return status

    async def remove(self, ino: int, uid: int, pid: int) -> None:
        """Cancel the newest job on the file. Raises ENODATA where `uid` has none that goes on, EIO."""
        if not await self._jobs.cancel_newest(ino, uid):
            raise FilesystemError(errno.ENODATA)
        self._told.take((pid, ino))


def _refuse_self(output: Output, parent: int, name: bytes) -> None:
    if (output.parent, output.name) == (parent, name):
        raise FilesystemError(errno.EINVAL, "output: a job does not replace the file that it reads")


def shortened(status: Status) -> bytes:
    """The status as JSON that fits an extended attribute; a long result or request is left to `.gridfs/jobs`."""
    answer = json.dumps(status).encode()
    for key, value in (("result", None), ("request", str(status.get("request"))[:_REQUEST_SHOWN]), ("decision", "")):
        if len(answer) > XATTR_SIZE_MAX_BYTES:
            shorter: dict[str, Any] = {**status, key: value}
            status, answer = shorter, json.dumps(shorter).encode()
    return answer
