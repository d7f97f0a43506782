"""Where the suite runs: any directory given by GRIDFS_SUITE_DIR, or the gridfs of the session's testbed.

The directory must be reachable for every user. A rule that a filesystem is known to break is marked
`differs(TYPE="why")` on the test, with the type as the kernel calls it: the test is then expected to fail there, and it
is an error if it passes.
"""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.suite import testbed
from tests.suite.syscalls import filesystem_type


def pytest_configure(config: pytest.Config) -> None:
    """Declare the suite's mark."""
    config.addinivalue_line("markers", "differs(**types): filesystems known to break the rule, each with the reason")


@pytest.fixture(scope="session")
def suite_top(request: pytest.FixtureRequest) -> Iterator[Path]:
    """A directory of this session on the filesystem under test, open to every user."""
    place = testbed.given_directory() or request.getfixturevalue("bed").mountpoint
    top = Path(tempfile.mkdtemp(prefix="suite-", dir=place))
    top.chmod(0o755)
    yield top
    shutil.rmtree(top, ignore_errors=True)


@pytest.fixture
def root(suite_top: Path, request: pytest.FixtureRequest) -> Iterator[Path]:
    """An empty directory on the filesystem under test, owned by us, mode 0755; gone after the test."""
    directory = Path(tempfile.mkdtemp(prefix="t-", dir=suite_top))
    directory.chmod(0o755)
    mark = request.node.get_closest_marker("differs")
    if mark is not None and (reason := mark.kwargs.get(filesystem_type(directory))):
        request.applymarker(pytest.mark.xfail(reason=reason, strict=True))
    old_mask = os.umask(0o022)
    try:
        yield directory
    finally:
        os.umask(old_mask)
        shutil.rmtree(directory)
