"""`.gridfs` in the root of the mount, which no listing shows: files that tell of jobs.

    .gridfs/jobs/N/status, result, stdout, stderr     of the job N, for who has submitted it and for root
    .gridfs/jobs/last-error                           why the reader's last request was refused

Nothing of it is stored. Its inodes are in the upper half of the numbers, and say by themselves what they are: so nothing has
to be remembered of what the kernel has been told, and nothing forgotten.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from typing import NamedTuple, TypeVar

from gridfs.errors import FilesystemError
from gridfs.meta.inode import ROOT_INO
from gridfs.offload.access import CONTROL_NAME
from gridfs.offload.client import JobsClient, Status
from gridfs.vfs.attributes import Attributes
from mount.recent import Recent, Refusal

T = TypeVar("T")
FIRST = 1 << 63
"""Inode numbers, and numbers of handles, from here on are virtual."""
HANDLES_MAX = 128
"""Open files and directories of the tree; an open file keeps its content."""
_KIND_BITS = 4
_TOP, _JOBS, _LAST_ERROR, _JOB, *_ = range(1 << _KIND_BITS)
_FIXED = {(_TOP, b"jobs"): _JOBS, (_JOBS, b"last-error"): _LAST_ERROR}
_FILES = {b"status": 4, b"result": 5, b"stdout": 6, b"stderr": 7}
_WHAT = {kind: name.decode() for name, kind in _FILES.items()}
_PARENTS = {_JOBS: _TOP, _LAST_ERROR: _JOBS, _JOB: _JOBS, **dict.fromkeys(_WHAT, _JOB)}
_DIGITS_MAX = 18
_MODES = {_TOP: 0o555, _JOBS: 0o555, _JOB: 0o700, _LAST_ERROR: 0o444}
"""The submitter may write to a job's directory, as the kernel sees it, so that `setfattr -x` cancels the job; no name can."""
_FILE_MODE = 0o400
_DIRECTORIES = (_TOP, _JOBS, _JOB)


class Place(NamedTuple):
    """What a virtual inode is: one of the kinds, of that job if it is a job's."""

    kind: int
    job: int = 0

    @property
    def ino(self) -> int:
        """Its inode number."""
        return FIRST | self.job << _KIND_BITS | self.kind

    @property
    def parent(self) -> int:
        """The inode number of the directory that it is in."""
        if self.kind == _TOP:
            return ROOT_INO
        kind = _PARENTS[self.kind]
        return Place(kind, self.job if kind == _JOB else 0).ino


def place_of(ino: int) -> Place:
    """The inverse of `Place.ino`. Raises ENOENT for a number that is none."""
    place = Place(ino & (1 << _KIND_BITS) - 1, (ino ^ FIRST) >> _KIND_BITS)
    if place.kind not in (_TOP, *_PARENTS):
        raise FilesystemError(errno.ENOENT)
    return place


class Tree:
    """The virtual inodes, as user `uid` sees them: of jobs, their own; root sees all. Owned by one trio thread."""

    def __init__(self, jobs: JobsClient, errors: Recent[Refusal]) -> None:
        self._jobs, self._errors = jobs, errors
        self._numbers = FIRST
        self._files: dict[int, bytes] = {}
        self._directories: dict[int, list[tuple[bytes, Attributes]]] = {}

    # -- names and attributes ----------------------------------------------------------------------------------------

    async def lookup(self, parent: int, name: bytes, uid: int) -> Attributes:
        """What `name` leads to. Raises ENOENT, also for a job of somebody else; ENOTDIR; EIO without the scheduler."""
        if (parent, name) == (ROOT_INO, CONTROL_NAME):
            return await self.attributes(Place(_TOP).ino, uid)
        place = place_of(parent)
        if place.kind not in _DIRECTORIES:
            raise FilesystemError(errno.ENOTDIR)
        if place.kind == _JOB and name in _FILES:
            return await self.attributes(Place(_FILES[name], place.job).ino, uid)
        if place.kind == _JOBS and name.isdigit() and len(name) <= _DIGITS_MAX and not name.startswith(b"0"):
            return await self.attributes(Place(_JOB, int(name)).ino, uid)
        kind = _FIXED.get((place.kind, name))
        if kind is None:
            raise FilesystemError(errno.ENOENT)
        return await self.attributes(Place(kind).ino, uid)

    async def attributes(self, ino: int, uid: int) -> Attributes:
        """What stat(2) tells. Raises as `lookup`."""
        place = place_of(ino)
        if place.kind == _LAST_ERROR:
            return self._last_error(uid)
        return _attributes(place, await self._jobs.status(place.job, uid) if place.job else None)

    def _last_error(self, uid: int) -> Attributes:
        """Its times tell whether it is about the last thing that was asked: what the kernel refuses does not come here."""
        refusal = self._errors.get(uid)
        time_ns = refusal.time_ns if refusal else 0
        return _attributes(Place(_LAST_ERROR), None)._replace(atime_ns=time_ns, mtime_ns=time_ns, ctime_ns=time_ns)

    # -- directories -------------------------------------------------------------------------------------------------

    async def opendir(self, ino: int, uid: int) -> int:
        """A handle that lists what there is now. Raises ENOTDIR, ENFILE, and as `lookup`."""
        place = place_of(ino)
        entries = [(b".", await self.attributes(ino, uid)), (b"..", _attributes(Place(_TOP), None)._replace(ino=place.parent))]
        if place.kind == _TOP:
            entries.append((b"jobs", _attributes(Place(_JOBS), None)))
        elif place.kind == _JOBS:
            entries.append((b"last-error", self._last_error(uid)))
            jobs = await self._jobs.visible(uid)
            entries += [(b"%d" % job["id"], _attributes(Place(_JOB, job["id"]), job)) for job in jobs]
        elif place.kind == _JOB:
            job = await self._jobs.status(place.job, uid)
            entries += [(name, _attributes(Place(kind, place.job), job)) for name, kind in _FILES.items()]
        else:
            raise FilesystemError(errno.ENOTDIR)
        return self._add(self._directories, entries)

    def names(self, fh: int, start: int) -> Iterator[tuple[int, bytes, Attributes]]:
        """What the handle lists from position `start` on: (next position, name, attributes). Raises EBADF."""
        for position, (name, attributes) in enumerate(_found(self._directories, fh)[start:], start + 1):
            yield position, name, attributes

    # -- files -------------------------------------------------------------------------------------------------------

    async def open(self, ino: int, flags: int, uid: int) -> int:
        """A handle of a file, whose content is what it was now. Raises EPERM for one to write to, EISDIR, ENFILE, EIO."""
        if flags & (os.O_ACCMODE | os.O_TRUNC):
            raise FilesystemError(errno.EPERM)
        return self._add(self._files, await self._content(place_of(ino), uid))

    async def _content(self, place: Place, uid: int) -> bytes:
        if place.kind == _LAST_ERROR:
            refusal = self._errors.get(uid)
            return f"{refusal.sentence}\n".encode(errors="backslashreplace") if refusal else b""
        if place.kind not in _WHAT:
            raise FilesystemError(errno.EISDIR)
        return await self._jobs.read(place.job, uid, _WHAT[place.kind])

    def read(self, fh: int, offset: int, length: int) -> bytes:
        """The bytes [offset, offset + length), fewer at the end. Raises EBADF."""
        return _found(self._files, fh)[offset : offset + length]

    def release(self, fh: int) -> None:
        """The kernel has closed the handle, of a file or a directory."""
        self._files.pop(fh, None)
        self._directories.pop(fh, None)

    def _add(self, handles: dict[int, T], shown: T) -> int:
        if len(self._files) + len(self._directories) >= HANDLES_MAX:
            raise FilesystemError(errno.ENFILE)
        self._numbers += 1
        handles[self._numbers] = shown
        return self._numbers

    # -- jobs --------------------------------------------------------------------------------------------------------

    async def status(self, ino: int, uid: int) -> Status:
        """The status of the job whose directory it is. Raises ENODATA for anything else, and as `lookup`."""
        return await self._jobs.status(_job(ino), uid)

    async def cancel(self, ino: int, uid: int) -> None:
        """Cancel the job whose directory it is. Raises ENODATA for anything else, and for a job that has ended."""
        if not await self._jobs.cancel(_job(ino), uid):
            raise FilesystemError(errno.ENODATA)


def _job(ino: int) -> int:
    place = place_of(ino)
    if place.kind != _JOB:
        raise FilesystemError(errno.ENODATA)
    return place.job


def _found(handles: dict[int, T], fh: int) -> T:
    if fh not in handles:
        raise FilesystemError(errno.EBADF, f"no handle {fh}")
    return handles[fh]


def _attributes(place: Place, job: Status | None) -> Attributes:
    """A file has no size, as below /proc: it is read to its end."""
    is_directory = place.kind in _DIRECTORIES
    mode = _MODES.get(place.kind, _FILE_MODE) | (stat.S_IFDIR if is_directory else stat.S_IFREG)
    uid, changed_ns = 0, 0
    if job is not None:
        uid, changed_ns = job["uid"], int(1e9 * (job["ended"] or job["started"] or job["submitted"]))
    return Attributes(place.ino, mode, 2 if is_directory else 1, uid, 0, 0, 0, changed_ns, changed_ns, changed_ns, 0)
