"""A directory on the mount of the session's testbed."""

from tests.suite.conftest import root, suite_top

__all__ = ["root", "suite_top"]
