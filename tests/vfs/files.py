"""Files of the root directory, written and read at one go through the vfs."""

from __future__ import annotations

import os
import stat

from gridfs.meta.inode import ROOT_INO
from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import USER

FILE = stat.S_IFREG | 0o644


async def write_closed(filesystem: Filesystem, name: bytes, content: bytes) -> int:
    """Make a file, write, close; returns its inode number. The chunk servers have its bytes afterwards."""
    ino = (await filesystem.make(USER, ROOT_INO, name, FILE)).ino
    fh = await filesystem.open(ino, os.O_RDWR)
    await filesystem.data.write(fh, 0, content)
    await filesystem.data.flush(fh)
    await filesystem.release(fh)
    return ino


async def write_fsynced(filesystem: Filesystem, name: bytes, content: bytes) -> int:
    """As `write_closed`; it is durable afterwards, as is all that was done before."""
    ino = await write_closed(filesystem, name, content)
    await filesystem.fsync_names()
    return ino


async def read_all(filesystem: Filesystem, name: bytes) -> bytes:
    """The content of a file, by an open of its own."""
    attributes = await filesystem.lookup(ROOT_INO, name)
    fh = await filesystem.open(attributes.ino, os.O_RDONLY)
    content = bytes(await filesystem.read(fh, 0, attributes.size))
    await filesystem.release(fh)
    return content
