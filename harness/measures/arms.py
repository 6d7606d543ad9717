"""Measures of the arms that benchmarks time: whether each gives the answer that the others are timed for."""

from __future__ import annotations

import math
from collections.abc import Mapping

from harness.bench.arms import ModelPool, arm_specs, work_kinds
from harness.bench.comparison import AGAIN, Verification
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.subjects.model import Subject
from harness.suites.measure_registry import Reading, measure

# A point of each kind of work that the debug size has room for.
POINTS: Mapping[str, Mapping[str, int]] = {
    "forward": {"tokens": 24},
    "decode": {"context": 16},
    "generate": {"prompt": 10, "new_tokens": 8},
    "training-step": {"tokens": 16, "batch": 4},
    "backward": {"tokens": 24},
    "optimizer": {"tokens": 16},
    "attention": {"tokens": 64},
    "attention-layer": {"tokens": 64},
}


@measure
def arm_error(subject: Subject, *, size: str, work: str, arm: str, control: str) -> Reading:
    """The error of an arm's answer, and of its control's, in parts of what rounding allows; over 1 it is wrong.

    Held against the same work in float64 by the judges that the benchmarks have. An arm that gives other tokens, or
    does another amount of work than its name says, has no part but all: infinity.
    """
    pool, point = ModelPool(subject, SIZES[size]), dict(POINTS[work])
    chosen = {name: arm_specs()[name] for name in (control, arm)}
    judge = work_kinds()[work].judge(pool, control, {**chosen, control + AGAIN: chosen[control]}, **point)
    found: dict[str, Verification] = {}
    try:
        for name, way in chosen.items():
            pool.who(way)
            found[name] = judge(name, work_kinds()[work].build(pool, way, 0, **point))
    finally:
        pool.close()
    if skipped := next((finding for finding in found.values() if finding.verdict == "skip"), None):
        raise MissingAbility(skipped.message)
    told = {name: finding.message for name, finding in found.items()}
    return Reading({name: _part(finding) for name, finding in found.items()}, "of what rounding allows", told)


def _part(finding: Verification) -> float:
    if finding.error is not None and finding.allowed:
        return finding.error / finding.allowed
    return 0.0 if finding.verdict == "pass" else math.inf
