"""Who may do what with a file, decided here: a job works for somebody whom no kernel checks.

The same as the kernel decides for a program of that user, by mode bits and ACLs (path_resolution(7), acl(5)), but that no
symlink and no ".." is followed.
"""

from __future__ import annotations

import errno
import stat

from gridfs.config import NAME_MAX_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta import acl
from gridfs.meta.inode import ROOT_INO, Inode
from gridfs.meta.table import Table
from gridfs.offload.job import Output, Submitter

READ, WRITE, EXECUTE = 4, 2, 1
CONTROL_NAME = b".gridfs"
"""In the root: it leads to no file, but to what the filesystem tells of itself."""
_ANY_EXECUTE = stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH
_DOTS = (b".", b"..")


def may(table: Table, ino: int, submitter: Submitter, mask: int) -> bool:
    """Whether the submitter may do all of `mask` with the inode. Raises ENOENT."""
    inode = table.inode(ino)
    if submitter.uid == 0:
        return not mask & EXECUTE or inode.is_directory or bool(inode.mode & _ANY_EXECUTE)
    return not mask & ~_permissions(inode, submitter, mask)


def _permissions(inode: Inode, submitter: Submitter, mask: int) -> int:
    """What the first class that the submitter is in may do: owner, whom the ACL names, group, others."""
    if submitter.uid == inode.uid:
        return inode.mode >> 6
    packed = (inode.xattrs or {}).get(acl.ACCESS)
    if packed is not None and inode.mode & stat.S_IRWXG:  # with an empty mask the kernel does not look at the ACL
        return _by_acl(acl.parse(packed), inode, submitter, mask)
    return inode.mode >> 3 if _is_member(submitter, inode.gid) else inode.mode


def _by_acl(entries: acl.Acl, inode: Inode, submitter: Submitter, mask: int) -> int:
    """As acl(5) has it: of the groups that the submitter is in, one must allow all of it; only who is in none is another."""
    most = next((entry.permissions for entry in entries if entry.tag == acl.MASK), 7)
    for entry in entries:
        if entry.tag == acl.USER and entry.who == submitter.uid:
            return entry.permissions & most
    groups = [entry for entry in entries if _is_group_of(entry, inode, submitter)]
    for entry in groups:
        if not mask & ~entry.permissions:
            return entry.permissions & most
    return 0 if groups else inode.mode


def _is_group_of(entry: acl.Entry, inode: Inode, submitter: Submitter) -> bool:
    if entry.tag == acl.GROUP_OBJ:
        return _is_member(submitter, inode.gid)
    return entry.tag == acl.GROUP and _is_member(submitter, entry.who)


def _is_member(submitter: Submitter, gid: int) -> bool:
    return gid == submitter.gid or gid in submitter.groups


# -- where a result goes ---------------------------------------------------------------------------------------------


def resolve_output(table: Table, directory: int, path: str, submitter: Submitter, *, overwrite: bool = False) -> Output:
    """The place that `path` names: from the root on if it begins with "/", else from `directory`.

    Raises EINVAL (".." in it), ELOOP (a symlink on the way), ENOENT, ENOTDIR, ENAMETOOLONG, EACCES (the submitter may not
    search a directory, or not write to the last), EEXIST, EISDIR, and EPERM (a sticky directory, and the file is another's).
    """
    *above, name = _words(path)
    here = table.inode(ROOT_INO if path.startswith("/") else directory)
    for word in above:
        here = _step(table, here, word, submitter)
    if not here.nlink:
        raise FilesystemError(errno.ENOENT, "the directory of the output has been removed")
    _refuse(table, here, submitter, EXECUTE | WRITE)
    if here.ino == ROOT_INO and name == CONTROL_NAME:
        raise FilesystemError(errno.EPERM, f"output: {_text(name)} is no place for files")
    _refuse_existing(table, here, name, submitter, overwrite)
    return Output(here.ino, name, _text(b"/".join([path_of(table, here.ino).rstrip(b"/"), name])), overwrite)


def _words(path: str) -> list[bytes]:
    words = [word for word in path.encode().split(b"/") if word]
    if not words or path.endswith("/") or words[-1] in _DOTS:
        raise FilesystemError(errno.EISDIR, f"output: {path!r} names a directory")
    if b".." in words:
        raise FilesystemError(errno.EINVAL, f"output: {path!r} has '..' in it")
    if any(len(word) > NAME_MAX_BYTES for word in words):
        raise FilesystemError(errno.ENAMETOOLONG, f"output: a name has at most {NAME_MAX_BYTES} bytes")
    return [word for word in words if word != b"."]


def _step(table: Table, here: Inode, name: bytes, submitter: Submitter) -> Inode:
    _refuse(table, here, submitter, EXECUTE)
    ino = table.directory_entries(here.ino).get(name)
    if ino is None:
        raise FilesystemError(errno.ENOENT, f"output: there is no directory {_text(name)}")
    inode = table.inode(ino)
    if inode.target is not None:
        raise FilesystemError(errno.ELOOP, f"output: {_text(name)} is a symlink, which is not followed")
    if not inode.is_directory:
        raise FilesystemError(errno.ENOTDIR, f"output: {_text(name)} is not a directory")
    return inode


def _refuse(table: Table, directory: Inode, submitter: Submitter, mask: int) -> None:
    if not may(table, directory.ino, submitter, mask):
        what = "write to" if mask & WRITE else "search"
        where = _text(path_of(table, directory.ino))
        raise FilesystemError(errno.EACCES, f"output: user {submitter.uid} may not {what} {where}")


def _refuse_existing(table: Table, directory: Inode, name: bytes, submitter: Submitter, overwrite: bool) -> None:
    ino = table.directory_entries(directory.ino).get(name)
    if ino is None:
        return
    existing = table.inode(ino)
    if existing.is_directory:
        raise FilesystemError(errno.EISDIR, f"output: {_text(name)} is a directory")
    if not overwrite or not existing.is_regular:
        raise FilesystemError(errno.EEXIST, f"output: {_text(name)} exists")
    if directory.mode & stat.S_ISVTX and submitter.uid not in (0, directory.uid, existing.uid):
        raise FilesystemError(errno.EPERM, f"output: {_text(name)} is another's, in a sticky directory")


def path_of(table: Table, directory: int) -> bytes:
    """A directory's path from the root on; of one that has been removed, what is left of it. Raises ENOENT."""
    names: list[bytes] = []
    while directory != ROOT_INO:
        parent = table.inode(directory).parent
        names.append(name_in(table, parent, directory) or b"(removed)")
        directory = parent
    return b"/" + b"/".join(reversed(names))


def name_in(table: Table, parent: int, ino: int) -> bytes | None:
    """A name that the inode has in directory `parent`, None if it has none there."""
    entries = table.directory_entries(parent) if parent in table.inodes else {}
    return next((name for name, child in entries.items() if child == ino), None)


def _text(name: bytes) -> str:
    return name.decode(errors="backslashreplace")
