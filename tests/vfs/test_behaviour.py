"""The behaviour that `tests/suite` checks through the kernel, checked on the vfs object."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls import Calls
from tests.calls.behaviour import Case, parameters
from tests.calls.vfs import bed


@pytest.fixture
def calls(tmp_path: Path) -> Iterator[Calls]:
    with bed(tmp_path) as cluster:
        yield cluster.mounts[0]
        cluster.mounts[0].close_all()


@pytest.mark.parametrize("case", parameters())
def test_the_vfs(case: Case, calls: Calls) -> None:
    case(calls)
