"""The source tree keeps its rules, and every rule can be broken."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.unit import tree
from tests.unit.tree import Tree

PROJECT = Path(__file__).resolve().parents[2]

Rule = Callable[[Tree], list[str]]
RULES: tuple[Rule, ...] = (
    *(tree.unplaced, tree.imports_up, tree.strangers, tree.disowned, tree.too_long, tree.long_handlers),
    *(tree.banned_names, tree.stray_folders, tree.machine_paths),
)


@pytest.fixture(scope="session")
def project() -> Tree:
    return Tree(PROJECT)


@pytest.mark.parametrize("rule", RULES)
def test_the_project_keeps(rule: Rule, project: Tree) -> None:
    assert rule(project) == []


BREACHES: list[tuple[Rule, str, str, str]] = [
    (tree.unplaced, "gridfs/novel.py", "", "gridfs.novel has no place"),
    (tree.unplaced, "gridfs/meta/novel.py", "", "gridfs.meta.novel has no place"),
    (tree.unplaced, "gridfs/types.py", "", "gridfs.chunk.layout, which does not exist"),
    (tree.imports_up, "gridfs/types.py", "import gridfs.node", "gridfs.types:1"),
    (tree.imports_up, "gridfs/types.py", "def f():\n    from gridfs import node", "gridfs.types:2"),
    (tree.imports_up, "gridfs/types.py", "from . import node", "gridfs.types:1"),
    (tree.imports_up, "gridfs/meta/table.py", "from .client import MetaClient", "gridfs.meta.table:1"),
    (tree.imports_up, "gridfs/meta/client.py", "from ..vfs import filesystem", "gridfs.meta.client:1"),
    (tree.imports_up, "gridfs/meta/client.py", "import gridfs.cluster", "gridfs.meta.client:1"),
    (tree.imports_up, "gridfs/vfs/filesystem.py", "import mount.operations", "gridfs.vfs.filesystem:1"),
    (tree.imports_up, "mount/operations.py", "import mount.__main__", "mount.operations:1"),
    (tree.imports_up, "mount/operations.py", "from scheduler import daemon", "mount.operations:1"),
    (tree.imports_up, "tools/demo.py", "from tests import faults", "tools.demo:1"),
    (tree.strangers, "mount/__main__.py", "from scheduler import daemon", "mount must not know scheduler"),
    (tree.strangers, "scheduler/__main__.py", "import mount.operations", "scheduler must not know mount"),
    (tree.strangers, "gridfs/meta/client.py", "import gridfs.chunk.client", "gridfs.meta must not know gridfs.chunk"),
    (tree.strangers, "gridfs/chunk/client.py", "from gridfs.meta.client import X", "gridfs.chunk must not know gridfs.meta"),
    (tree.strangers, "gridfs/cli/commands.py", "def f():\n    import scheduler.daemon", "gridfs must not know scheduler"),
    (tree.strangers, "gridfs/cli/commands.py", "from mount import operations", "gridfs must not know mount"),
    (tree.strangers, "gridfs/cli/commands.py", "from tests import faults", "gridfs must not know tests"),
    (tree.strangers, "gridfs/cli/commands.py", "from tools import demo", "gridfs must not know tools"),
    (tree.disowned, "gridfs/vfs/filesystem.py", "import pyfuse3", "gridfs.vfs.filesystem:1 imports pyfuse3"),
    (tree.disowned, "gridfs/meta/table.py", "import sqlite3", "gridfs.meta.table:1 imports sqlite3"),
    (tree.disowned, "gridfs/meta/table.py", "def f():\n    from ray.util import x", "gridfs.meta.table:2 imports ray"),
    (tree.disowned, "mount/operations.py", "import psutil", "belongs to gridfs.node"),
    (tree.disowned, "gridfs/types.py", "import requests", "belongs to nobody"),
    (tree.too_long, "gridfs/types.py", "#\n" * 451, "gridfs.types has 451 lines"),
    (tree.too_long, "tools/demo.py", "def f():\n" + "    pass\n" * 70, "tools.demo:1 f has 71 lines"),
    (
        tree.long_handlers,
        "mount/operations.py",
        "class Operations:\n    async def read(self):\n" + "        pass\n" * 9,
        "read has a body of 9 lines",
    ),
    (tree.long_handlers, "mount/operations.py", "", "no class Operations"),
    (tree.banned_names, "gridfs/vfs/utils.py", "", "gridfs.vfs.utils"),
    (tree.banned_names, "scheduler/helpers/x.py", "", "scheduler.helpers.x"),
    (tree.stray_folders, "src/x.py", "", "src/"),
    (tree.machine_paths, "docs/x.md", "see /{}/main".format("work"), "docs/x.md:1"),
    (tree.machine_paths, ".ci/run", "\ncd /{}/someone".format("home"), ".ci/run:2"),
    (tree.machine_paths, "tools/run", "cd {root}", "tools/run:1"),
]


@pytest.mark.parametrize(("rule", "path", "source", "fault"), BREACHES)
def test_a_breach_is_found(rule: Rule, path: str, source: str, fault: str, tmp_path: Path) -> None:
    everybody = ("gridfs/node", "gridfs/meta/client", "gridfs/chunk/client", "gridfs/cluster", "gridfs/vfs/filesystem")
    for name in (*everybody, "mount/operations", "mount/__main__", "scheduler/daemon", "tests/faults", "tools/demo"):
        write(tmp_path / f"{name}.py", "")
    write(tmp_path / path, source.format(root=tmp_path))
    assert [found for found in rule(Tree(tmp_path)) if fault in found]


def test_what_the_rules_allow_is_no_breach(tmp_path: Path) -> None:
    write(tmp_path / "gridfs/meta/table.py", "from gridfs.meta.inode import Inode\nimport os, gridfs.types\n")
    write(tmp_path / "gridfs/meta/inode.py", "from . import directory\n")
    write(tmp_path / "gridfs/meta/directory.py", "#\n" * 450)
    write(tmp_path / "gridfs/types.py", "def f():\n" + "    pass\n" * 69)
    write(tmp_path / "gridfs/cluster/__init__.py", "import ray, json\nfrom gridfs.cluster import local")
    write(tmp_path / "gridfs/cluster/local.py", "from .. import types\n")
    write(tmp_path / "mount/operations.py", "class Operations:\n    async def read(self):\n" + "        pass\n" * 8)
    write(tmp_path / "tests/faults.py", "import sqlite3, ray, tests.model, scheduler.daemon, mount.operations\n")
    write(tmp_path / "tools/demo.py", "import click, demo_words\n")
    write(tmp_path / "tools/demo_words.py", "import gridfs.cluster\n")
    write(tmp_path / ".venv/lib/x.py", "see /{}/main".format("work"))
    for rule in set(RULES) - {tree.unplaced}:
        assert rule(Tree(tmp_path)) == []


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
