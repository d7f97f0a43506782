"""How short of memory a node is: a score, and levels that do not flutter. Pure."""

from __future__ import annotations

from enum import StrEnum
from itertools import pairwise

from gridfs.types import NodeSample

_KNEES = ((0.0, 0.0), (0.8, 0.4), (0.92, 0.85), (1.0, 1.0))
"""(share of memory in use, score): flat while there is room, steep from 80 % on, above 0.8 at 92 %."""


class Level(StrEnum):
    """What a node may be asked for: anything; less than others; nothing."""

    CALM = "calm"
    WARM = "warm"
    HOT = "hot"


_RISE = {Level.WARM: 0.5, Level.HOT: 0.8}
"""A level is entered at this score..."""
_FALL = {Level.WARM: 0.4, Level.HOT: 0.65}
"""...and left below this one, so that a node at a border does not change its level every second."""


def score(sample: NodeSample) -> float:
    """The pressure of a node, 0..1; never falls when more memory is in use, or when tasks stall more."""
    by_use = _interpolate(sample.used_share)
    return 1 - (1 - by_use) * (1 - min(max(sample.stalled_share, 0.0), 1.0))


def level(pressure: float, previous: Level) -> Level:
    """The level at `pressure` of a node that had the level `previous`."""
    if pressure >= _RISE[Level.HOT] or (previous is Level.HOT and pressure >= _FALL[Level.HOT]):
        return Level.HOT
    if pressure >= _RISE[Level.WARM] or (previous is not Level.CALM and pressure >= _FALL[Level.WARM]):
        return Level.WARM
    return Level.CALM


def _interpolate(share: float) -> float:
    """The score on the line between the two knees around `share`."""
    share = min(max(share, 0.0), 1.0)
    for (x0, y0), (x1, y1) in pairwise(_KNEES):
        if share <= x1:
            return y0 + (y1 - y0) * (share - x0) / (x1 - x0)
    raise AssertionError
