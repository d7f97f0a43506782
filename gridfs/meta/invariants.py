"""What has to hold in every table, beyond what its own `check` looks at: kinds, sizes, and that every inode can be reached."""

from __future__ import annotations

import stat
from collections.abc import Iterator

from gridfs.config import FILE_SIZE_MAX_BYTES
from gridfs.meta.inode import ROOT_INO, Inode
from gridfs.meta.table import Table


def broken(table: Table) -> list[str]:
    """The invariants that do not hold, one sentence each; empty when all is well. A table in use keeps them after every op."""
    faults = table.check()
    root = table.inodes.get(ROOT_INO)
    if root is None or not root.is_directory:
        return [*faults, f"inode {ROOT_INO}, the root, is no directory"]
    for inode in table.inodes.values():
        faults += _broken_sizes(inode)
    faults += _broken_chunks(table)
    faults += [f"directory {ino} cannot be reached from the root" for ino in _unreachable(table)]
    return faults


def _broken_sizes(inode: Inode) -> Iterator[str]:
    if inode.is_regular:
        if not 0 <= inode.size <= FILE_SIZE_MAX_BYTES:
            yield f"inode {inode.ino} has size {inode.size}, which no file can have"
    elif inode.size != len(inode.target or b""):
        yield f"inode {inode.ino} has size {inode.size}, its kind makes {len(inode.target or b'')}"
    if (inode.target is not None) != stat.S_ISLNK(inode.mode):
        yield f"inode {inode.ino} has mode {inode.mode:o} and {'no' if inode.target is None else 'a'} target"


def _broken_chunks(table: Table) -> Iterator[str]:
    for ino, index, _ in table.directory:
        inode = table.inodes.get(ino)
        if inode is not None and not inode.is_regular:
            yield f"chunk ({ino}, {index}) is of an inode that is no regular file"


def _unreachable(table: Table) -> list[int]:
    """The directories with names that no way from the root leads to."""
    reached, ahead = {ROOT_INO}, [ROOT_INO]
    while ahead:
        for ino in (table.inodes[ahead.pop()].entries or {}).values():
            child = table.inodes.get(ino)
            if child is not None and child.is_directory and ino not in reached:
                reached.add(ino)
                ahead.append(ino)
    return [ino for ino, inode in table.inodes.items() if inode.is_directory and inode.nlink and ino not in reached]
