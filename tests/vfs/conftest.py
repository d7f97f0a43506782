"""A filesystem with a proxy before each chunk server, whose clients lose patience soon."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio

from gridfs.vfs.filesystem import Filesystem
from tests.vfs.cluster import Cluster, running
from tests.vfs.faults import deadlines

LIMIT_S = 15.0


@pytest.fixture
async def cluster(tmp_path: Path) -> AsyncIterator[Cluster]:
    with deadlines(), trio.fail_after(LIMIT_S):
        async with running(tmp_path, interposed=True) as cluster:
            yield cluster


@pytest.fixture
async def filesystem(cluster: Cluster) -> AsyncIterator[Filesystem]:
    async with cluster.mounted() as filesystem:
        yield filesystem
