"""Control attributes: extended attributes that ask gridfs something, instead of being stored.

They are never listed, or `cp -a` and `rsync -X` would carry them from file to file.
"""

from __future__ import annotations

import errno
import json
from typing import Protocol

from gridfs.errors import FilesystemError
from gridfs.meta.xattrs import REPLICAS
from gridfs.offload.job import Submitter
from gridfs.vfs.filesystem import Filesystem
from mount.offload import Offload

_PREFIX = b"user.gridfs."
LAYOUT, OFFLOAD = b"user.gridfs.layout", b"user.offload"


class Attribute(Protocol):
    """What one control attribute does, for a user's process `pid`."""

    async def get(self, ino: int, uid: int, pid: int) -> bytes:
        """getxattr(2)."""

    async def set(self, ino: int, value: bytes, submitter: Submitter, pid: int) -> None:
        """setxattr(2)."""

    async def remove(self, ino: int, uid: int, pid: int) -> None:
        """removexattr(2)."""


class Layout:
    """Where a regular file's bytes are, as JSON; it can be read only."""

    def __init__(self, filesystem: Filesystem) -> None:
        self._filesystem = filesystem

    async def get(self, ino: int, uid: int, pid: int) -> bytes:
        """The layout. Raises ENODATA for anything but a regular file."""
        await self._filesystem.ready()
        return json.dumps(self._filesystem.layout(ino)).encode()

    async def set(self, ino: int, value: bytes, submitter: Submitter, pid: int) -> None:
        """Raises EPERM."""
        raise FilesystemError(errno.EPERM)

    async def remove(self, ino: int, uid: int, pid: int) -> None:
        """Raises EPERM."""
        raise FilesystemError(errno.EPERM)


class Unknown:
    """A name that is kept for later."""

    async def get(self, ino: int, uid: int, pid: int) -> bytes:
        """Raises ENODATA."""
        raise FilesystemError(errno.ENODATA)

    async def set(self, ino: int, value: bytes, submitter: Submitter, pid: int) -> None:
        """Raises EOPNOTSUPP: storing it would look like success."""
        raise FilesystemError(errno.EOPNOTSUPP)

    async def remove(self, ino: int, uid: int, pid: int) -> None:
        """Raises EOPNOTSUPP."""
        raise FilesystemError(errno.EOPNOTSUPP)


class Control:
    """The control attributes of one mount."""

    def __init__(self, filesystem: Filesystem, offload: Offload) -> None:
        self._attributes: dict[bytes, Attribute] = {LAYOUT: Layout(filesystem), OFFLOAD: offload}
        self._unknown = Unknown()

    def find(self, name: bytes) -> Attribute | None:
        """The control attribute of that name; None for names that are stored, as how many replicas a file is to have is."""
        found = self._attributes.get(name)
        if found is None and name.startswith(_PREFIX) and name != REPLICAS:
            return self._unknown
        return found
