"""The time of one run, and how its comparisons share it."""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from typing import NamedTuple

import pytest

from harness.bench.statistics import PLACED

# Seconds of timing alone: building, verifying and witnessing take about as much again.
FULL_SECONDS, QUICK_SECONDS = 240.0, 30.0
# A comparison that is nearly decided may take this many shares, and half of what is left.
MOST_SHARES = 4
# With --resolve, the longest that one comparison goes on.
RESOLVE_SECONDS = 900.0


def total_seconds(config: pytest.Config) -> float:
    """Return the seconds of timing for all comparisons together: `--budget`, or its default."""
    default = QUICK_SECONDS if config.getoption("--quick") else FULL_SECONDS
    return float(config.getoption("--budget") or default)


def effect_to_resolve(text: str) -> float:
    """Return `5%` or `5` as a fraction. Raises ArgumentTypeError unless it is above what one process can show."""
    try:
        effect = float(text.strip().removesuffix("%").strip()) / 100
    except ValueError:
        effect = math.nan
    if not PLACED < effect <= 1:
        raise argparse.ArgumentTypeError(
            f"found {text!r}, expected a percentage above {PLACED:.0%}, which two builds of one program differ by, "
            "and at most 100%"
        )
    return effect


class Allotment(NamedTuple):
    """The seconds of a comparison at one point, and those that it may take if it is nearly decided by then."""

    seconds: float
    most: float


class Budget:
    """Shares a run's seconds of timing among the points that are left, by their weights.

    If one point takes less than its share or more, the others share the difference. With `resolve` a point may take
    what it needs, up to RESOLVE_SECONDS, and to what is left of a budget that a user has `given`.
    """

    def __init__(self, seconds: float, weights: Sequence[float], *, resolve: bool = False, given: bool = False) -> None:
        self._left = seconds
        self._weights = math.fsum(weights)
        self._resolve, self._given = resolve, given

    def allot(self, weight: float) -> Allotment:
        """Return the seconds for the next point."""
        left = max(0.0, self._left)
        share = left * weight / max(self._weights, weight)
        self._weights -= weight
        if self._resolve:
            return Allotment(share, min(RESOLVE_SECONDS, left) if self._given else RESOLVE_SECONDS)
        return Allotment(share, max(share, min(MOST_SHARES * share, left / 2)))

    def spend(self, seconds: float) -> None:
        """Subtract the seconds that the timing of a point took."""
        self._left -= seconds
