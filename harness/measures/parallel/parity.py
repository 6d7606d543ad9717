"""Measures that compare ranks with one process on the global batch: logits, loss, gradients, norms, weights."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.parallel import causes
from harness.measures.parallel.experiments import DTYPES
from harness.measures.parallel.failures import failed_ranks_are_a_reading
from harness.measures.parallel.global_batch import PLAIN
from harness.measures.parallel.session import Session, session
from harness.oracle.noise_verdict import Difference, distance, max_abs, maximum, reading
from harness.subjects.protocols import Parallelizes
from harness.subjects.ranks.program import TENSOR
from harness.suites.measure_registry import Reading, measure

Kind = Literal["data", "sharded", "tensor"]
Case = Literal["plain", "accumulated"]
Found = dict[str, list[Tensor]]  # the values at each place, of each rank


@measure
@failed_ranks_are_a_reading
def ranks_against_one_process(
    subject: Parallelizes,
    *,
    size: str,
    kind: Kind,
    compare: Literal["logits", "loss", "gradients", "norm", "clipped", "weights"],
    case: Case = "plain",
) -> Reading:
    """Return a noise verdict for what the ranks compute together, against one process on the global batch.

    plain: one micro-batch, its loss and backward pass, so that the wrapper alone is judged. accumulated: the program's
    own function for gradients, over two micro-batches with different numbers of targets. Clipping, and the weights
    after it and the steps of AdamW, are of the latter; of a plain backward pass if the program has no such function.
    Each rank's values are compared, and the worst counts.
    """
    ranks = session(subject, kind, size)
    step: str = ranks.trained if compare in ("weights", "norm", "clipped") else case
    read = READERS[compare]
    found = {dtype: read(ranks, step, dtype) for dtype in DTYPES}
    if not found["float64"]:
        raise MissingAbility(f"{subject.name} returns no {compare} that could be compared")
    expected = {dtype: EXPECTED[compare](ranks, step, dtype) for dtype in DTYPES}
    differences = [
        Difference(
            name,
            scale=max_abs(exact),
            float32=_worst(found["float32"][name], exact),
            float64=_worst(found["float64"][name], exact),
            floor32=distance(expected["float32"][name], exact),
        )
        for name, exact in expected["float64"].items()
        if name in found["float64"]
    ]
    result = reading(differences)
    wrong = [each.where for each in differences if each.verdict == "different"]
    if not wrong:
        return result
    said = causes.explain(ranks, compare, step, found["float64"], expected["float64"], wrong)
    details = {**result.details, "hint": said, "answers": {wrong[0]: said}} if said else dict(result.details)
    line = causes.line_of(ranks, compare, step)
    return Reading(result.value, result.unit, {**details, "line": list(line)} if line and said else details)


def _worst(found: Sequence[Tensor], exact: Tensor) -> float:
    worst = 0.0
    for each in found:
        worst = maximum(worst, distance(each.double(), exact))
    return worst


def _steps(ranks: Session, case: str, dtype: str) -> list[list[dict[str, Any]]]:
    """Return the steps of each rank."""
    return [answer[dtype]["steps"] for answer in ranks.answers(case)]


def _logits(ranks: Session, case: str, dtype: str) -> Found:
    first = [steps[0]["logits"] for steps in _steps(ranks, case, dtype)]
    return {f"rank {number}": [logits] for number, logits in enumerate(first)}


def _expected_logits(ranks: Session, case: str, dtype: str) -> dict[str, Tensor]:
    whole = ranks.one_process(case, dtype)["logits"]
    shares = [whole] * ranks.ranks if ranks.kind == TENSOR else whole.chunk(ranks.ranks)
    return {f"rank {number}": share for number, share in enumerate(shares)}


def _losses(ranks: Session, case: str, dtype: str) -> Found:
    """Return the loss of each step: of the ranks' shares their mean, else what the program returns on each rank."""
    steps = _steps(ranks, case, dtype)
    found: Found = {}
    for number, each in enumerate(zip(*steps, strict=True)):
        own = [torch.tensor(step["loss"], dtype=torch.float64) for step in each if step["loss"] is not None]
        if own and case == PLAIN and ranks.kind != TENSOR:
            own = [torch.stack(own).mean()]
        if own:
            found[f"step {number}"] = own
    return found


def _norms(ranks: Session, case: str, dtype: str) -> Found:
    """Return the norm of each step that the program returns on each rank; none if it does not clip."""
    norms = [[step.get("norm") for step in own] for own in _steps(ranks, case, dtype)]
    return {
        f"step {number}": [torch.tensor(norm, dtype=torch.float64) for norm in each]
        for number, each in enumerate(zip(*norms, strict=True))
        if None not in each
    }


def _numbers(key: str) -> Callable[[Session, str, str], dict[str, Tensor]]:
    def read(ranks: Session, case: str, dtype: str) -> dict[str, Tensor]:
        values = ranks.one_process(case, dtype)[key]
        return {f"step {number}": torch.tensor(v, dtype=torch.float64) for number, v in enumerate(values)}

    return read


def _whole(key: str) -> Callable[[Session, str, str], Found]:
    """Return what reads whole parameters of the first step (`gradients`, `clipped`), or after all steps (`after`)."""

    def read(ranks: Session, case: str, dtype: str) -> Found:
        answers = [answer[dtype] for answer in ranks.answers(case)]
        given = [answer if key == "after" else answer["steps"][0] for answer in answers]
        if not all(key in each for each in given):
            return {}
        views = ranks.whole([each[key] for each in given])
        return {name: [view[name] for view in views] for name in ranks.shapes}

    return read


def _parameters(key: str) -> Callable[[Session, str, str], dict[str, Tensor]]:
    def read(ranks: Session, case: str, dtype: str) -> dict[str, Tensor]:
        return dict(zip(ranks.shapes, ranks.one_process(case, dtype)[key], strict=True))

    return read


READERS: dict[str, Callable[[Session, str, str], Found]] = {
    "logits": _logits,
    "loss": _losses,
    "norm": _norms,
    "gradients": _whole("gradients"),
    "clipped": _whole("clipped"),
    "weights": _whole("after"),
}
EXPECTED: dict[str, Callable[[Session, str, str], dict[str, Tensor]]] = {
    "logits": _expected_logits,
    "loss": _numbers("losses"),
    "norm": _numbers("norms"),
    "gradients": _parameters("gradients"),
    "clipped": _parameters("clipped"),
    "weights": _parameters("after"),
}
