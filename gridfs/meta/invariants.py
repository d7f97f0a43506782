"""What is always true of an inode table; tests and `Table.check` ask."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Set

from gridfs.config import FILE_SIZE_MAX_BYTES
from gridfs.meta.directory import ChunkDirectory
from gridfs.meta.inode import ROOT_INO, Inode
from gridfs.meta.xattrs import fault as fault_of_acl


def faults(inodes: Mapping[int, Inode], directory: ChunkDirectory, orphans: Set[int], next_ino: int) -> list[str]:
    """The invariants that do not hold, one sentence each; empty when all is well."""
    found: list[str] = []
    names = dict.fromkeys(inodes, 0)
    subdirectories = dict.fromkeys(inodes, 0)
    for inode in inodes.values():
        for name, ino in (inode.entries or {}).items():
            child = inodes.get(ino)
            if child is None:
                found.append(f"name {name!r} in directory {inode.ino} leads to inode {ino}, which does not exist")
                continue
            names[ino] += 1
            subdirectories[inode.ino] += child.is_directory
            if child.is_directory and child.parent != inode.ino:
                found.append(f"directory {ino} is in {inode.ino} but says that it is in {child.parent}")
    for ino, inode in inodes.items():
        named = names[ino] or ino == ROOT_INO
        expected = (2 + subdirectories[ino] if named else 0) if inode.is_directory else names[ino]
        if inode.nlink != expected:
            found.append(f"inode {ino} has nlink {inode.nlink}, its names make {expected}")
        if (ino in orphans) != (inode.nlink == 0):
            found.append(f"inode {ino} with nlink {inode.nlink} is{'' if ino in orphans else ' not'} an orphan")
        if (fault := fault_of_acl(inode)) is not None:
            found.append(fault)
        found += _wrong_sizes(inode)
        if ino >= next_ino:
            found.append(f"inode {ino} is not below the next number, {next_ino}")
    found += _wrong_chunks(inodes, directory)
    return found + [f"directory {ino} cannot be reached from the root" for ino in _unreachable(inodes)]


def _wrong_chunks(inodes: Mapping[int, Inode], directory: ChunkDirectory) -> Iterator[str]:
    """Chunks of what has none."""
    for ino, index, _ in directory:
        if ino not in inodes:
            yield f"chunk ({ino}, {index}) has no inode"
        elif not inodes[ino].is_regular:
            yield f"chunk ({ino}, {index}) is of an inode that is no regular file"


def _wrong_sizes(inode: Inode) -> Iterator[str]:
    """Sizes and targets that do not fit the inode's kind."""
    target_bytes = len(inode.target or b"")
    if inode.is_regular and not 0 <= inode.size <= FILE_SIZE_MAX_BYTES:
        yield f"inode {inode.ino} has size {inode.size}, which no file can have"
    if not inode.is_regular and inode.size != target_bytes:
        yield f"inode {inode.ino} has size {inode.size}, its kind makes {target_bytes}"
    if (inode.target is not None) != stat.S_ISLNK(inode.mode):
        yield f"inode {inode.ino} has mode {inode.mode:o} and {'no' if inode.target is None else 'a'} target"


def _unreachable(inodes: Mapping[int, Inode]) -> list[int]:
    """The directories with names that no way from the root leads to."""
    reached, ahead = {ROOT_INO}, [ROOT_INO] if ROOT_INO in inodes else []
    while ahead:
        for ino in (inodes[ahead.pop()].entries or {}).values():
            if ino in inodes and inodes[ino].is_directory and ino not in reached:
                reached.add(ino)
                ahead.append(ino)
    return [ino for ino, inode in inodes.items() if inode.is_directory and inode.nlink and ino not in reached]
