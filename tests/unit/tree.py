"""The rules of the source tree: who may import whom, who owns which third party, how large things may get.

Every rule is a function from a tree to a list of faults, one sentence each.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

PRODUCT = ("gridfs", "mount", "scheduler")
SOURCES = (*PRODUCT, "tests", "tools")
TOP_LEVEL = {*SOURCES, "systemd", "docs", "examples"}
MADE = re.compile(r"\..+|__pycache__|build|dist|.+\.egg-info")
"""What tools leave in the tree; none of it is ours. Of the folders with a dot, those in OURS are."""
OURS = (".ci", ".github")

FLOORS: tuple[dict[str, tuple[str, ...]], ...] = (
    {"values": ("gridfs", *(f"gridfs.{name}" for name in ("types", "errors", "config", "buffers", "logs")))},
    {
        "stream": ("gridfs.stream.*",),
        "node": ("gridfs.node",),
        "offload": (
            *("gridfs.offload", "gridfs.offload.functions.*"),
            *(f"gridfs.offload.{name}" for name in ("job", "registry", "request", "process", "sandbox", "command", "python")),
            *(f"gridfs.offload.{name}" for name in ("directory", "group", "keeper", "pipes", "usage")),
        ),
    },
    {
        "meta": tuple(
            f"gridfs.meta{name}"
            for name in (
                *("", ".table", ".acl", ".xattrs", ".invariants", ".inode", ".directory", ".rows", ".store", ".dump"),
                *(".lease", ".session", ".holders", ".engine", ".members", ".loading", ".service", ".server"),
            )
        ),
        "chunk": tuple(
            f"gridfs.chunk{name}"
            for name in (
                *("", ".layout", ".pool", ".objects", ".packs", ".patch", ".chunk", ".inventory"),
                *(".sealer", ".chunks", ".holds", ".forwarder", ".copies", ".server"),
            )
        ),
    },
    {
        "meta": tuple(f"gridfs.meta.{name}" for name in ("client", "uplink", "watcher", "attachment", "thin")),
        "chunk": ("gridfs.chunk.client", "gridfs.chunk.grants", "gridfs.chunk.mending"),
        "cluster": ("gridfs.cluster.*",),
    },
    {"vfs": ("gridfs.vfs.*",), "fsck": ("gridfs.fsck.*",), "offload": ("gridfs.offload.*",)},
    {"mount": ("mount.*",), "scheduler": ("scheduler.*",)},
    {"cli": ("gridfs.cli.*",), "mount": ("mount.__main__",), "scheduler": ("scheduler.__main__",)},
    {"tests": ("tests.*",), "tools": ("tools.*",)},
)
"""From the ground up: floor -> room -> modules; "package.*" is the package and all in it that has no line of its own.

A module may import from its own room on its own floor, and from all floors below, but for STRANGERS.
"""

STRANGERS = (
    *(("mount", "scheduler"), ("scheduler", "mount")),
    *(("gridfs.meta", "gridfs.chunk"), ("gridfs.chunk", "gridfs.meta")),
    *(("gridfs", other) for other in ("mount", "scheduler", "tests", "tools")),
)
"""Pairs of which the first never imports the second, whatever their floors."""

OWNERS: dict[str, tuple[str, ...]] = {
    "pyfuse3": (
        *(f"mount.{name}" for name in ("baton", "operations", "virtual", "entry", "session", "kernel")),
        "tools.nullfs",
    ),
    "psutil": ("gridfs.node",),
    "ray": (
        *("gridfs.cluster", "gridfs.chunk.server", "gridfs.chunk.objects"),
        *("gridfs.offload.runner", "gridfs.offload.source", "scheduler.daemon", "scheduler.executor"),
    ),
    "sqlite3": ("gridfs.meta.store", "scheduler.jobs.store"),
    "trio": (
        *("gridfs.stream", "gridfs.meta.server", "gridfs.meta.service", "gridfs.meta.engine", "gridfs.meta.session"),
        "gridfs.meta.members",
        *("gridfs.meta.holders", "gridfs.meta.client", "gridfs.meta.attachment", "gridfs.meta.thin", "gridfs.fsck"),
        *(
            f"gridfs.chunk.{name}"
            for name in ("chunk", "inventory", "sealer", "chunks", "holds", "forwarder", "server", "client", "grants")
        ),
        *(f"gridfs.offload.{name}" for name in ("client", "gateway", "source", "writer", "runner")),
        *("gridfs.vfs", "mount", "scheduler.jobs", "tools.nullfs", "tools.bench_scale_roles", "tools.bench_wire_roles"),
    ),
    "click": ("gridfs.cli", "tools"),
    "rich": ("gridfs.cli", "tools"),
    "msgpack": (
        "gridfs.stream",
        "gridfs.meta.rows",
        "gridfs.meta.store",
        "gridfs.offload",
        "scheduler.jobs.store",
        "scheduler.jobs.service",
    ),
    "xxhash": ("gridfs.chunk.layout", "gridfs.chunk.chunks", "gridfs.chunk.sealer", "gridfs.offload.functions"),
}
"""Third party -> the modules or packages that may import it. Tests may import what they like."""

FUNCTION_MAX_LINES = 70
FILE_MAX_LINES = 450
HANDLER_MAX_LINES = 8
BANNED_NAMES = re.compile(r"(utils?|common|helpers?|managers?|misc)", re.IGNORECASE)
MACHINE_PATH = re.compile(r"/(?:work|home|root|Users)/\w+")


@dataclass(frozen=True)
class Module:
    """One Python file, by its dotted name."""

    name: str
    path: Path

    @cached_property
    def text(self) -> str:
        """Its source."""
        return self.path.read_text()

    @cached_property
    def syntax(self) -> ast.Module:
        """Its syntax tree."""
        return ast.parse(self.text, str(self.path))

    @property
    def package(self) -> str:
        """What its relative imports start from."""
        return self.name if self.path.stem == "__init__" else self.name.rpartition(".")[0]

    def imports(self) -> Iterator[tuple[int, str]]:
        """(line, dotted name) of all that it imports, anywhere in it; `from a import b` counts as a.b."""
        for node in ast.walk(self.syntax):
            if isinstance(node, ast.Import):
                yield from ((node.lineno, alias.name) for alias in node.names)
            elif isinstance(node, ast.ImportFrom):
                origin = ".".join(filter(None, [self._above(node.level), node.module]))
                yield from ((node.lineno, f"{origin}.{alias.name}") for alias in node.names)

    def _above(self, level: int) -> str:
        if not level:
            return ""
        parts = self.package.split(".")
        return ".".join(parts[: len(parts) - level + 1])


class Tree:
    """The Python modules and the text files below a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root
        paths = (path for top in SOURCES for path in sorted((root / top).rglob("*.py")))
        self.modules = {name: Module(name, path) for path in paths for name in [self._name(path)]}

    def _name(self, path: Path) -> str:
        parts = path.relative_to(self.root).with_suffix("").parts
        return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)

    def imported(self, module: Module) -> Iterator[tuple[int, str]]:
        """(line, name) of what `module` imports: our module's name where it is ours. Tools import each other by bare name."""
        for line, name in module.imports():
            candidates = [name, name.rpartition(".")[0]]
            if module.name.startswith("tools."):
                candidates += [f"tools.{candidate}" for candidate in candidates]
            yield line, next((candidate for candidate in candidates if candidate in self.modules), name)

    def texts(self) -> Iterator[tuple[Path, str]]:
        """All text files that are ours."""
        for top in sorted(self.root.iterdir()):
            for path in [top] if top.is_file() else sorted(top.rglob("*")) if is_ours(top) else []:
                if path.is_file() and "__pycache__" not in path.parts and (text := _text(path)) is not None:
                    yield path.relative_to(self.root), text


def is_ours(folder: Path) -> bool:
    """False for what tools make in the tree."""
    return folder.name in OURS or not MADE.fullmatch(folder.name)


def _text(path: Path) -> str | None:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def within(name: str, packages: Iterable[str]) -> bool:
    """True when `name` is one of `packages` or in one."""
    return any(name == package or name.startswith(f"{package}.") for package in packages)


# -- floors ----------------------------------------------------------------------------------------------------------


def place(name: str) -> tuple[int, str] | None:
    """The floor and the room of a module: its own line in FLOORS, else the one of its closest package."""
    lines = {line: (floor, room) for floor, rooms in enumerate(FLOORS) for room in rooms for line in rooms[room]}
    if name in lines:
        return lines[name]
    parts = name.split(".")
    packages = (".".join(parts[:count]) + ".*" for count in range(len(parts), 0, -1))
    return next((lines[package] for package in packages if package in lines), None)


def unplaced(tree: Tree) -> list[str]:
    """Modules that FLOORS does not know, and lines of FLOORS for which there is no module."""
    faults = [f"{name} has no place in FLOORS" for name in tree.modules if place(name) is None]
    lines = [line.removesuffix(".*") for rooms in FLOORS for modules in rooms.values() for line in modules]
    stale = [line for line in lines if not any(within(name, [line]) for name in tree.modules)]
    return faults + [f"FLOORS places {line}, which does not exist" for line in stale]


def imports_up(tree: Tree) -> list[str]:
    """Imports from a floor above, or from another room of the same floor."""
    faults = []
    for module in tree.modules.values():
        here = place(module.name)
        for line, name in tree.imported(module):
            there = place(name) if name in tree.modules else None
            if here and there and not (there[0] < here[0] or there == here):
                faults.append(f"{module.name}:{line} is on floor {here} and imports {name} from {there}")
    return faults


def strangers(tree: Tree) -> list[str]:
    """Imports between packages that must not know each other, whatever their floors."""
    return [
        f"{module.name}:{line} imports {name}: {one} must not know {other}"
        for module in tree.modules.values()
        for line, name in tree.imported(module)
        for one, other in STRANGERS
        if within(module.name, [one]) and within(name, [other])
    ]


def disowned(tree: Tree) -> list[str]:
    """Imports of a third party by a module that does not own it."""
    faults = []
    for module in tree.modules.values():
        for line, name in tree.imported(module):
            top = name.partition(".")[0]
            ours = name in tree.modules or top in SOURCES or (top in sys.stdlib_module_names and top not in OWNERS)
            if not ours and not within(module.name, ("tests", *OWNERS.get(top, ()))):
                faults.append(f"{module.name}:{line} imports {top}, which belongs to {', '.join(OWNERS.get(top, ['nobody']))}")
    return faults


# -- sizes -----------------------------------------------------------------------------------------------------------


def too_long(tree: Tree) -> list[str]:
    """Functions and files beyond their limits."""
    faults = []
    for module in tree.modules.values():
        lines = module.text.count("\n")
        if lines > FILE_MAX_LINES:
            faults.append(f"{module.name} has {lines} lines")
        for node in ast.walk(module.syntax):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = _lines(node, node)
                if lines > FUNCTION_MAX_LINES:
                    faults.append(f"{module.name}:{node.lineno} {node.name} has {lines} lines")
    return faults


def long_handlers(tree: Tree) -> list[str]:
    """Handlers of mount.operations whose body is more than unpack, call, pack."""
    faults = []
    operations = tree.modules["mount.operations"].syntax
    classes = [node for node in ast.walk(operations) if isinstance(node, ast.ClassDef) and node.name == "Operations"]
    for node in (node for cls in classes for node in cls.body):
        if isinstance(node, ast.AsyncFunctionDef):
            body = node.body[1:] if ast.get_docstring(node) is not None else node.body
            if body and (lines := _lines(body[0], body[-1])) > HANDLER_MAX_LINES:
                faults.append(f"mount.operations:{node.lineno} {node.name} has a body of {lines} lines")
    return faults if classes else ["mount.operations has no class Operations"]


def _lines(first: ast.stmt, last: ast.stmt) -> int:
    assert last.end_lineno is not None
    return last.end_lineno - first.lineno + 1


# -- names -----------------------------------------------------------------------------------------------------------


def banned_names(tree: Tree) -> list[str]:
    """Files and folders whose names say nothing."""
    return [f"{name} says nothing" for name in tree.modules if any(map(BANNED_NAMES.fullmatch, name.split(".")))]


def stray_folders(tree: Tree) -> list[str]:
    """Folders at the top that are not in the plan."""
    folders = (entry for entry in tree.root.iterdir() if entry.is_dir() and is_ours(entry))
    return [f"{folder.name}/ is not in the plan" for folder in folders if folder.name not in {*TOP_LEVEL, *OURS}]


def machine_paths(tree: Tree) -> list[str]:
    """Lines that name a place on somebody's machine."""
    return [
        f"{path}:{number} names {match[0]}"
        for path, text in tree.texts()
        for number, line in enumerate(text.splitlines(), 1)
        if (match := MACHINE_PATH.search(line)) or (match := re.search(re.escape(str(tree.root)) + r"\b", line))
    ]
