"""Control attributes: extended attributes that ask gridfs something, instead of being stored.

They are never listed, or `cp -a` and `rsync -X` would carry them from file to file.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Callable

from gridfs.errors import FilesystemError
from gridfs.meta.xattrs import REPLICAS
from gridfs.vfs.filesystem import Filesystem

_PREFIX = b"user.gridfs."
_RESERVED = (b"user.offload",)
"""Names that later versions answer; storing them would look like success."""


def _layout(filesystem: Filesystem, ino: int) -> bytes:
    return json.dumps(filesystem.layout(ino)).encode()


_GET: dict[bytes, Callable[[Filesystem, int], bytes]] = {b"user.gridfs.layout": _layout}


def is_control(name: bytes) -> bool:
    """True for names that are answered here and never stored; how many replicas a file is to have is stored, and inherited."""
    return (name.startswith(_PREFIX) and name != REPLICAS) or name in _RESERVED


def get(filesystem: Filesystem, ino: int, name: bytes) -> bytes:
    """The answer to a control attribute. Raises ENODATA where there is none."""
    answer = _GET.get(name)
    if answer is None:
        raise FilesystemError(errno.ENODATA)
    return answer(filesystem, ino)


def refuse_change(name: bytes) -> None:
    """Raise for a control attribute that somebody wants to set or remove: EPERM if it exists, else EOPNOTSUPP."""
    raise FilesystemError(errno.EPERM if name in _GET else errno.EOPNOTSUPP)
