"""The calls made of a model: what POSIX says, over plain dicts. It is what the others are compared with.

Its clock stands still during a call; whoever makes the calls moves it between them.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field

from tests.calls import RENAME_EXCHANGE, RENAME_NOREPLACE, Attributes

NAME_MAX_BYTES = 255
CREATE = os.O_CREAT | os.O_EXCL


@dataclass(eq=False)
class Node:
    """A file, directory, symlink or whatever else has a name. `entries` is None but for directories, `target` but for symlinks.

    `content` has the bytes that have been written, by position: all others are zeros.
    """

    mode: int
    uid: int
    gid: int
    now_ns: int
    rdev: int = 0
    target: bytes | None = None
    nlink: int = 1
    size: int = 0
    content: dict[int, int] = field(default_factory=dict)
    xattrs: dict[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.entries: dict[str, Node] | None = {} if stat.S_ISDIR(self.mode) else None
        self.atime_ns = self.mtime_ns = self.ctime_ns = self.now_ns
        if self.entries is not None:
            self.nlink = 2
        self.size = len(self.target or b"")

    @property
    def is_directory(self) -> bool:
        """True for a directory."""
        return self.entries is not None

    def attributes(self) -> Attributes:
        """What stat(2) tells."""
        return Attributes(
            *(id(self), self.mode, self.nlink, self.uid, self.gid, self.rdev, self.size),
            *(self.atime_ns, self.mtime_ns, self.ctime_ns),
        )

    def below(self) -> Iterator[Node]:
        """This one and all below it."""
        yield self
        for child in (self.entries or {}).values():
            yield from child.below()


class ModelCalls:
    """See `Calls`."""

    def __init__(self) -> None:
        self.now_ns = 0
        self._owner = os.geteuid(), os.getegid()
        self._root = Node(stat.S_IFDIR | 0o755, *self._owner, self.now_ns)
        self._handles: dict[int, Node] = {}

    # -- walking -----------------------------------------------------------------------------------------------------

    def _directory(self, node: Node) -> dict[str, Node]:
        if node.entries is None:
            raise OSError(errno.ENOTDIR, "not a directory")
        return node.entries

    def _lookup(self, parent: Node, name: str) -> Node:
        entries = self._directory(parent)
        if len(os.fsencode(name)) > NAME_MAX_BYTES:
            raise OSError(errno.ENAMETOOLONG, name)
        if name not in entries:
            raise OSError(errno.ENOENT, name)
        return entries[name]

    def _walk(self, path: str) -> tuple[Node, str]:
        """The directory that `path` is in, and its last name."""
        node, (*above, name) = self._root, path.split("/")
        for part in above:
            node = self._lookup(node, part)
        self._directory(node)
        return node, name

    def _at(self, path: str) -> Node:
        return self._lookup(*self._walk(path)) if path else self._root

    def kind(self, path: str) -> int:
        """The type bits of the inode at `path`, 0 for none."""
        try:
            return stat.S_IFMT(self._at(path).mode)
        except OSError:
            return 0

    def same(self, one: str, other: str) -> bool:
        """Whether both paths lead to one inode."""
        try:
            return self._at(one) is self._at(other)
        except OSError:
            return False

    def _enter(self, parent: Node, name: str, node: Node) -> None:
        self._directory(parent)[name] = node
        parent.nlink += node.is_directory
        parent.mtime_ns = parent.ctime_ns = self.now_ns

    def _leave(self, parent: Node, name: str) -> Node:
        node = self._directory(parent).pop(name)
        parent.nlink -= node.is_directory
        parent.mtime_ns = parent.ctime_ns = node.ctime_ns = self.now_ns
        return node

    def _remove(self, parent: Node, name: str) -> None:
        node = self._leave(parent, name)
        node.nlink = 0 if node.is_directory else node.nlink - 1

    # -- names -------------------------------------------------------------------------------------------------------

    def mkdir(self, path: str, mode: int = 0o755) -> None:
        self._make(path, stat.S_IFDIR | mode)

    def mknod(self, path: str, mode: int, rdev: int = 0) -> None:
        self._make(path, mode, rdev)

    def symlink(self, target: bytes, path: str) -> None:
        self._make(path, stat.S_IFLNK | 0o777, 0, target)

    def _make(self, path: str, mode: int, rdev: int = 0, target: bytes | None = None) -> Node:
        parent, name = self._new_name(path)
        uid, gid = self._owner
        if parent.mode & stat.S_ISGID:
            gid = parent.gid
            mode |= stat.S_ISGID if stat.S_ISDIR(mode) else 0
        node = Node(mode, uid, gid, self.now_ns, rdev, target)
        self._enter(parent, name, node)
        return node

    def _new_name(self, path: str) -> tuple[Node, str]:
        parent, name = self._walk(path)
        try:
            self._lookup(parent, name)
        except FileNotFoundError:
            if not parent.nlink:
                raise
            return parent, name
        raise OSError(errno.EEXIST, path)

    def readlink(self, path: str) -> bytes:
        target = self._at(path).target
        if target is None:
            raise OSError(errno.EINVAL, "not a symlink")
        return target

    def link(self, old: str, new: str) -> None:
        node = self._at(old)
        parent, name = self._new_name(new)
        if node.is_directory:
            raise OSError(errno.EPERM, "a directory has one name")
        node.nlink += 1
        node.ctime_ns = self.now_ns
        self._enter(parent, name, node)

    def unlink(self, path: str) -> None:
        parent, name = self._walk(path)
        if self._lookup(parent, name).is_directory:
            raise OSError(errno.EISDIR, path)
        self._remove(parent, name)

    def rmdir(self, path: str) -> None:
        parent, name = self._walk(path)
        if self._directory(self._lookup(parent, name)):
            raise OSError(errno.ENOTEMPTY, path)
        self._remove(parent, name)

    def rename(self, old: str, new: str, flags: int = 0) -> None:
        (parent, name), (new_parent, new_name) = self._walk(old), self._walk(new)
        node = self._lookup(parent, name)
        replaced = self._replaced(new_parent, new_name)
        if replaced is None and flags & RENAME_EXCHANGE:
            raise OSError(errno.ENOENT, new)
        if replaced is not None and flags & RENAME_NOREPLACE:
            raise OSError(errno.EEXIST, new)
        if new_parent in node.below() or (flags & RENAME_EXCHANGE and replaced is not None and parent in replaced.below()):
            raise OSError(errno.EINVAL, "below itself")
        if replaced is node:
            return
        if replaced is None:
            self._enter(new_parent, new_name, self._leave(parent, name))
        elif flags & RENAME_EXCHANGE:
            self._leave(parent, name), self._leave(new_parent, new_name)
            self._enter(parent, name, replaced)
            self._enter(new_parent, new_name, node)
        else:
            self._refuse_replacement(parent, node, replaced)
            self._remove(new_parent, new_name)
            self._enter(new_parent, new_name, self._leave(parent, name))

    def _replaced(self, parent: Node, name: str) -> Node | None:
        try:
            return self._lookup(parent, name)
        except FileNotFoundError:
            return None

    def _refuse_replacement(self, parent: Node, node: Node, replaced: Node) -> None:
        if parent in replaced.below():
            raise OSError(errno.ENOTEMPTY, "in the way")
        if node.is_directory and not replaced.is_directory:
            raise OSError(errno.ENOTDIR, "in the way")
        if replaced.is_directory and not node.is_directory:
            raise OSError(errno.EISDIR, "in the way")
        if replaced.entries:
            raise OSError(errno.ENOTEMPTY, "in the way")

    def listdir(self, path: str) -> list[str]:
        return self._list(self._at(path))

    def _list(self, node: Node) -> list[str]:
        names = sorted(self._directory(node))
        self._read(node)
        return names

    # -- attributes --------------------------------------------------------------------------------------------------

    def _read(self, node: Node) -> None:
        """atime moves as relatime says. Nothing here is ever a day old."""
        if node.atime_ns <= max(node.mtime_ns, node.ctime_ns):
            node.atime_ns = self.now_ns

    def stat(self, path: str) -> Attributes:
        return self._at(path).attributes()

    def chmod(self, path: str, mode: int) -> None:
        node = self._at(path)
        node.mode, node.ctime_ns = stat.S_IFMT(node.mode) | mode, self.now_ns

    def chown(self, path: str, uid: int, gid: int) -> None:
        node = self._at(path)
        node.uid, node.gid = node.uid if uid == -1 else uid, node.gid if gid == -1 else gid
        node.ctime_ns = self.now_ns

    def utimens(self, path: str, atime_ns: int, mtime_ns: int) -> None:
        node = self._at(path)
        node.atime_ns, node.mtime_ns, node.ctime_ns = atime_ns, mtime_ns, self.now_ns

    def truncate(self, path: str, size: int) -> None:
        self._resize(self._at(path), size)

    def _resize(self, node: Node, size: int) -> None:
        if node.is_directory:
            raise OSError(errno.EISDIR, "a directory has no size")
        if not stat.S_ISREG(node.mode) or size < 0:
            raise OSError(errno.EINVAL, "no such size")
        node.size, node.mtime_ns, node.ctime_ns = size, self.now_ns, self.now_ns
        node.content = {at: byte for at, byte in node.content.items() if at < size}

    def setxattr(self, path: str, name: str, value: bytes) -> None:
        node = self._at(path)
        node.xattrs[name], node.ctime_ns = value, self.now_ns

    def getxattr(self, path: str, name: str) -> bytes:
        xattrs = self._at(path).xattrs
        if name not in xattrs:
            raise OSError(errno.ENODATA, name)
        return xattrs[name]

    def listxattr(self, path: str) -> list[str]:
        return sorted(self._at(path).xattrs)

    def removexattr(self, path: str, name: str) -> None:
        node = self._at(path)
        self.getxattr(path, name)
        del node.xattrs[name]
        node.ctime_ns = self.now_ns

    def statfs(self) -> tuple[int, int]:
        raise NotImplementedError("a model has no space")

    # -- handles -----------------------------------------------------------------------------------------------------

    def open(self, handle: int, path: str, flags: int, mode: int = 0o644) -> None:
        assert handle not in self._handles
        parent, name = self._walk(path)
        node = self._replaced(parent, name)
        if node is None and flags & os.O_CREAT:
            node = self._make(path, stat.S_IFREG | mode)
        elif node is None:
            raise OSError(errno.ENOENT, path)
        elif flags & CREATE == CREATE:
            raise OSError(errno.EEXIST, path)
        elif flags & os.O_DIRECTORY:
            self._directory(node)
        elif node.is_directory:
            raise OSError(errno.EISDIR, path)
        elif flags & os.O_TRUNC:
            self._resize(node, 0)
        self._handles[handle] = node

    def _handle(self, handle: int) -> Node:
        if handle not in self._handles:
            raise OSError(errno.EBADF, f"no handle {handle}")
        return self._handles[handle]

    def close(self, handle: int) -> None:
        self._handle(handle)
        del self._handles[handle]

    def read(self, handle: int, offset: int, length: int) -> bytes:
        node = self._handle(handle)
        if node.is_directory:
            raise OSError(errno.EISDIR, "a directory has no bytes")
        self._read(node)
        return bytes(node.content.get(at, 0) for at in range(offset, min(offset + length, node.size)))

    def write(self, handle: int, offset: int, data: bytes) -> int:
        node = self._handle(handle)
        node.content.update(enumerate(data, offset))
        node.size = max(node.size, offset + len(data))
        node.mtime_ns = node.ctime_ns = self.now_ns
        return len(data)

    def ftruncate(self, handle: int, size: int) -> None:
        self._resize(self._handle(handle), size)

    def fstat(self, handle: int) -> Attributes:
        return self._handle(handle).attributes()

    def fsync(self, handle: int) -> None:
        self._handle(handle)

    def entries(self, handle: int) -> list[str]:
        return self._list(self._handle(handle))

    def close_all(self) -> None:
        """Leave no handle open."""
        self._handles.clear()
