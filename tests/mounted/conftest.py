"""The testbed of the session, and a directory on its mount."""

from tests.suite.conftest import bed, root, suite_top

__all__ = ["bed", "root", "suite_top"]
