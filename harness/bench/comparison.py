"""A comparison: arms that do the same work, and the control that they are compared with."""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from harness.bench.work import Sample, Verification, Work
from harness.core.errors import HarnessError
from harness.core.record_files import comparison_label

TWIN_SUFFIX = "-again"


@dataclass(frozen=True)
class Arm:
    """One arm of a comparison.

    A twin is an arm that is built a second time: its true ratio to the arm that it is the `twin_of` is 1. `claims` is
    what the name promises (`{"dtype": "bfloat16"}`): an arm that violates a claim is rejected. `peer` is True if
    another implementation than the subject does the work; `beside` is the subject's arm that does it in that way, where
    there are several. `description` says in one line what the arm is.
    """

    name: str
    build: Callable[[], Work]
    twin_of: str | None = None
    claims: Mapping[str, Any] = field(default_factory=dict)
    peer: bool = False
    beside: str | None = None
    description: str = ""


def arms_with_twin(builders: Mapping[str, Callable[[int], Work]], *, of: str) -> tuple[Arm, ...]:
    """Return an arm for each builder, and a twin of the arm `of`.

    A builder gets the number of the copy: 0, or 1 for the twin.
    """
    arms = (Arm(name, functools.partial(build, 0)) for name, build in builders.items())
    return (*arms, Arm(of + TWIN_SUFFIX, functools.partial(builders[of], 1), twin_of=of))


@dataclass(frozen=True)
class Comparison:
    """Arms that do the same work at one point of an axis, and their control.

    `verify` takes an arm's name and its work, the control first, and returns the verdict on its answer. `verify_sample`
    returns the verdict on what a timed call returned, where the work keeps that. `why` says what the comparison shows.
    Raises HarnessError if two arms have
    one name, or if the control or the original of a twin is not among the arms.
    """

    name: str
    title: str
    metric: str
    control: str
    arms: tuple[Arm, ...]
    verify: Callable[[str, Work], Verification]
    axis: str | None = None
    point: int | None = None
    verify_sample: Callable[[str, Work, Sample], Verification] | None = None
    why: str = ""

    def __post_init__(self) -> None:
        names = [arm.name for arm in self.arms]
        required = {self.control} | {arm.twin_of for arm in self.arms if arm.twin_of}
        if len(set(names)) < len(names) or not required <= set(names):
            raise HarnessError(
                f"comparison {self.name}: expected distinct arms that include {sorted(required)}, found {names}"
            )

    @property
    def label(self) -> str:
        """`attention forward, tokens=512`."""
        return comparison_label(self.name, self.metric, self.axis, self.point)

    def arm(self, name: str) -> Arm:
        """Return the arm of that name."""
        return next(arm for arm in self.arms if arm.name == name)

    def baseline(self, name: str) -> str:
        """Return the name of the arm that `name` is compared with: its original for a twin, else the control."""
        return self.arm(name).twin_of or self.control
