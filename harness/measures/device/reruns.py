"""The measure of reruns: the same call twice, bit by bit, and the first operation that computes something else."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from harness.core.sizes import SIZES
from harness.core.source_lines import SourceLine, user_line
from harness.measures.device.errors_in_floors import float32_model, in_floors, outputs_and_gradients, reference_run
from harness.oracle.noise_verdict import FLOOR_FACTOR_32
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

MOST_NAMED = 3


@measure
def reruns(subject: Subject, *, size: str, compare: Literal["outputs", "gradients"]) -> Reading:
    """Return "same" for a second call that is bitwise equal to the first, "rounding" or "other" otherwise, by place.

    "rounding": within the factor of the noise verdict; sums in another order, as of atomic additions, are. With "other"
    and "rounding", `details` names the first operations whose results differ. A difference is never 0 for NaN.
    """
    target = SIZES[size]
    model, passes = float32_model(subject, target), []
    for _ in range(2):
        with _Results() as recorder:
            found = outputs_and_gradients(model, target)
        passes.append((found, recorder.results))
    (first, results), (second, again) = passes
    places = [place for place in first if (place in ("logits", "loss")) == (compare == "outputs")]
    gaps = in_floors(second, first, reference_run(target))
    words = {place: _word(first[place], second[place], gaps.get(place, 0.0)) for place in places}
    if set(words.values()) <= {"same"}:
        return Reading(words)
    operations = _differing(results, again)
    said = ", ".join(operations) or "no operation of PyTorch's: a kernel of the subject's own"
    named = {place: f"{word}: {said}" if word == "other" else word for place, word in words.items()}
    says = f"a second call gives other {compare}, by rounding; first: {said}"
    return Reading(named, details={"operations": operations, "hint": f"differs first: {said}", "says": says})


def _word(first: Tensor, second: Tensor, gap: float) -> str:
    if torch.equal(first, second):
        return "same"
    return "rounding" if gap <= FLOOR_FACTOR_32 else "other"


@dataclass(frozen=True)
class _Result:
    operation: str
    line: SourceLine | None
    tensors: tuple[Tensor, ...]

    def __str__(self) -> str:
        return self.operation + (f" at {self.line}" if self.line is not None else "")


class _Results(TorchDispatchMode):
    """Record copies of what every operation computes, in the forward and in the backward pass, inside the block."""

    def __init__(self) -> None:
        super().__init__()
        self.results: list[_Result] = []

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        """Return False: to skip it, PyTorch would import it first, which takes seconds."""
        return False

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        answer = function(*args, **(kwargs or {}))
        name = function.overloadpacket.__name__
        tensors = [leaf for leaf in tree_leaves(answer) if isinstance(leaf, Tensor) and not leaf.is_meta]
        if tensors and not name.startswith(("empty", "new_empty")):  # their memory is uninitialised
            copies = tuple(tensor.detach().to("cpu", copy=True) for tensor in tensors)
            self.results.append(_Result(name, user_line(), copies))
        return answer


def _differing(first: Sequence[_Result], second: Sequence[_Result]) -> list[str]:
    """Return the operations that differ first, each with the user's line, and before which nothing differs."""
    found: list[str] = []
    for before, after in zip(first, second, strict=False):
        if before.operation != after.operation:
            return [*found, f"another operation: {before}, then {after}"]
        if not all(map(torch.equal, before.tensors, after.tensors)):
            return [str(before)]
    return found
