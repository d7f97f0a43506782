"""The behaviour that `tests/vfs` checks on the vfs object, checked through the kernel."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.calls import Calls
from tests.calls.behaviour import Case, parameters
from tests.calls.kernel import KernelCalls


@pytest.fixture
def calls(root: Path) -> Iterator[Calls]:
    calls = KernelCalls(root)
    yield calls
    calls.close_all()


@pytest.mark.parametrize("case", parameters())
def test_the_mount(case: Case, calls: Calls) -> None:
    case(calls)
