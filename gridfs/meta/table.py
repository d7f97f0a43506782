"""The inode table: a pure state machine, and the one home of every POSIX rule about names and attributes.

`apply(op)` changes the table or raises FilesystemError and changes nothing. It reads no clock, does no I/O and makes up no
number: the time, new inode numbers and the caller's identity travel inside the op, so two tables that were equal and applied
the same ops are equal. That is what lets a mount answer from its own replica and send the ops on afterwards.

What has to do with extended attributes stands in `gridfs.meta.xattrs`, and with ACLs in `gridfs.meta.acl`.

Who may do what is the kernel's to enforce (`default_permissions`): permission bits, ACLs, the sticky bit, who may set times,
and that a write or chmod by the wrong user clears setuid or setgid.
"""

from __future__ import annotations

import errno
import stat
from collections.abc import Callable
from typing import Any

from gridfs.config import (
    CHUNK_SIZE_BYTES,
    FILE_SIZE_MAX_BYTES,
    NAME_MAX_BYTES,
    SYMLINK_MAX_BYTES,
)
from gridfs.errors import FilesystemError
from gridfs.meta import xattrs
from gridfs.meta.directory import ChunkDirectory, Servers
from gridfs.meta.inode import ROOT_INO, Inode, without_privileges
from gridfs.meta.invariants import faults

Op = tuple[Any, ...]
"""(kind, *arguments): the kind names a method of `Table` and the arguments are plain values that msgpack carries."""

RENAME_NOREPLACE, RENAME_EXCHANGE = 1, 2  # linux/fs.h
LINKS_MAX = (1 << 31) - 1
"""Names of a file and subdirectories of a directory: what nlink can count in FUSE and in every stat(2), as on XFS."""

_KINDS = (
    *("format", "make", "link", "unlink", "rmdir", "rename", "reap", "change", "extend", "touch"),
    *("set_xattr", "remove_xattr", "place", "replace"),
)


class Changes:
    """The rows that ops have touched since the last `clear`: what a store must write. Whoever owns the table clears them."""

    def __init__(self) -> None:
        self.inodes: set[int] = set()
        self.names: dict[tuple[int, bytes], None] = {}  # a dict, since the order is kept in the store
        self.chunks: set[tuple[int, int]] = set()

    def __bool__(self) -> bool:
        return bool(self.inodes or self.names or self.chunks)

    def merge(self, other: Changes) -> None:
        """These rows have changed too, and after ours."""
        self.inodes |= other.inodes
        for name in other.names:
            self.names.pop(name, None)
            self.names[name] = None
        self.chunks |= other.chunks

    def clear(self) -> None:
        """Everything has been written."""
        self.inodes.clear()
        self.names.clear()
        self.chunks.clear()


class Table:
    """Inodes, names and the chunk directory.

    Owned by one task at a time; no method awaits. Invariants, asserted by `check`: every name leads to an inode; nlink is
    the count of names (2 + subdirectories for a directory, 0 for an orphan); the orphans are just the inodes without a name.
    """

    def __init__(self) -> None:
        self.inodes: dict[int, Inode] = {}
        self.directory = ChunkDirectory()
        self.orphans: set[int] = set()
        self.next_ino = ROOT_INO + 1
        self.changes = Changes()
        self._kinds: dict[str, Callable[..., Any]] = {kind: getattr(self, kind) for kind in _KINDS}

    def apply(self, op: Op) -> Any:
        """Carry out one op. Raises FilesystemError, having changed nothing."""
        return self._kinds[op[0]](*op[1:])

    # -- reading -----------------------------------------------------------------------------------------------------

    def inode(self, ino: int) -> Inode:
        """The inode, orphans included. Raises ENOENT."""
        try:
            return self.inodes[ino]
        except KeyError:
            raise FilesystemError(errno.ENOENT, f"no inode {ino}") from None

    def directory_entries(self, ino: int) -> dict[bytes, int]:
        """The names in directory `ino`, not to be changed. Raises ENOENT, ENOTDIR."""
        entries = self.inode(ino).entries
        if entries is None:
            raise FilesystemError(errno.ENOTDIR)
        return entries

    def lookup(self, parent: int, name: bytes) -> Inode:
        """The inode that `name` leads to. Raises ENOENT, ENOTDIR, ENAMETOOLONG."""
        ino = self.directory_entries(parent).get(name)
        if ino is None:
            if len(name) > NAME_MAX_BYTES:
                raise FilesystemError(errno.ENAMETOOLONG)
            raise FilesystemError(errno.ENOENT)
        return self.inodes[ino]

    # -- names -------------------------------------------------------------------------------------------------------

    def format(self, now_ns: int, uid: int, gid: int) -> None:
        """Make the root directory of an empty table."""
        mode = stat.S_IFDIR | 0o755
        root = Inode((ROOT_INO, mode, uid, gid, 2, 0, 0, ROOT_INO, now_ns, now_ns, now_ns, None, None))
        self.inodes[ROOT_INO] = root
        self.changes.inodes.add(ROOT_INO)

    def make(
        self,
        now_ns: int,
        ino: int,
        parent_ino: int,
        name: bytes,
        mode: int,
        uid: int,
        gid: int,
        rdev: int = 0,
        target: bytes | None = None,
        umask: int = 0,
    ) -> Inode:
        """A new file, directory, symlink, fifo, socket or device, as the type in `mode` says; returns its inode.

        Raises ENOENT (no such directory), ENOTDIR, EEXIST, ENAMETOOLONG, EINVAL, EMLINK. A setgid directory hands down its
        group, and to directories the setgid bit (inode(7)). A default ACL counts in place of the umask (acl(5)).
        """
        if target is not None and not 0 < len(target) <= SYMLINK_MAX_BYTES:
            raise FilesystemError(errno.ENAMETOOLONG if target else errno.ENOENT)
        parent = self._parent_for_new_name(parent_ino, name)
        is_directory = stat.S_ISDIR(mode)
        if is_directory:
            _refuse_another_link(parent)
        kept, mode = xattrs.inherited(parent, mode, umask)
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            mode |= stat.S_ISGID if is_directory else 0
        nlink, size = (2, 0) if is_directory else (1, len(target or b""))
        inode = Inode((ino, mode, uid, gid, nlink, size, rdev, parent_ino, now_ns, now_ns, now_ns, target, kept))
        self.inodes[ino] = inode
        self.next_ino = max(self.next_ino, ino + 1)
        parent.nlink += is_directory
        self._enter(parent, name, inode, now_ns)
        return inode

    def link(self, now_ns: int, ino: int, parent_ino: int, name: bytes) -> Inode:
        """Another name for `ino`. Raises EPERM for a directory, ENOENT for an orphan, EMLINK, and what `make` raises."""
        inode = self.inode(ino)
        parent = self._parent_for_new_name(parent_ino, name)
        if inode.is_directory:
            raise FilesystemError(errno.EPERM)
        if not inode.nlink:
            raise FilesystemError(errno.ENOENT)
        _refuse_another_link(inode)
        inode.nlink += 1
        inode.ctime_ns = now_ns
        self._enter(parent, name, inode, now_ns)
        return inode

    def unlink(self, now_ns: int, parent_ino: int, name: bytes) -> Inode:
        """Remove a name that is not a directory's; returns its inode, an orphan if that was the last name."""
        inode = self.lookup(parent_ino, name)
        if inode.is_directory:
            raise FilesystemError(errno.EISDIR)
        self._remove(self.inodes[parent_ino], name, inode, now_ns)
        return inode

    def rmdir(self, now_ns: int, parent_ino: int, name: bytes) -> Inode:
        """Remove an empty directory; returns its inode, an orphan. Raises ENOTDIR, ENOTEMPTY, ENOENT."""
        inode = self.lookup(parent_ino, name)
        if not inode.is_directory:
            raise FilesystemError(errno.ENOTDIR)
        if inode.entries:
            raise FilesystemError(errno.ENOTEMPTY)
        self._remove(self.inodes[parent_ino], name, inode, now_ns)
        return inode

    def rename(
        self, now_ns: int, parent_ino: int, name: bytes, new_parent_ino: int, new_name: bytes, flags: int = 0
    ) -> Inode | None:
        """rename(2) and renameat2(2): returns the inode that lost its name to the moved one, if one did.

        Raises ENOENT, ENOTDIR, EISDIR, ENOTEMPTY, EEXIST (NOREPLACE), ENAMETOOLONG, EMLINK, and EINVAL for a directory moved
        below itself or unknown flags. Renaming to another link of the same inode does nothing (POSIX rename).
        """
        if flags not in (0, RENAME_NOREPLACE, RENAME_EXCHANGE):
            raise FilesystemError(errno.EINVAL)
        inode = self.lookup(parent_ino, name)
        entries = self.directory_entries(new_parent_ino)
        parent, new_parent = self.inodes[parent_ino], self.inodes[new_parent_ino]
        replaced = self.inodes.get(entries.get(new_name, 0))
        if replaced is None:
            if flags == RENAME_EXCHANGE:
                raise FilesystemError(errno.ENOENT)
            self._parent_for_new_name(new_parent_ino, new_name)
            _refuse_move(inode, parent, new_parent)
        elif flags == RENAME_NOREPLACE:
            raise FilesystemError(errno.EEXIST)
        self._refuse_loop(inode, new_parent_ino)
        if flags == RENAME_EXCHANGE and replaced is not None:
            self._refuse_loop(replaced, parent_ino)
            self._exchange(now_ns, (parent, name, inode), (new_parent, new_name, replaced))
            return None
        if replaced is inode:
            return None
        if replaced is not None:
            _refuse_replacement(inode, replaced)
            self._remove(new_parent, new_name, replaced, now_ns)
        self._leave(parent, name, now_ns)
        parent.nlink -= inode.is_directory
        new_parent.nlink += inode.is_directory
        if inode.is_directory:
            inode.parent = new_parent_ino
        inode.ctime_ns = now_ns
        self._enter(new_parent, new_name, inode, now_ns)
        return replaced

    def reap(self, ino: int) -> list[tuple[int, Servers]]:
        """End an orphan that nobody holds open any more; returns its chunks, by index, for someone to drop."""
        if ino not in self.orphans:
            raise FilesystemError(errno.EINVAL, f"inode {ino} is not an orphan")
        chunks = list(self.directory.chunks(ino).items())
        self._drop_chunks(ino, 0)
        self.orphans.discard(ino)
        del self.inodes[ino]
        self.changes.inodes.add(ino)
        return chunks

    # -- attributes --------------------------------------------------------------------------------------------------

    def change(
        self,
        now_ns: int,
        ino: int,
        mode: int | None = None,
        uid: int | None = None,
        gid: int | None = None,
        size: int | None = None,
        atime_ns: int | None = None,
        mtime_ns: int | None = None,
    ) -> Inode:
        """chmod, chown, truncate and utimens: what is None stays. Raises ENOENT, EISDIR, EINVAL, EFBIG.

        A new owner or group of what is no directory takes setuid and setgid away, unless a mode is given too (chown(2)).
        """
        inode = self.inode(ino)
        if size is not None:
            self._refuse_size(inode, size)
            if size != inode.size:
                self._drop_chunks(ino, -(-size // CHUNK_SIZE_BYTES))
            inode.size, inode.mtime_ns = size, now_ns
        if mode is None and not uid is gid is None and not inode.is_directory:
            inode.mode = without_privileges(inode.mode)
        if mode is not None:
            inode.mode = stat.S_IFMT(inode.mode) | stat.S_IMODE(mode)
            inode.xattrs = xattrs.after_chmod(inode, inode.mode)
        inode.uid = inode.uid if uid is None else uid
        inode.gid = inode.gid if gid is None else gid
        inode.atime_ns = inode.atime_ns if atime_ns is None else atime_ns
        inode.mtime_ns = inode.mtime_ns if mtime_ns is None else mtime_ns
        inode.ctime_ns = now_ns
        self.changes.inodes.add(ino)
        return inode

    def extend(self, written_ns: int | None, ino: int, size: int) -> Inode:
        """Bytes have been written up to `size` or before: the size never shrinks.

        mtime moves to `written_ns` (None: it has been told), and ctime, unless it has moved since that write.
        """
        inode = self.inode(ino)
        self._refuse_size(inode, size)
        inode.size = max(inode.size, size)
        if written_ns is not None:
            inode.mtime_ns, inode.ctime_ns = written_ns, max(written_ns, inode.ctime_ns)
        self.changes.inodes.add(ino)
        return inode

    def touch(self, now_ns: int, ino: int) -> Inode:
        """The file or directory has been read: atime alone moves."""
        inode = self.inode(ino)
        inode.atime_ns = now_ns
        self.changes.inodes.add(ino)
        return inode

    def set_xattr(self, now_ns: int, ino: int, name: bytes, value: bytes, flags: int = 0, clears_setgid: bool = False) -> None:
        """setxattr(2). Raises ENOENT, and as `xattrs.with_xattr`. An access ACL brings the mode bits with it.

        `clears_setgid` is for an access ACL set by one who is not in the inode's group, as for such a one's chmod.
        """
        inode = self.inode(ino)
        inode.xattrs, mode = xattrs.with_xattr(inode, name, value, flags)
        inode.mode = mode & ~stat.S_ISGID if clears_setgid else mode
        inode.ctime_ns = now_ns
        self.changes.inodes.add(ino)

    def remove_xattr(self, now_ns: int, ino: int, name: bytes) -> None:
        """removexattr(2). Raises ENOENT, ENODATA. The mode bits stay when an ACL goes."""
        inode = self.inode(ino)
        inode.xattrs = xattrs.without_xattr(inode, name)
        inode.ctime_ns = now_ns
        self.changes.inodes.add(ino)

    def place(self, ino: int, index: int, servers: Servers) -> Servers:
        """A new chunk is held by `servers` from now on; returns who holds it: one that has been placed stays where it is.

        Raises ENOENT, and EINVAL for what is no regular file.
        """
        inode = self.inode(ino)
        if not inode.is_regular:
            raise FilesystemError(errno.EINVAL)
        placed = self.directory.servers(ino, index)
        if not placed:
            placed = tuple(servers)
            self.directory.place(inode.ino, index, placed)  # the one object that stands for the number
            self.changes.chunks.add((ino, index))
        return placed

    def replace(self, ino: int, index: int, before: Servers, after: Servers) -> Servers:
        """What `before` held is held by `after` from now on; returns who holds it now. Raises ENOENT, and EINVAL for nobody."""
        self.inode(ino)
        if not after:
            raise FilesystemError(errno.EINVAL)
        held = self.directory.servers(ino, index)
        if held == tuple(before) and held:
            held = tuple(after)
            self.directory.place(ino, index, held)
            self.changes.chunks.add((ino, index))
        return held

    # -- what the rules are made of ----------------------------------------------------------------------------------

    def _parent_for_new_name(self, parent_ino: int, name: bytes) -> Inode:
        """The directory, if `name` can be made in it."""
        entries = self.directory_entries(parent_ino)
        if len(name) > NAME_MAX_BYTES:
            raise FilesystemError(errno.ENAMETOOLONG)
        if name in entries or name in (b".", b".."):
            raise FilesystemError(errno.EEXIST)
        if not name or b"/" in name or b"\0" in name:
            raise FilesystemError(errno.EINVAL)
        parent = self.inodes[parent_ino]
        if not parent.nlink:
            raise FilesystemError(errno.ENOENT, "the directory has been removed")
        return parent

    def _enter(self, parent: Inode, name: bytes, inode: Inode, now_ns: int) -> None:
        assert parent.entries is not None
        parent.entries.pop(name, None)  # in an exchange: a name that leads elsewhere goes last, as in the store
        parent.entries[name] = inode.ino
        self._names_changed(parent, name, now_ns)
        self.changes.inodes.add(inode.ino)

    def _leave(self, parent: Inode, name: bytes, now_ns: int) -> None:
        assert parent.entries is not None
        del parent.entries[name]
        self._names_changed(parent, name, now_ns)

    def _names_changed(self, parent: Inode, name: bytes, now_ns: int) -> None:
        parent.mtime_ns = parent.ctime_ns = now_ns
        self.changes.inodes.add(parent.ino)
        self.changes.names.pop((parent.ino, name), None)
        self.changes.names[parent.ino, name] = None

    def _remove(self, parent: Inode, name: bytes, inode: Inode, now_ns: int) -> None:
        """Take a name away, and count it."""
        self._leave(parent, name, now_ns)
        if inode.is_directory:
            parent.nlink -= 1
            inode.nlink = 0
        else:
            inode.nlink -= 1
        inode.ctime_ns = now_ns
        if not inode.nlink:
            self.orphans.add(inode.ino)
        self.changes.inodes.add(inode.ino)

    def _exchange(self, now_ns: int, one: tuple[Inode, bytes, Inode], other: tuple[Inode, bytes, Inode]) -> None:
        (parent, name, inode), (new_parent, new_name, new_inode) = one, other
        balance = new_inode.is_directory - inode.is_directory
        if balance and parent is not new_parent:
            _refuse_another_link(parent if balance > 0 else new_parent)
        parent.nlink += balance
        new_parent.nlink -= balance
        for directory, entry, arrived in ((parent, name, new_inode), (new_parent, new_name, inode)):
            if arrived.is_directory:
                arrived.parent = directory.ino
            arrived.ctime_ns = now_ns
            self._enter(directory, entry, arrived, now_ns)

    def _refuse_loop(self, inode: Inode, new_parent_ino: int) -> None:
        """EINVAL when directory `inode` would move into itself or below."""
        if not inode.is_directory:
            return
        above = new_parent_ino
        while above != ROOT_INO:
            if above == inode.ino:
                raise FilesystemError(errno.EINVAL)
            above = self.inodes[above].parent

    def _refuse_size(self, inode: Inode, size: int) -> None:
        if inode.is_directory:
            raise FilesystemError(errno.EISDIR)
        if not inode.is_regular or size < 0:
            raise FilesystemError(errno.EINVAL)
        if size > FILE_SIZE_MAX_BYTES:
            raise FilesystemError(errno.EFBIG)

    def _drop_chunks(self, ino: int, first_index: int) -> None:
        self.changes.chunks.update((ino, index) for index in self.directory.drop_from(ino, first_index))

    def check(self) -> list[str]:
        """The invariants that do not hold, one sentence each; empty when all is well."""
        return faults(self.inodes, self.directory, self.orphans, self.next_ino)


def _refuse_replacement(inode: Inode, replaced: Inode) -> None:
    """ENOTDIR, EISDIR or ENOTEMPTY when rename may not put `inode` in the place of `replaced`."""
    if inode.is_directory and not replaced.is_directory:
        raise FilesystemError(errno.ENOTDIR)
    if replaced.is_directory and not inode.is_directory:
        raise FilesystemError(errno.EISDIR)
    if replaced.entries:
        raise FilesystemError(errno.ENOTEMPTY)


def _refuse_move(inode: Inode, parent: Inode, new_parent: Inode) -> None:
    """EMLINK when rename may not make directory `inode` another one of `new_parent`."""
    if inode.is_directory and parent is not new_parent:
        _refuse_another_link(new_parent)


def _refuse_another_link(inode: Inode) -> None:
    if inode.nlink >= LINKS_MAX:
        raise FilesystemError(errno.EMLINK)
