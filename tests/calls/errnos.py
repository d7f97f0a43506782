"""The errno of every wrong call."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from functools import partial

from tests.calls import FIRST, RENAME_EXCHANGE, RENAME_NOREPLACE, Calls, get, put
from tests.suite.syscalls import fails

Action = Callable[[Calls], object]

_LONG = "n" * 256
WRONG: dict[str, tuple[int, Action]] = {
    "open missing": (errno.ENOENT, lambda calls: calls.open(FIRST, "missing", os.O_RDONLY)),
    "open below missing": (errno.ENOENT, lambda calls: calls.open(FIRST, "missing/x", os.O_RDONLY)),
    "create below missing": (errno.ENOENT, lambda calls: put(calls, "missing/x")),
    "create below file": (errno.ENOTDIR, lambda calls: put(calls, "file/x")),
    "open a directory to write": (errno.EISDIR, lambda calls: calls.open(FIRST, "full", os.O_RDWR)),
    "open a file as directory": (errno.ENOTDIR, lambda calls: calls.open(FIRST, "file", os.O_DIRECTORY)),
    "stat missing": (errno.ENOENT, lambda calls: calls.stat("missing")),
    "stat below file": (errno.ENOTDIR, lambda calls: calls.stat("file/x")),
    "unlink missing": (errno.ENOENT, lambda calls: calls.unlink("missing")),
    "unlink a directory": (errno.EISDIR, lambda calls: calls.unlink("empty")),
    "rmdir missing": (errno.ENOENT, lambda calls: calls.rmdir("missing")),
    "rmdir a file": (errno.ENOTDIR, lambda calls: calls.rmdir("file")),
    "rmdir full": (errno.ENOTEMPTY, lambda calls: calls.rmdir("full")),
    "mkdir existing": (errno.EEXIST, lambda calls: calls.mkdir("empty")),
    "mkdir over a file": (errno.EEXIST, lambda calls: calls.mkdir("file")),
    "symlink existing": (errno.EEXIST, lambda calls: calls.symlink(b"x", "file")),
    "mknod existing": (errno.EEXIST, lambda calls: calls.mknod("file", stat.S_IFREG)),
    "link missing": (errno.ENOENT, lambda calls: calls.link("missing", "x")),
    "link existing": (errno.EEXIST, lambda calls: calls.link("file", "full")),
    "link a directory": (errno.EPERM, lambda calls: calls.link("empty", "x")),
    "rename missing": (errno.ENOENT, lambda calls: calls.rename("missing", "x")),
    "rename below missing": (errno.ENOENT, lambda calls: calls.rename("file", "missing/x")),
    "rename below file": (errno.ENOTDIR, lambda calls: calls.rename("empty", "file/x")),
    "rename below itself": (errno.EINVAL, lambda calls: calls.rename("full", "full/x")),
    "rename a file onto a directory": (errno.EISDIR, lambda calls: calls.rename("file", "empty")),
    "rename a directory onto a file": (errno.ENOTDIR, lambda calls: calls.rename("empty", "file")),
    "rename onto a full directory": (errno.ENOTEMPTY, lambda calls: calls.rename("empty", "full")),
    "rename onto anything, noreplace": (errno.EEXIST, lambda calls: calls.rename("file", "empty", RENAME_NOREPLACE)),
    "exchange without a partner": (errno.ENOENT, lambda calls: calls.rename("file", "missing", RENAME_EXCHANGE)),
    "exchange below itself": (errno.EINVAL, lambda calls: calls.rename("full", "full/inside", RENAME_EXCHANGE)),
    "exchange above itself": (errno.EINVAL, lambda calls: calls.rename("full/inside", "full", RENAME_EXCHANGE)),
    "readlink of a file": (errno.EINVAL, lambda calls: calls.readlink("file")),
    "list a file": (errno.ENOTDIR, lambda calls: calls.listdir("file")),
    "truncate a directory": (errno.EISDIR, lambda calls: calls.truncate("empty", 0)),
    "truncate to less than nothing": (errno.EINVAL, lambda calls: calls.truncate("file", -1)),
    "too long to stat": (errno.ENAMETOOLONG, lambda calls: calls.stat(_LONG)),
    "too long to make": (errno.ENAMETOOLONG, lambda calls: put(calls, _LONG)),
    "too long for rename": (errno.ENAMETOOLONG, lambda calls: calls.rename("file", _LONG)),
    "too long for link": (errno.ENAMETOOLONG, lambda calls: calls.link("file", _LONG)),
}


def fails_and_changes_nothing(code: int, action: Action, calls: Calls) -> None:
    """With the errno that POSIX names."""
    put(calls, "file", b"content")
    calls.mkdir("full")
    calls.mkdir("full/inside")
    calls.mkdir("empty")
    before = {name: calls.stat(name)._replace(atime_ns=0) for name in calls.listdir("")}
    with fails(code):
        action(calls)
    assert {name: calls.stat(name)._replace(atime_ns=0) for name in calls.listdir("")} == before
    assert get(calls, "file") == b"content"


CASES: dict[str, Callable[[Calls], None]] = {
    f"errno: {name}": partial(fails_and_changes_nothing, *rest) for name, rest in WRONG.items()
}
