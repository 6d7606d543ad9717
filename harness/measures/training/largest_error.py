"""The largest of several errors, among which NaN counts as the largest: `max` drops it."""

from __future__ import annotations

import math
from collections.abc import Iterable


def largest(errors: Iterable[float], *, default: float = 0.0) -> float:
    """Return the largest value, or NaN if one of them is NaN, or `default` if there is none."""
    found = list(errors)
    return math.nan if any(map(math.isnan, found)) else max(found, default=default)


def rank_of_error(error: float) -> tuple[bool, float]:
    """Return a key for `max` by which NaN comes after every number."""
    return math.isnan(error), 0.0 if math.isnan(error) else error
