"""What is always true of an inode table; tests and `Table.check` ask."""

from __future__ import annotations

from collections.abc import Mapping, Set

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
        if ino >= next_ino:
            found.append(f"inode {ino} is not below the next number, {next_ino}")
    found += [f"chunk ({ino}, {index}) has no inode" for ino, index, _ in directory if ino not in inodes]
    return found
