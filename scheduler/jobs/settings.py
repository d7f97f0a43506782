"""Who may have what done: the file offload.toml in the home of the head, read again when it changes."""

from __future__ import annotations

import errno
import grp
import logging
import pwd
import tomllib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from gridfs.config import parse_size
from gridfs.errors import FilesystemError, GridfsError
from gridfs.offload.job import Request, Submitter
from scheduler.jobs.queue import Quotas

log = logging.getLogger(__name__)

DAY_S = 86400.0


@dataclass(frozen=True, slots=True)
class Settings:
    """What is allowed. The defaults hold while there is no file."""

    enabled: bool = True
    users: tuple[int, ...] | None = None
    """None: root and whoever has mounted."""
    groups: tuple[int, ...] = ()
    commands: bool | tuple[str, ...] = True
    """Whether programs may be run; a list names the only ones, by the very word that a command begins with."""
    shell: bool = False
    python: tuple[str, ...] = ()
    """The modules whose functions may be called."""
    quotas: Quotas = field(default_factory=Quotas)
    keep_s: float = DAY_S
    """How long an ended job is kept."""
    timeout_max_s: float = DAY_S
    memory_max_bytes: int = 1 << 40

    def check(self, request: Request, submitter: Submitter, mounter_uid: int) -> None:
        """Raise EPERM when that user may not have that done, EINVAL when it asks for more than anybody may have."""
        if not self.enabled:
            raise FilesystemError(errno.EPERM, "jobs are switched off")
        if not self._is_user(submitter, mounter_uid):
            raise FilesystemError(errno.EPERM, f"user {submitter.uid} may not submit jobs")
        if request.kind == "python":
            module = request.name.partition(":")[0]
            if module not in self.python:
                raise FilesystemError(errno.EPERM, f"the Python module {module!r} is not one of those that are allowed")
        elif request.kind == "command":
            self._check_command(request)
        if not 0 < request.timeout_s <= self.timeout_max_s:
            raise FilesystemError(errno.EINVAL, f"timeout_s must be above 0 and at most {self.timeout_max_s:g}")
        if not 0 < request.memory_bytes <= self.memory_max_bytes:
            raise FilesystemError(errno.EINVAL, f"memory must be above 0 and at most {self.memory_max_bytes} bytes")

    def _is_user(self, submitter: Submitter, mounter_uid: int) -> bool:
        users = (0, mounter_uid) if self.users is None else self.users
        return submitter.uid in users or not {submitter.gid, *submitter.groups}.isdisjoint(self.groups)

    def _check_command(self, request: Request) -> None:
        if self.commands is False:
            raise FilesystemError(errno.EPERM, "commands are switched off")
        if request.shell:
            if not self.shell or (isinstance(self.commands, tuple) and "sh" not in self.commands):
                raise FilesystemError(errno.EPERM, "commands with a shell are not allowed")
        elif self.commands is not True and (not request.arguments or request.arguments[0] not in self.commands):
            raise FilesystemError(errno.EPERM, f"the program {request.name!r} is not one of those that are allowed")


class SettingsFile:
    """The settings as the file says, or said while it was sound. Used by one thread."""

    def __init__(self, path: Path) -> None:
        """Read the file. Without one the defaults hold; with a bad one nothing is allowed, as nobody knows what it forbids."""
        self._path = path
        self._seen: object = None
        self.settings = Settings(enabled=False)
        self.refresh()

    def refresh(self) -> bool:
        """Read the file again if it has changed; True if the settings have. Of a bad one the log says why."""
        before = self.settings
        stamp = self._stamp()
        if stamp == self._seen:
            return False
        self._seen = stamp
        try:
            self.settings = parse(self._path.read_bytes() if stamp else b"")
        except (GridfsError, OSError) as error:
            log.warning("%s is passed over, and as much is allowed as before: %s", self._path, error)
        return self.settings != before

    def _stamp(self) -> tuple[int, ...]:
        """Differs once the file has changed; empty without one."""
        try:
            told = self._path.stat()
        except FileNotFoundError:
            return ()
        except OSError:  # reading it will say why
            return (0,)
        return told.st_mtime_ns, told.st_size, told.st_ino


def parse(content: bytes) -> Settings:
    """The settings that a file of that content makes. Raises GridfsError with a sentence."""
    try:
        document = tomllib.loads(content.decode())
    except (UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise GridfsError(f"it is no TOML file: {error}") from error
    table = document.get("offload", {})
    if document.keys() - {"offload"} or not isinstance(table, dict):
        raise GridfsError("it has the one table [offload], and nothing beside it")
    told: dict[str, Any] = {}
    for name, value in table.items():
        if name not in _READERS:
            raise GridfsError(f"[offload] has no setting {name!r}")
        try:
            told[name] = _READERS[name](value)
        except (ValueError, KeyError) as error:
            raise GridfsError(f"{name} = {value!r} is wrong: {error.args[0] if error.args else error}") from error
    quotas = {each.name: told.pop(each.name) for each in fields(Quotas) if each.name in told}
    return Settings(**told, quotas=replace(Quotas(), **quotas))


# -- values ----------------------------------------------------------------------------------------------------------


def _bool(value: Any) -> bool:
    if not isinstance(value, bool):
        raise ValueError("it is true or false")  # noqa: TRY004 - of the file, not of a caller
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError("it is a number, 0 or more")
    return value


def _seconds(value: Any) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not 0 < value < float("inf"):
        raise ValueError("it is a number of seconds above 0")
    return float(value)


def _bytes(value: Any) -> int:
    size = parse_size(value) if isinstance(value, str) else _count(value)
    if not size:
        raise ValueError("it is above 0")
    return size


def _list(value: Any, kinds: type | tuple[type, ...] = str) -> Sequence[Any]:
    if not isinstance(value, list) or not all(isinstance(entry, kinds) and not isinstance(entry, bool) for entry in value):
        raise ValueError("it is a list")
    return value


def _names(value: Any) -> tuple[str, ...]:
    return tuple(_list(value))


def _commands(value: Any) -> bool | tuple[str, ...]:
    return value if isinstance(value, bool) else _names(value)


def _users(value: Any) -> tuple[int, ...]:
    return tuple(_number(entry, "user", lambda name: pwd.getpwnam(name).pw_uid) for entry in _list(value, (str, int)))


def _groups(value: Any) -> tuple[int, ...]:
    return tuple(_number(entry, "group", lambda name: grp.getgrnam(name).gr_gid) for entry in _list(value, (str, int)))


def _number(entry: str | int, kind: str, look_up: Callable[[str], int]) -> int:
    if isinstance(entry, int):
        return entry
    try:
        return look_up(entry)
    except KeyError:
        raise ValueError(f"there is no {kind} {entry!r} on this machine") from None


_READERS: dict[str, Callable[[Any], Any]] = {
    "enabled": _bool,
    "users": _users,
    "groups": _groups,
    "commands": _commands,
    "shell": _bool,
    "python": _names,
    "keep_s": _seconds,
    "timeout_max_s": _seconds,
    "memory_max_bytes": _bytes,
    **{each.name: _count for each in fields(Quotas)},
}
