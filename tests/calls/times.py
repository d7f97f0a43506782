"""Which times move with what is done."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable
from functools import partial

from tests.calls import FIRST, Calls, get, put
from tests.suite.syscalls import eventually

Action = Callable[[Calls], object]


def let_the_clock_tick(calls: Calls) -> None:
    """Wait until the filesystem's clock, which may be as coarse as 10 ms, has moved on."""
    put(calls, "probe")
    before_ns = calls.stat("probe").ctime_ns

    def moved() -> bool:
        calls.chmod("probe", 0o644)
        return calls.stat("probe").ctime_ns > before_ns

    eventually(moved, "the clock moves")
    calls.unlink("probe")


def moves(path: str, expected: str, action: Action, calls: Calls) -> None:
    """`action` moves those of mtime and ctime of `path` that `expected` names, and no other."""
    calls.mkdir("top")
    calls.mkdir("top/d")
    put(calls, "top/file", b"content")
    calls.link("top/file", "kept")
    put(calls, "outside")
    let_the_clock_tick(calls)
    before = calls.stat(path)
    action(calls)
    after = calls.stat(path)
    moved = {name for name in ("mtime", "ctime") if getattr(after, f"{name}_ns") > getattr(before, f"{name}_ns")}
    assert moved == set(expected.split())


_BOTH = "mtime ctime"
TIMES: dict[str, tuple[str, str, Action]] = {
    "write": ("kept", _BOTH, lambda calls: put(calls, "top/file", b"more than before")),
    "truncate": ("kept", _BOTH, lambda calls: calls.truncate("top/file", 1)),
    "chmod": ("kept", "ctime", lambda calls: calls.chmod("top/file", 0o600)),
    "chown": ("kept", "ctime", lambda calls: calls.chown("top/file", 1, 1)),
    "utimens": ("kept", "ctime", lambda calls: calls.utimens("top/file", 1, calls.stat("top/file").mtime_ns)),
    "setxattr": ("kept", "ctime", lambda calls: calls.setxattr("top/file", "user.note", b"x")),
    "link": ("kept", "ctime", lambda calls: calls.link("top/file", "another")),
    "rename": ("kept", "ctime", lambda calls: calls.rename("top/file", "top/moved")),
    "read": ("kept", "", lambda calls: get(calls, "top/file")),
    "list": ("top", "", lambda calls: calls.listdir("top")),
    "create in a directory": ("top", _BOTH, lambda calls: put(calls, "top/new")),
    "mkdir in a directory": ("top", _BOTH, lambda calls: calls.mkdir("top/new")),
    "symlink in a directory": ("top", _BOTH, lambda calls: calls.symlink(b"x", "top/new")),
    "mknod in a directory": ("top", _BOTH, lambda calls: calls.mknod("top/new", stat.S_IFIFO | 0o644)),
    "link in a directory": ("top", _BOTH, lambda calls: calls.link("outside", "top/new")),
    "unlink in a directory": ("top", _BOTH, lambda calls: calls.unlink("top/file")),
    "rmdir in a directory": ("top", _BOTH, lambda calls: calls.rmdir("top/d")),
    "rename within a directory": ("top", _BOTH, lambda calls: calls.rename("top/file", "top/new")),
    "rename out of a directory": ("top", _BOTH, lambda calls: calls.rename("top/file", "new")),
    "rename into a directory": ("top", _BOTH, lambda calls: calls.rename("outside", "top/new")),
    "change a file in a directory": ("top", "", lambda calls: calls.chmod("top/file", 0o600)),
}


def what_is_done_after_a_write_moves_ctime(action: Action, calls: Calls) -> None:
    """Whether or not the writer has synced or closed by then: and closing does not move it back."""
    calls.open(FIRST, "file", os.O_CREAT | os.O_RDWR)
    calls.link("file", "kept")
    calls.write(FIRST, 0, b"x")
    written = calls.fstat(FIRST)
    let_the_clock_tick(calls)
    action(calls)
    done = calls.fstat(FIRST)
    calls.close(FIRST)
    assert done.ctime_ns > written.ctime_ns
    assert calls.stat("kept").ctime_ns == done.ctime_ns
    assert calls.stat("kept").mtime_ns == done.mtime_ns == written.mtime_ns


AFTER_A_WRITE: dict[str, Action] = {
    "chmod": lambda calls: calls.chmod("file", 0o600),
    "link": lambda calls: calls.link("file", "other"),
    "rename": lambda calls: calls.rename("file", "other"),
    "unlink": lambda calls: calls.unlink("file"),
    "setxattr": lambda calls: calls.setxattr("file", "user.a", b"1"),
}
CASES: dict[str, Callable[[Calls], None]] = {
    **{f"times: {name}": partial(moves, *rest) for name, rest in TIMES.items()},
    **{
        f"ctime after a write: {name}": partial(what_is_done_after_a_write_moves_ctime, AFTER_A_WRITE[name])
        for name in AFTER_A_WRITE
    },
}
