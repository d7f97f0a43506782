"""Mounts of this machine, told from /proc alone: a mount whose daemon hangs must not make a command hang.

A mount is known by two files in home()/mounts, named after its quoted mountpoint: NAME.json is handed to the daemon
(where the inode table listens, and the secret), NAME.pid is written by the daemon once it is mounted.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn
from urllib.parse import quote, unquote

from gridfs import config
from gridfs.cluster import ClusterRecord, processes
from gridfs.cluster.processes import Process
from gridfs.errors import GridfsError
from gridfs.types import Endpoints

UNMOUNT_TIMEOUT_S = 60.0
_FAREWELL_TIMEOUT_S = 2.0
"""How long a daemon whose mount is taken away by force may take to end by itself."""
_KILL_TIMEOUT_S = 5.0
_OCTAL = re.compile(r"\\([0-7]{3})")
_USERS_MAX = 5


@dataclass(frozen=True, slots=True)
class Mount:
    """One mountpoint that this home's filesystem is, or was, mounted at."""

    mountpoint: str
    mounted: bool
    """The kernel lists it."""
    daemon: Process | None
    """Its daemon, if that still runs."""

    @property
    def state(self) -> str:
        """alive; dead: in the kernel's list, but nobody answers; gone: only our files are left."""
        if not self.mounted:
            return "gone"
        return "alive" if self.daemon else "dead"


def mountpoints() -> dict[str, str]:
    """Every mountpoint of this mount namespace with the type of file system that is on top there."""
    found = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        fields, _, tail = line.partition(" - ")
        point = _OCTAL.sub(lambda match: chr(int(match[1], 8)), fields.split()[4])
        found[point.encode("latin-1", "surrogateescape").decode(errors="surrogateescape")] = tail.split()[0]
    return found


def canonical(mountpoint: str) -> str:
    """The mountpoint as the kernel lists it, found without touching what is mounted there."""
    path = os.path.abspath(mountpoint)
    below = os.path.join(os.path.realpath(os.path.dirname(path)), os.path.basename(path))
    return below if below in mountpoints() else os.path.realpath(path)


def handoff_path(mountpoint: str) -> Path:
    """Where the daemon of a mountpoint finds its endpoints and secret."""
    return config.home() / "mounts" / f"{quote(mountpoint, safe='')}.json"


def log_path(mountpoint: str) -> Path:
    """Where the daemon of a mountpoint logs."""
    return config.home() / "log" / f"mount-{quote(mountpoint, safe='')}.log"


def known() -> list[Mount]:
    """The mounts of this home, those that are dead or gone included."""
    folder = config.home() / "mounts"
    listed = mountpoints()
    names = sorted(path.stem for path in folder.glob("*.json")) if folder.is_dir() else []
    return [_mount(unquote(name), listed) for name in names]


def look(mountpoint: str) -> Mount:
    """What is known about one canonical mountpoint."""
    return _mount(mountpoint, mountpoints())


def check_mountable(mountpoint: str) -> None:
    """Raise GridfsError with what to do, unless this process could mount at this canonical mountpoint."""
    mount = look(mountpoint)
    if mount.mounted:
        if mount.state == "dead" and handoff_path(mountpoint).exists():
            raise GridfsError(f"the mount at {mountpoint} is dead: run gridfs umount {mountpoint}, then mount again")
        if mount.state == "alive":
            raise GridfsError(f"gridfs is mounted at {mountpoint} already: gridfs status shows it")
        kind = mountpoints()[mountpoint]
        raise GridfsError(f"{mountpoint} has a file system of type {kind} mounted already: take another directory")
    if not os.path.exists(mountpoint):
        raise GridfsError(f"{mountpoint} does not exist: run mkdir -p {mountpoint} first")
    if not os.path.isdir(mountpoint):
        raise GridfsError(f"{mountpoint} is not a directory: a file system is mounted at a directory")
    _check_device()
    if os.geteuid() != 0 and shutil.which("fusermount3") is None:
        raise GridfsError("mounting needs root, or fusermount3: install the Debian package fuse3")


def write_handoff(mountpoint: str, endpoints: Endpoints) -> Path:
    """Put what the daemon needs into its file, readable by this user alone; returns the path."""
    path = handoff_path(mountpoint)
    content = {
        "inode_table": list(endpoints.inode_table),
        "secret": endpoints.secret.hex(),
        "mountpoint": mountpoint,
    }
    config.write_private(path, json.dumps(content).encode())
    return path


def command(mountpoint: str, options: str, *, foreground: bool) -> list[str]:
    """The command of the mount daemon; its handoff file has to exist. Raises GridfsError if it is not installed."""
    program = Path(sys.executable).with_name("mount.gridfs")
    if not program.exists():
        raise GridfsError(f"{program} is missing: install ray-gridfs into this virtual environment again")
    arguments = [str(program), "--handoff", str(handoff_path(mountpoint)), mountpoint]
    return [*arguments, *(["-o", options] if options else []), *(["-f"] if foreground else [])]


def number_options(memory_bytes: int | None, window_bytes: int | None, replicas: int | None = None) -> list[str]:
    """The mount options for these figures; None leaves one to the daemon, which knows what fits."""
    figures = {"memory": memory_bytes, "write-window": window_bytes, "replicas": replicas}
    return [f"{name}={figure}" for name, figure in figures.items() if figure is not None]


def become_daemon(mountpoint: str, options: str, *, foreground: bool) -> NoReturn:
    """Replace this process with the mount daemon."""
    arguments = command(mountpoint, options, foreground=foreground)
    sys.stdout.flush()
    os.execv(arguments[0], arguments)


def unmount(mountpoint: str, timeout_s: float = UNMOUNT_TIMEOUT_S) -> str:
    """Unmount a canonical mountpoint and wait until its daemon has ended; returns a sentence that says what was done.

    A daemon whose filesystem is gone for good would wait for it in vain, so it is ended. Raises GridfsError if the
    mountpoint is in use, is no mount of this home, or if the daemon does not end in time.
    """
    mount = look(mountpoint)
    if not handoff_path(mountpoint).exists() and not mountpoints().get(mountpoint, "").startswith("fuse.gridfs"):
        raise GridfsError(f"gridfs is not mounted at {mountpoint}: gridfs status lists the mounts")
    if mount.state == "gone":
        _forget(mountpoint)
        return f"{mountpoint} was not mounted any more; what was left of it is cleaned up"
    if mount.state == "dead":
        _umount(mountpoint, lazy=True)
        _forget(mountpoint)
        return f"the mount at {mountpoint} was dead; it is cleaned up, and can be mounted again"
    _umount(mountpoint, lazy=False)
    if _in_vain():
        abandon(look(mountpoint))
        return f"{mountpoint} is unmounted; its filesystem had died, and what was not yet written is lost"
    if mount.daemon and processes.wait_gone([mount.daemon], timeout_s):
        raise GridfsError(
            f"{mountpoint} is unmounted, but its daemon (pid {mount.daemon.pid}) still writes after {timeout_s:.0f} s: "
            f"see {log_path(mountpoint)}"
        )
    _forget(mountpoint)
    return f"{mountpoint} is unmounted"


def abandon(mount: Mount) -> None:
    """Take a mount away whatever uses it, and end its daemon; what was not yet written is lost."""
    if mount.mounted:
        _umount(mount.mountpoint, lazy=True)
    daemons = [mount.daemon] if mount.daemon else processes.mentioning(str(handoff_path(mount.mountpoint)))
    left = processes.wait_gone(daemons, _FAREWELL_TIMEOUT_S)
    processes.kill(left)
    processes.wait_gone(left, _KILL_TIMEOUT_S)
    _forget(mount.mountpoint)


def users(mountpoint: str) -> list[str]:
    """Up to five processes that hold something open below a mountpoint, as "name (pid)"."""
    found = []
    for entry in Path("/proc").iterdir():
        if (
            entry.name.isdigit()
            and int(entry.name) != os.getpid()
            and any(_below(target, mountpoint) for target in _held(entry))
        ):
            try:
                found.append(f"{(entry / 'comm').read_text().strip()} ({entry.name})")
            except OSError:
                continue
        if len(found) == _USERS_MAX:
            break
    return found


def _mount(mountpoint: str, listed: dict[str, str]) -> Mount:
    return Mount(mountpoint, mountpoint in listed, _daemon(mountpoint))


def _daemon(mountpoint: str) -> Process | None:
    """The daemon named by the pid file, if that process still is one for this mountpoint."""
    try:
        process = processes.identify(int(handoff_path(mountpoint).with_suffix(".pid").read_text()))
        if process is None:
            return None
        command_line = Path(f"/proc/{process.pid}/cmdline").read_bytes()
    except (OSError, ValueError):
        return None
    return process if os.fsencode(handoff_path(mountpoint).name) in command_line else None


def _check_device() -> None:
    """Raise GridfsError unless the kernel's FUSE device can be opened, which a container may have forbidden."""
    try:
        os.close(os.open("/dev/fuse", os.O_RDWR | os.O_CLOEXEC))
    except FileNotFoundError:
        raise GridfsError("there is no /dev/fuse: run modprobe fuse, or start the container with --device /dev/fuse") from None
    except OSError as error:
        raise GridfsError(
            f"/dev/fuse cannot be opened ({error.strerror}): run modprobe fuse, or allow the container the device"
        ) from None


def _in_vain() -> bool:
    try:
        return ClusterRecord.load().headless
    except GridfsError:
        return False


def _umount(mountpoint: str, *, lazy: bool) -> None:
    if os.geteuid() == 0:
        arguments = ["umount", *(["-l"] if lazy else []), "--", mountpoint]
    else:
        arguments = ["fusermount3", "-u", *(["-z"] if lazy else []), "--", mountpoint]
    done = subprocess.run(arguments, capture_output=True, text=True, check=False)
    deadline = time.monotonic() + _KILL_TIMEOUT_S
    if done.returncode == 0:
        while mountpoint in mountpoints() and time.monotonic() < deadline:
            time.sleep(0.02)
        return
    if "busy" in done.stderr:
        using = ", ".join(users(mountpoint)) or "a process of another user, or another mount below it"
        raise GridfsError(f"{mountpoint} is in use by {using}: end what uses it, or leave that directory, and try again")
    last = done.stderr.strip().splitlines()[-1:] or [f"exit status {done.returncode}"]
    raise GridfsError(f"{mountpoint} cannot be unmounted: {last[0]}")


def _forget(mountpoint: str) -> None:
    path = handoff_path(mountpoint)
    for name in (path, path.with_suffix(".pid")):
        name.unlink(missing_ok=True)


def _held(process: Path) -> Iterator[str]:
    """The paths that a process keeps busy; links are read, never followed."""
    for link in (process / "cwd", process / "root", process / "exe"):
        yield _target(link)
    try:
        descriptors = list((process / "fd").iterdir())
    except OSError:
        return
    for link in descriptors:
        yield _target(link)


def _target(link: Path) -> str:
    try:
        return os.readlink(link)
    except OSError:
        return ""


def _below(path: str, mountpoint: str) -> bool:
    return path == mountpoint or path.startswith(f"{mountpoint}/")
