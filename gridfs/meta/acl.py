"""POSIX access control lists, acl(5): how the kernel's extended attributes carry them, and what they mean for mode bits.

Pure functions. Who may do what by an ACL is the kernel's to decide; it leaves to the filesystem that an ACL and the mode of
its inode say the same, and that new inodes inherit.
"""

from __future__ import annotations

import errno
import re
import struct
from typing import NamedTuple

from gridfs.errors import FilesystemError

ACCESS, DEFAULT = b"system.posix_acl_access", b"system.posix_acl_default"
USER_OBJ, USER, GROUP_OBJ, GROUP, MASK, OTHER = 0x01, 0x02, 0x04, 0x08, 0x10, 0x20  # linux/posix_acl.h
NOBODY = 0xFFFFFFFF
"""ACL_UNDEFINED_ID: the `who` of an entry that names nobody."""

_VERSION = 2  # POSIX_ACL_XATTR_VERSION, linux/posix_acl_xattr.h
_HEADER, _ENTRY = struct.Struct("<I"), struct.Struct("<HHI")
_SIZE_MAX_BYTES = 4096
"""The kernel reads an ACL of a FUSE filesystem into one page: a longer one could be set, and never be read again."""
_RWX = 0o7
_MODE = 0o777
_ORDER = re.compile(rb"\x01\x04\x20|\x01\x02*\x04\x08*\x10\x20")
"""The tags of a valid ACL in their order: the three of the mode bits, or those, named ones, and the mask they need."""


class Entry(NamedTuple):
    """What one class of users, or the user or group `who`, may do: `permissions` as in one digit of a mode."""

    tag: int
    permissions: int
    who: int = NOBODY


Acl = tuple[Entry, ...]


def parse(value: bytes) -> Acl:
    """The entries of an ACL as the kernel packs it (version 2); no entry at all says that there is to be no ACL.

    Raises EINVAL for what is no valid ACL, EOPNOTSUPP for another version, E2BIG for more than the kernel reads.
    """
    if len(value) > _SIZE_MAX_BYTES:
        raise FilesystemError(errno.E2BIG)
    if len(value) < _HEADER.size or (len(value) - _HEADER.size) % _ENTRY.size:
        raise FilesystemError(errno.EINVAL)
    if _HEADER.unpack_from(value) != (_VERSION,):
        raise FilesystemError(errno.EOPNOTSUPP)
    acl = tuple(Entry(*fields) for fields in _ENTRY.iter_unpack(value[_HEADER.size :]))
    if acl and not _is_valid(acl):
        raise FilesystemError(errno.EINVAL)
    return tuple(entry if entry.tag in (USER, GROUP) else entry._replace(who=NOBODY) for entry in acl)


def _is_valid(acl: Acl) -> bool:
    if any(entry.tag > OTHER or entry.permissions & ~_RWX for entry in acl):
        return False
    if any(entry.who == NOBODY for entry in acl if entry.tag in (USER, GROUP)):
        return False
    return _ORDER.fullmatch(bytes(entry.tag for entry in acl)) is not None


def pack(acl: Acl) -> bytes:
    """The inverse of `parse`."""
    return _HEADER.pack(_VERSION) + b"".join(_ENTRY.pack(*entry) for entry in acl)


def is_minimal(acl: Acl) -> bool:
    """True when the ACL says no more than mode bits do, so that it need not be kept."""
    return all(entry.tag in (USER_OBJ, GROUP_OBJ, OTHER) for entry in acl)


def mode_with(acl: Acl, mode: int) -> int:
    """The mode with the permissions of the ACL; its mask, where there is one, stands for the group (acl(5))."""
    digits = _digits(acl)
    return mode & ~_MODE | sum(entry.permissions << digits[entry.tag] for entry in acl if entry.tag in digits)


def with_mode(acl: Acl, mode: int) -> Acl:
    """The ACL after chmod(2): its owner, mask (or group, without a mask) and others get the permissions of the mode."""
    digits = _digits(acl)
    return tuple(
        entry._replace(permissions=mode >> digits[entry.tag] & _RWX) if entry.tag in digits else entry for entry in acl
    )


def inherit(default: Acl, mode: int) -> tuple[Acl, int]:
    """The access ACL and the mode of what is made with `mode` in a directory that has this default ACL.

    Neither gives more than `mode` asks for nor more than the default ACL has. The umask has no say.
    """
    mode &= mode_with(default, ~0)
    return with_mode(default, mode), mode


def _digits(acl: Acl) -> dict[int, int]:
    """The tags that correspond to the digits of a mode, and by how many bits each digit is shifted."""
    group = MASK if any(entry.tag == MASK for entry in acl) else GROUP_OBJ
    return {USER_OBJ: 6, group: 3, OTHER: 0}
