"""The measure of the arms that benchmarks time: the error of an arm's answer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated

from harness.bench.arms import ModelPool, arm_specs, work_kinds
from harness.bench.comparison import TWIN_SUFFIX
from harness.bench.work import Verification
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import OneOf, Reading, measure

# One point for each kind of work, within the context of the debug size.
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
def arm_error(
    subject: Subject,
    *,
    size: str,
    work: Annotated[str, OneOf(lambda: POINTS)],
    arm: Annotated[str, OneOf(arm_specs)],
    control: Annotated[str, OneOf(arm_specs)],
) -> Reading:
    """Return the errors of an arm and of its control, each over the error that rounding allows: above 1 is wrong.

    The benchmarks' own verifier compares them with the same work in float64. The error is infinite if an arm returns
    other tokens, or does another amount of work than its name says. Raises MissingAbility if the arm is skipped.
    """
    pool, point = ModelPool(subject, SIZES[size]), dict(POINTS[work])
    chosen = {name: arm_specs()[name] for name in (control, arm)}
    verify = work_kinds()[work].make_verifier(
        pool, control, {**chosen, control + TWIN_SUFFIX: chosen[control]}, **point
    )
    found: dict[str, Verification] = {}
    try:
        for name, spec in chosen.items():
            pool.subject_for(spec)
            found[name] = verify(name, work_kinds()[work].build(pool, spec, 0, **point))
    finally:
        pool.close()
    if skipped := next((result for result in found.values() if result.verdict == "skip"), None):
        raise MissingAbility(skipped.message)
    messages = {name: result.message for name, result in found.items()}
    ratios = {name: _of_allowed_error(result) for name, result in found.items()}
    return Reading(ratios, "of what rounding allows", messages)


def _of_allowed_error(result: Verification) -> float:
    """Return the error over the allowed one; 0 or infinity if only a verdict is known."""
    if result.error is not None and result.allowed:
        return result.error / result.allowed
    return 0.0 if result.verdict == "pass" else math.inf
