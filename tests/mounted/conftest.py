"""A directory on the mount of the session's testbed, and a file in it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.suite.conftest import root, suite_top
from tests.suite.syscalls import write

__all__ = ["file", "root", "suite_top"]

SIZE = (3 << 23) + 12345
"""More than three chunks: several on each of the two workers, or most on one."""


@pytest.fixture
def file(root: Path) -> Path:
    """A file of several chunks, which everybody may read."""
    return write(root / "file", os.urandom(SIZE))
