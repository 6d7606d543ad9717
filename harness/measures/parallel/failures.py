"""Ranks that fail or hang, as a reading: what happened, on which rank, at which line."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import ParamSpec

from harness.measures.parallel.session import RanksFailed
from harness.suites.measure_registry import Reading

P = ParamSpec("P")
PLACE = "the ranks"


def failed_ranks_are_a_reading(function: Callable[P, Reading]) -> Callable[P, Reading]:
    """Return the measure with a reading for ranks that do not answer, which meets no expectation."""

    @functools.wraps(function)
    def measured(*args: P.args, **kwargs: P.kwargs) -> Reading:
        try:
            return function(*args, **kwargs)
        except RanksFailed as failed:
            details: dict[str, object] = {"hint": f"{failed.question}: {failed}", "predicted": {PLACE: 0.0}}
            if failed.failure.line:
                details["line"] = list(failed.failure.line)
            if failed.failure.output:
                details["printed by the rank"] = failed.failure.output
            return Reading({PLACE: str(failed) or math.nan}, "", details)

    return measured
