"""Bisection: find the first of several commits that has a change, by halving."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from harness.bench.statistics import Ratio


@dataclass(frozen=True)
class Culprit:
    """The first commit that has the change; `suspects` could not be judged, and may have brought it instead."""

    commit: str
    suspects: Sequence[str]


def bisect(commits: Sequence[str], has_changed: Callable[[str], bool | None]) -> Culprit:
    """Return the first of `commits` for which `has_changed` is True.

    The revision before the first commit has not changed, and the last commit has. `has_changed` returns None for a
    commit that cannot be judged.
    """
    before, after = -1, len(commits) - 1
    unknown: set[int] = set()
    while candidates := [index for index in range(before + 1, after) if index not in unknown]:
        middle = candidates[len(candidates) // 2]
        changed = has_changed(commits[middle])
        if changed is None:
            unknown.add(middle)
        elif changed:
            after = middle
        else:
            before = middle
    return Culprit(commits[after], [commits[index] for index in sorted(unknown) if before < index < after])


def is_past_change(ratio: Ratio, whole: Ratio) -> bool | None:
    """Return True if a commit's ratio to the oldest revision is nearer to the `whole` change than to no change.

    None if the interval includes the middle between them.
    """
    half = math.sqrt(whole.ratio)
    if ratio.low <= half <= ratio.high:
        return None
    return (ratio.ratio > half) == (whole.ratio > 1)
