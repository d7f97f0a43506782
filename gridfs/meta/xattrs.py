"""The rules of extended attributes, xattr(7), and of the ACLs among them.

Pure functions of an inode, for `Table`, which alone changes inodes: each returns what the attributes, and the mode where an
ACL has a say in it, are to be. The attributes of an inode are None while there are none.
"""

from __future__ import annotations

import errno
import stat

from gridfs.config import NAME_MAX_BYTES, XATTR_SIZE_MAX_BYTES
from gridfs.errors import FilesystemError
from gridfs.meta import acl
from gridfs.meta.inode import Inode

XATTR_CREATE, XATTR_REPLACE = 1, 2  # linux/xattr.h
_LIST_MAX_BYTES = 64 << 10
"""XATTR_LIST_MAX of Linux: names that would not fit a listing are refused when they are set."""
_TOTAL_MAX_BYTES = 1 << 20
"""Values of one inode together: an inode travels as one row, which must fit a frame many times over."""
_NAMESPACES = (b"user.", b"trusted.", b"security.")
"""xattr(7); who may use which is the kernel's to enforce."""
_ACLS = (acl.ACCESS, acl.DEFAULT)
REPLICAS = b"user.gridfs.replicas"
"""How many nodes are to hold each chunk of a file; of a directory, what is made in it from then on begins with."""
REPLICAS_MAX = 8

Xattrs = dict[bytes, bytes] | None


def with_xattr(inode: Inode, name: bytes, value: bytes, flags: int) -> tuple[Xattrs, int]:
    """The attributes and the mode after setxattr(2).

    Raises EEXIST (CREATE), ENODATA (REPLACE), E2BIG (the value), ENOSPC (too much in all), ERANGE (the name), EOPNOTSUPP for
    a namespace that is not kept here; and for an ACL EINVAL (not valid), EACCES (a default ACL, but no directory) and
    EOPNOTSUPP (a symlink); EINVAL for REPLICAS that are no number from 1 to REPLICAS_MAX.
    """
    if name in _ACLS:
        return _with_acl(inode, name, value)
    if not name.startswith(_NAMESPACES):
        raise FilesystemError(errno.EOPNOTSUPP)
    if name == REPLICAS and not (value.isdigit() and 1 <= int(value) <= REPLICAS_MAX):
        raise FilesystemError(errno.EINVAL)
    xattrs = inode.xattrs or {}
    if len(name) > NAME_MAX_BYTES:
        raise FilesystemError(errno.ERANGE)
    if len(value) > XATTR_SIZE_MAX_BYTES:
        raise FilesystemError(errno.E2BIG)
    if flags & XATTR_CREATE and name in xattrs:
        raise FilesystemError(errno.EEXIST)
    if flags & XATTR_REPLACE and name not in xattrs:
        raise FilesystemError(errno.ENODATA)
    return _put(xattrs, name, value), inode.mode


def _with_acl(inode: Inode, name: bytes, value: bytes) -> tuple[Xattrs, int]:
    """An ACL that says no more than the mode is not kept, as no attribute says the same."""
    if stat.S_ISLNK(inode.mode):
        raise FilesystemError(errno.EOPNOTSUPP)
    entries, mode = acl.parse(value), inode.mode
    if name == acl.DEFAULT and entries and not inode.is_directory:
        raise FilesystemError(errno.EACCES)
    if name == acl.ACCESS and entries:
        mode = acl.mode_with(entries, mode)
    if not entries or (name == acl.ACCESS and acl.is_minimal(entries)):
        return _drop(inode.xattrs, name), mode
    return _put(inode.xattrs or {}, name, acl.pack(entries)), mode


def without_xattr(inode: Inode, name: bytes) -> Xattrs:
    """The attributes after removexattr(2); an ACL that is not there may be removed. Raises ENODATA."""
    if name not in (inode.xattrs or {}) and name not in _ACLS:
        raise FilesystemError(errno.ENODATA)
    return _drop(inode.xattrs, name)


def after_chmod(inode: Inode, mode: int) -> Xattrs:
    """The attributes once the inode has that mode: its access ACL follows."""
    if inode.xattrs is None or acl.ACCESS not in inode.xattrs:
        return inode.xattrs
    return {**inode.xattrs, acl.ACCESS: acl.pack(acl.with_mode(acl.parse(inode.xattrs[acl.ACCESS]), mode))}


def inherited(parent: Inode, mode: int, umask: int) -> tuple[Xattrs, int]:
    """The attributes and the mode of what is made in `parent` with `mode`.

    The umask counts where the directory has no default ACL, and a symlink has neither of the two (acl(5), umask(2)).
    REPLICAS are handed down to files and directories.
    """
    if stat.S_ISLNK(mode):
        return None, mode
    above = parent.xattrs or {}
    has_bytes = stat.S_ISDIR(mode) or stat.S_ISREG(mode)
    xattrs = {REPLICAS: above[REPLICAS]} if has_bytes and REPLICAS in above else {}
    default = above.get(acl.DEFAULT)
    if default is None:
        return xattrs or None, mode & ~umask
    access, mode = acl.inherit(acl.parse(default), mode)
    if stat.S_ISDIR(mode):
        xattrs[acl.DEFAULT] = default
    if not acl.is_minimal(access):
        xattrs[acl.ACCESS] = acl.pack(access)
    return xattrs or None, mode


def replicas(inode: Inode) -> int | None:
    """How many copies of each chunk the file is to have, None where it does not say."""
    value = (inode.xattrs or {}).get(REPLICAS)
    return None if value is None else int(value)


def fault(inode: Inode) -> str | None:
    """The invariant that does not hold, in one sentence: an access ACL and the mode say the same."""
    packed = (inode.xattrs or {}).get(acl.ACCESS)
    if packed is None or acl.mode_with(acl.parse(packed), inode.mode) == inode.mode:
        return None
    return f"inode {inode.ino} has mode {inode.mode:o}, but its ACL says {acl.mode_with(acl.parse(packed), inode.mode):o}"


def _put(xattrs: dict[bytes, bytes], name: bytes, value: bytes) -> Xattrs:
    if name not in xattrs and sum(len(other) + 1 for other in (*xattrs, name)) > _LIST_MAX_BYTES:
        raise FilesystemError(errno.ENOSPC)
    if sum(map(len, xattrs.values())) - len(xattrs.get(name, b"")) + len(value) > _TOTAL_MAX_BYTES:
        raise FilesystemError(errno.ENOSPC)
    return {**xattrs, name: value}


def _drop(xattrs: Xattrs, name: bytes) -> Xattrs:
    return {other: value for other, value in (xattrs or {}).items() if other != name} or None
