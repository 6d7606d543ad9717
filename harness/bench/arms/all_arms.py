"""Every kind of work and every arm by name. Importing a module of `workloads` registers the kinds of work in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.bench.arms.arm_table import ARMS
from harness.bench.arms.model_pool import ModelPool
from harness.bench.arms.registry import WORK_KINDS, ArmSpec, WorkKind
from harness.bench.arms.workloads import (
    attention,
    decoding,
    experts,
    forward,
    generation,
    ranks,
    serving,
    speculation,
    startup,
    training,
)
from harness.bench.work import Work

# Imported for what they register.
assert all((attention, decoding, experts, forward, generation, ranks, serving, speculation, startup, training))
_ARM_SPECS = {arm.name: arm for arm in ARMS}
assert len(_ARM_SPECS) == len(ARMS), "two arms have one name"


def arm_specs() -> Mapping[str, ArmSpec]:
    """Return every arm by its name."""
    return _ARM_SPECS


def work_kinds() -> Mapping[str, WorkKind]:
    """Return every kind of work by its name."""
    return WORK_KINDS


def work_of(pool: ModelPool, work: str, arm: str, copy: int = 0, **parameters: Any) -> Work:
    """Return the work of an arm, by the names of both. Raises Missing if the arm is not available here."""
    return work_kinds()[work].build(pool, arm_specs()[arm], copy, **parameters)
