"""Stub."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, Protocol


class Function(Protocol):
    splits: bool
    streams: bool

    def map(self, run: Iterator[memoryview], first: bool, last: bool) -> Iterator[bytes]: ...

    def reduce(self, partials: Iterator[Iterator[bytes]]) -> Any: ...
