"""An inode's attributes, as the kernel is told them."""

from __future__ import annotations

import pyfuse3

from gridfs.vfs.attributes import Attributes

BLOCK_BYTES = 4096
_STAT_BLOCK_BYTES = 512  # what st_blocks counts in, stat(2)


def packed(attributes: Attributes, keep_s: float = 0.0, keep_name_s: float = 0.0) -> pyfuse3.EntryAttributes:
    """The attributes; the kernel may keep them, and the name that led to them, for so long."""
    entry = pyfuse3.EntryAttributes()
    entry.st_ino = attributes.ino
    entry.attr_timeout, entry.entry_timeout = keep_s, keep_name_s
    entry.st_mode = attributes.mode
    entry.st_nlink = attributes.nlink
    entry.st_uid, entry.st_gid = attributes.uid, attributes.gid
    entry.st_rdev = attributes.rdev
    entry.st_size = attributes.size
    entry.st_blksize = BLOCK_BYTES
    entry.st_blocks = -(-attributes.allocated_bytes // _STAT_BLOCK_BYTES)
    entry.st_atime_ns = attributes.atime_ns
    entry.st_mtime_ns = attributes.mtime_ns
    entry.st_ctime_ns = attributes.ctime_ns
    return entry
