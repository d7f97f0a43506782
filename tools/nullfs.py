#!/usr/bin/env python3
"""A filesystem that does nothing, through pyfuse3: the ceiling that the bench holds gridfs against.

usage: python tools/nullfs.py MOUNTPOINT        (mounts, and stays in the foreground until it is unmounted)

Names and sizes are remembered in dicts; written bytes are thrown away and reads return zeros. What it costs is what the
kernel, libfuse, pyfuse3 and trio cost, under the settings that gridfs itself uses: an allocator that keeps its big
buffers, a mount that reads ahead 1 MiB, attributes cached by the kernel. A figure of gridfs divided by the same figure
of this filesystem is what gridfs makes of the door it stands behind.
"""

from __future__ import annotations

import argparse
import ctypes
import errno
import os
import stat
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pyfuse3
import trio

CACHE_TIMEOUT_S = 300.0
READ_AHEAD_KIB = 1024
LARGEST_READ_BYTES = 8 << 20
ZEROS = memoryview(bytes(LARGEST_READ_BYTES))
MALLOPT_SETTINGS = {-3: 1 << 30, -1: (1 << 31) - 1, -2: 64 << 20}
"""M_MMAP_THRESHOLD, M_TRIM_THRESHOLD and M_TOP_PAD: big buffers are recycled, not mapped and faulted in anew each time."""


class Node:
    """One file or directory: attributes, and for a directory its names."""

    __slots__ = ("attributes", "children", "parent")

    def __init__(self, ino: int, mode: int, parent: int) -> None:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = pyfuse3.InodeT(ino)
        entry.st_mode = pyfuse3.ModeT(mode)
        entry.st_nlink = 2 if stat.S_ISDIR(mode) else 1
        entry.st_atime_ns = entry.st_mtime_ns = entry.st_ctime_ns = time.time_ns()
        entry.entry_timeout = entry.attr_timeout = CACHE_TIMEOUT_S
        entry.st_blksize = 4096
        self.attributes = entry
        self.children: dict[bytes, Node] = {}
        self.parent = parent


class Nothing(pyfuse3.Operations):
    """Names in dicts, bytes nowhere. A file handle is the inode number.

    Every request that gridfs gets comes here too. So there is a handler for extended attributes: without one the kernel would
    ask once, and not again before each write whether the file has capabilities to lose.
    """

    def __init__(self) -> None:
        super().__init__()
        self._nodes = {pyfuse3.ROOT_INODE: Node(pyfuse3.ROOT_INODE, stat.S_IFDIR | 0o777, pyfuse3.ROOT_INODE)}
        self._next_ino = pyfuse3.ROOT_INODE + 1

    def _add(self, parent: int, name: bytes, mode: int, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        if name in self._nodes[parent].children:
            raise pyfuse3.FUSEError(errno.EEXIST)
        node = Node(self._next_ino, mode & ~ctx.umask, parent)
        node.attributes.st_uid, node.attributes.st_gid = ctx.uid, ctx.gid
        self._nodes[self._next_ino] = self._nodes[parent].children[name] = node
        self._next_ino += 1
        return node.attributes

    def _remove(self, parent: int, name: bytes) -> None:
        node = self._nodes[parent].children.pop(name, None)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        node.attributes.st_nlink = 0

    async def lookup(
        self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        """Find `name`."""
        node = self._nodes[parent_inode].children.get(name)
        if node is None:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return node.attributes

    async def forget(self, inode_list: Sequence[tuple[pyfuse3.InodeT, int]]) -> None:
        """Drop inodes that have no name left."""
        for ino, _ in inode_list:
            node = self._nodes.get(ino)
            if node is not None and node.attributes.st_nlink == 0:
                del self._nodes[ino]

    async def getattr(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.EntryAttributes:
        """Attributes as they are."""
        return self._nodes[inode].attributes

    async def setattr(
        self,
        inode: pyfuse3.InodeT,
        attr: pyfuse3.EntryAttributes,
        fields: pyfuse3.SetattrFields,
        fh: pyfuse3.FileHandleT | None,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """Size and mode; the rest is ignored."""
        mine = self._nodes[inode].attributes
        if fields.update_size:
            mine.st_size = attr.st_size
        if fields.update_mode:
            mine.st_mode = attr.st_mode
        return mine

    async def create(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> tuple[pyfuse3.FileInfo, pyfuse3.EntryAttributes]:
        """A new empty file, open."""
        entry = self._add(parent_inode, name, mode, ctx)
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(entry.st_ino), keep_cache=True), entry

    async def mkdir(
        self,
        parent_inode: pyfuse3.InodeT,
        name: pyfuse3.FileNameT,
        mode: pyfuse3.ModeT,
        ctx: pyfuse3.RequestContext,
    ) -> pyfuse3.EntryAttributes:
        """A new empty directory."""
        return self._add(parent_inode, name, stat.S_IFDIR | mode, ctx)

    async def unlink(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        """Take the name away."""
        self._remove(parent_inode, name)

    async def rmdir(self, parent_inode: pyfuse3.InodeT, name: pyfuse3.FileNameT, ctx: pyfuse3.RequestContext) -> None:
        """Take the directory away."""
        self._remove(parent_inode, name)

    async def rename(
        self,
        parent_inode_old: pyfuse3.InodeT,
        name_old: pyfuse3.FileNameT,
        parent_inode_new: pyfuse3.InodeT,
        name_new: pyfuse3.FileNameT,
        flags: pyfuse3.FlagT,
        ctx: pyfuse3.RequestContext,
    ) -> None:
        """Move the name, over another if there is one."""
        node = self._nodes[parent_inode_old].children.pop(name_old)
        if name_new in self._nodes[parent_inode_new].children:
            self._remove(parent_inode_new, name_new)
        self._nodes[parent_inode_new].children[name_new] = node

    async def getxattr(self, inode: pyfuse3.InodeT, name: pyfuse3.XAttrNameT, ctx: pyfuse3.RequestContext) -> bytes:
        """No inode has any."""
        raise pyfuse3.FUSEError(pyfuse3.ENOATTR)

    async def open(self, inode: pyfuse3.InodeT, flags: pyfuse3.FlagT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        """The inode number is the handle."""
        return pyfuse3.FileInfo(fh=pyfuse3.FileHandleT(inode), keep_cache=True)

    async def read(self, fh: pyfuse3.FileHandleT, off: int, size: int) -> bytes:
        """Zeros, without a copy."""
        left = self._nodes[pyfuse3.InodeT(fh)].attributes.st_size - off
        return cast(bytes, ZEROS[: max(0, min(size, left))])

    async def write(self, fh: pyfuse3.FileHandleT, off: int, buf: bytes) -> int:
        """Only the size is kept."""
        entry = self._nodes[pyfuse3.InodeT(fh)].attributes
        entry.st_size = max(entry.st_size, off + len(buf))
        return len(buf)

    async def flush(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to flush."""

    async def fsync(self, fh: pyfuse3.FileHandleT, datasync: bool) -> None:
        """Nothing to keep."""

    async def release(self, fh: pyfuse3.FileHandleT) -> None:
        """Nothing to release."""

    async def opendir(self, inode: pyfuse3.InodeT, ctx: pyfuse3.RequestContext) -> pyfuse3.FileHandleT:
        """The inode number is the handle."""
        return pyfuse3.FileHandleT(inode)

    async def readdir(self, fh: pyfuse3.FileHandleT, start_id: int, token: pyfuse3.ReaddirToken) -> None:
        """Entries in order of inode numbers, which are the positions too."""
        children = self._nodes[pyfuse3.InodeT(fh)].children
        for name, node in sorted(children.items(), key=lambda entry: int(entry[1].attributes.st_ino)):
            ino = int(node.attributes.st_ino)
            if ino > start_id and not pyfuse3.readdir_reply(token, pyfuse3.FileNameT(name), node.attributes, ino):
                return

    async def statfs(self, ctx: pyfuse3.RequestContext) -> pyfuse3.StatvfsData:
        """A terabyte, all of it free."""
        figures = pyfuse3.StatvfsData()
        figures.f_bsize = figures.f_frsize = 4096
        figures.f_blocks = figures.f_bfree = figures.f_bavail = 1 << 28
        figures.f_files = figures.f_ffree = figures.f_favail = 1 << 24
        figures.f_namemax = 255
        return figures


def recycle_buffers() -> None:
    """Tell glibc to keep big buffers on the heap; must run before the first of them. A libc without mallopt is left alone."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        for setting, value in MALLOPT_SETTINGS.items():
            mallopt(setting, value)


def raise_read_ahead(mountpoint: Path, kib: int) -> None:
    """Set the mount's read-ahead. The device comes from mountinfo: a stat of its own mount could wait for itself."""
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields = line.split()
        if fields[4] == str(mountpoint):
            setting = Path(f"/sys/class/bdi/{fields[2]}/read_ahead_kb")
            try:
                for _ in range(25):  # the kernel sets its own value once it has greeted us
                    setting.write_text(str(kib))
                    time.sleep(0.2)
            except OSError:  # it is unmounted already
                pass
            return
    raise SystemExit(f"{mountpoint} is not in /proc/self/mountinfo: it was not mounted")


def main() -> None:
    """Mount, say `ready` on standard output, and serve until unmounted."""
    parser = argparse.ArgumentParser(description="Mount a filesystem that does nothing, to measure what FUSE costs.")
    parser.add_argument("mountpoint", type=Path)
    mountpoint: Path = parser.parse_args().mountpoint.resolve()
    recycle_buffers()
    options = set(pyfuse3.default_options) | {"fsname=nullfs", "subtype=nullfs"}
    if os.geteuid() == 0:
        options.add("allow_other")
    pyfuse3.init(Nothing(), str(mountpoint), options)
    if os.geteuid() == 0:
        threading.Thread(target=raise_read_ahead, args=(mountpoint, READ_AHEAD_KIB), daemon=True).start()
    print("ready", flush=True)
    try:
        trio.run(pyfuse3.main, 8, 32)  # as a mount has by default
    finally:
        pyfuse3.close()


if __name__ == "__main__":
    main()
