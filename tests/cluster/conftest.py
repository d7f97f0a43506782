"""One cluster for all tests of this level."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from gridfs import cluster
from gridfs.cli import filesystem
from gridfs.vfs.filesystem import Filesystem
from tests.cluster.real import WORKERS, Real, attempt, plans, remove_all, until


@pytest.fixture(scope="session")
def modules() -> Iterator[Path]:
    """Where all nodes import from, beside what is installed; any user may read there."""
    with TemporaryDirectory(prefix="gridfs-test-modules-") as directory:
        Path(directory).chmod(0o755)
        yield Path(directory)


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of the head: `$GRIDFS_HOME`."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="session")
def cluster_up(home: Path, modules: Path) -> Iterator[Real]:
    """The nodes and the filesystem, in a home of their own; all is ended with the session."""
    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("GRIDFS_HOME", str(home))
        environment.setenv("PYTHONPATH", str(modules), prepend=os.pathsep)
        endpoints = filesystem.bring_up(plans(), lambda _: None)
        try:
            yield Real(endpoints)
        finally:
            filesystem.take_down(lambda _: None, force=True)
            cluster.disconnect()


@pytest.fixture
async def real(cluster_up: Real) -> Real:
    """The cluster with all its chunk servers answering; a test before may have ended some."""
    for host in WORKERS:
        await until(partial(attempt, partial(cluster_up.ready, host)))
    return cluster_up


@pytest.fixture
async def mounted(real: Real) -> AsyncIterator[Filesystem]:
    """The filesystem, attached; empty at the start and at the end."""
    async with real.mounted() as filesystem:
        await remove_all(filesystem)
        yield filesystem
        await remove_all(filesystem)
