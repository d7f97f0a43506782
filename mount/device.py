"""mount(2) of a FUSE filesystem that is told the umask, instead of modes from which the kernel has taken it.

A default ACL overrules the umask, umask(2). The kernel leaves that to a filesystem that asks for FUSE_DONT_MASK, which pyfuse3
has no way to do, or that is mounted with MS_POSIXACL, which libfuse does not do. But libfuse serves a device that somebody
else has mounted: its mountpoint is then `/dev/fd/N`.
"""

from __future__ import annotations

import ctypes
import os
import select
from collections.abc import Set

_MS_NOSUID, _MS_NODEV, _MS_POSIXACL = 2, 4, 1 << 16  # sys/mount.h, linux/mount.h
_MNT_DETACH = 2
_SETS = {"ro": 1, "nosuid": 2, "nodev": 4, "noexec": 8, "sync": 16, "dirsync": 128, "noatime": 1024, "relatime": 1 << 21}
_CLEARS = {"suid": _MS_NOSUID, "dev": _MS_NODEV}

_libc = ctypes.CDLL(None, use_errno=True)


def mount(mountpoint: str, options: Set[str]) -> int:
    """Mount at `mountpoint`, visible to every user; returns the descriptor to serve it from. Raises OSError; needs root."""
    fd = os.open("/dev/fuse", os.O_RDWR)
    flags = _MS_NOSUID | _MS_NODEV | _MS_POSIXACL
    for option in options:
        flags = (flags | _SETS.get(option, 0)) & ~_CLEARS.get(option, 0)
    told = f"fd={fd},rootmode=40000,user_id=0,group_id=0,default_permissions,allow_other"
    if _libc.mount(b"gridfs", os.fsencode(mountpoint), b"fuse.gridfs", ctypes.c_ulong(flags), told.encode()):
        code = ctypes.get_errno()
        os.close(fd)
        raise OSError(code, os.strerror(code), mountpoint)
    return fd


def is_mounted(fd: int) -> bool:
    """False once the mount of `mount` has been unmounted: something else may be at its mountpoint then."""
    poll = select.poll()
    poll.register(fd, 0)
    return not poll.poll(0)


def unmount(mountpoint: str) -> None:
    """Take the mount away from its mountpoint, as libfuse does: at once, and for good when the last file is closed."""
    _libc.umount2(os.fsencode(mountpoint), _MNT_DETACH)
