"""The time of one run, and how its comparisons share it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

# Seconds of timing alone: building, verifying and witnessing take about as much again.
FULL_SECONDS, QUICK_SECONDS = 240.0, 30.0


def total_seconds(config: pytest.Config) -> float:
    """Return the seconds of timing for all comparisons together: `--budget`, or its default."""
    default = QUICK_SECONDS if config.getoption("--quick") else FULL_SECONDS
    return float(config.getoption("--budget") or default)


class Budget:
    """Shares a run's seconds of timing among the points that are left, by their weights.

    If one point takes less than its share or more, the others share the difference.
    """

    def __init__(self, seconds: float, weights: Sequence[float]) -> None:
        self._left = seconds
        self._weights = math.fsum(weights)

    def allot(self, weight: float) -> float:
        """Return the seconds for the next point."""
        share = max(0.0, self._left) * weight / max(self._weights, weight)
        self._weights -= weight
        return share

    def spend(self, seconds: float) -> None:
        """Subtract the seconds that the timing of a point took."""
        self._left -= seconds
