"""What stat(2) tells of an inode, the writes included that the table has not been told of yet."""

from __future__ import annotations

from typing import NamedTuple

from gridfs.config import CHUNK_SIZE_BYTES
from gridfs.meta.inode import Inode
from gridfs.vfs.file import File


class Attributes(NamedTuple):
    """The fields of struct stat; times in nanoseconds since the epoch."""

    ino: int
    mode: int
    nlink: int
    uid: int
    gid: int
    rdev: int
    size: int
    atime_ns: int
    mtime_ns: int
    ctime_ns: int
    allocated_bytes: int
    """Size of the chunks that have been written, which is what `du` counts; holes are free, to a chunk's precision."""


def attributes_of(inode: Inode, file: File | None, chunks: int) -> Attributes:
    """The attributes of `inode`, which is open as `file` or is not open, and has `chunks` chunks."""
    size, mtime_ns, ctime_ns = inode.size, inode.mtime_ns, inode.ctime_ns
    if file is not None and file.dirty:
        size = file.size
        if file.mtime_ns is not None:
            mtime_ns, ctime_ns = file.mtime_ns, max(ctime_ns, file.mtime_ns)
    return Attributes(
        *(inode.ino, inode.mode, inode.nlink, inode.uid, inode.gid, inode.rdev),
        *(size, inode.atime_ns, mtime_ns, ctime_ns, min(size, chunks * CHUNK_SIZE_BYTES)),
    )
