"""What was said to somebody a moment ago, kept for a while and in bounds."""

from __future__ import annotations

import math
from collections.abc import Hashable
from typing import Generic, NamedTuple, TypeVar

import trio

V = TypeVar("V")


class Refusal(NamedTuple):
    """Why something was refused, and when: nanoseconds since the epoch."""

    sentence: str
    time_ns: int


KEPT = 256


class Recent(Generic[V]):
    """The newest `KEPT` values, each for `age_s` at most."""

    def __init__(self, age_s: float = math.inf) -> None:
        self._age_s = age_s
        self._values: dict[Hashable, tuple[float, V]] = {}

    def put(self, key: Hashable, value: V) -> None:
        """Keep `value`, in place of what was kept there."""
        self._values.pop(key, None)
        self._values[key] = trio.current_time(), value
        if len(self._values) > KEPT:
            del self._values[next(iter(self._values))]

    def get(self, key: Hashable) -> V | None:
        """What is kept there, None if there is nothing or it is too old."""
        kept_s, value = self._values.get(key, (-math.inf, None))
        return value if trio.current_time() - kept_s < self._age_s else None

    def take(self, key: Hashable) -> V | None:
        """As `get`, and nothing is kept there from then on."""
        value = self.get(key)
        self._values.pop(key, None)
        return value
