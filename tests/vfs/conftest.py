"""Assertions of the cases that are run here and through the kernel tell what they compared."""

import pytest

pytest.register_assert_rewrite("tests.calls")
