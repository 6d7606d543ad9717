"""Comparison of two revisions of a subject: the same job in a worker each, block by block in turn, answers compared."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from harness.bench.comparison import TWIN_SUFFIX, Arm, Comparison
from harness.bench.measurement import measure
from harness.bench.result import ComparisonResult
from harness.bench.work import Verification, Work
from harness.core.sizes import SIZES
from harness.history.jobs import Job
from harness.history.worker_process import WorkerClock, WorkerProcess, remote_work

if TYPE_CHECKING:  # torch takes seconds to import, and the command line reads this module
    from torch import Tensor

OLD, NEW = "old", "new"
EFFECT = 0.03  # changes of a few percent are what revisions are compared for


@dataclass
class SameAnswerVerifier:
    """Verifies a revision's answer by the old revision's: they may differ by rounding only."""

    size: str
    _old: dict[str, Tensor] = dataclasses.field(default_factory=dict)

    def __call__(self, name: str, work: Work) -> Verification:
        """Return the verdict on one revision's answer; the old revision must be verified first."""
        answer = work.answer()
        if not all(tensor.isfinite().all() for tensor in answer.values()):
            return Verification("fail", "the answer contains NaN or infinity")
        if name == OLD:
            self._old = answer
            return Verification("pass", "the answer that the others are compared with")
        error = max((_distance(answer[key], old) if key in answer else math.inf for key, old in self._old.items()),
                    default=math.inf)  # fmt: skip
        allowed = allowed_error(self.size, work.computes)
        message = f"relative error {error:.1e} against the old revision's answer"
        if error > allowed:
            return Verification("fail", f"not the same work: {message}; rounding allows {allowed:.1e}", error=error)
        return Verification("pass", message, error=error)


def _distance(answer: Tensor, old: Tensor) -> float:
    """Return the relative error; for integers, 0 if all are equal and infinity otherwise."""
    from harness.bench.arms.error_bounds import relative_error  # imports torch

    if answer.shape != old.shape:
        return math.inf
    if not old.is_floating_point():
        return 0.0 if bool((answer == old).all()) else math.inf
    shape = (1, -1) if old.dim() < 2 else old.shape  # relative_error splits along rows
    return relative_error(answer.reshape(shape), old.reshape(shape).double())


def allowed_error(size: str, computes: str) -> float:
    """Return by how much two correct revisions may differ.

    In float32, by as much as after a step of training, which is the most of any work; a fault differs by 8e-4 or more.
    In coarser types, by four roundings (weight, input, product, sum with the residual stream) of each of a model's
    products.
    """
    import torch  # as above

    from harness.bench.arms.error_bounds import training_bound

    if computes in ("float32", "float64"):
        return training_bound(SIZES[size])
    coarse = getattr(torch, computes, torch.bfloat16)
    unit = torch.finfo(coarse if coarse.is_floating_point else torch.bfloat16).eps / 2
    return float(unit * math.sqrt(4 * (4 * SIZES[size].layers + 1)))


def measure_revisions(
    processes: Mapping[str, WorkerProcess], job: Job, *, size: str, seconds: float
) -> ComparisonResult:
    """Measure the job in each process, block by block in turn, for about `seconds` of work.

    `processes` are named `old`, `new` and, for a twin of the old revision, `old-again`.
    """
    clock = WorkerClock()
    arms = tuple(
        Arm(
            name,
            lambda process=process: remote_work(process, job, clock),  # type: ignore[misc]
            OLD if name.endswith(TWIN_SUFFIX) else None,
        )
        for name, process in processes.items()
    )
    comparison = Comparison(
        name=f"{job.comparison} ({job.arm})", title=f"Two revisions: {job.label}", metric=job.metric, control=OLD,
        arms=arms, verify=SameAnswerVerifier(size), axis=job.axis, point=job.point,
    )  # fmt: skip
    return measure(comparison, seconds=seconds, effect=EFFECT, clock=clock)
