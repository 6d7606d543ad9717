"""The noise verdict: a difference that shrinks with precision is rounding; one that stays is a bug.

Both sides are run in float32 and in float64. The reference's float64 result stands for the truth: no float32 program
can be nearer to it than rounding lets it, and how near the reference's own float32 run comes is the measured floor.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import torch
from torch import Tensor

from harness.measure import Reading
from harness.subject import Model

# float64 carries 29 bits more than float32, so its rounding floor is the float32 one times 2^-29.
PRECISION_GAIN = 2.0**-29
# How far above the floor rounding may be. Set by measurement: see harness/tests/test_noise.py for both sides of it.
FLOOR_FACTOR_32 = 8.0
FLOOR_FACTOR_64 = 64.0


@dataclass
class Difference:
    """The largest difference at one place, in both precisions, beside its floors; same unit as the quantity."""

    where: str
    scale: float = 0.0
    float32: float = math.nan
    float64: float = math.nan
    floor32: float = math.nan

    @property
    def floor64(self) -> float:
        """The float64 rounding floor that the measured float32 one predicts."""
        return self.floor32 * PRECISION_GAIN

    @property
    def verdict(self) -> str:
        """'equal' (bitwise in float64, and the same float32 error), 'rounding' or 'different'."""
        if self.float64 == 0.0 and self.float32 == self.floor32:
            return "equal"
        # A place whose float32 result happens to be exact has no measured floor; one unit in the last place is one.
        floor = max(self.floor32, self.scale * torch.finfo(torch.float32).eps / 2)
        within = self.float32 <= FLOOR_FACTOR_32 * floor and self.float64 <= FLOOR_FACTOR_64 * floor * PRECISION_GAIN
        return "rounding" if within else "different"  # NaN compares false: different

    def as_row(self) -> dict[str, object]:
        """The numbers and the verdict, JSON-ready."""
        return {
            "where": self.where,
            "float32": self.float32,
            "float64": self.float64,
            "floor32": self.floor32,
            "floor64": self.floor64,
            "scale": self.scale,
            "verdict": self.verdict,
        }


@dataclass
class Trace:
    """What one forward (and backward) pass gave: everything that is compared, by place, in execution order."""

    outputs: dict[str, Tensor] = field(default_factory=dict)
    gradients: dict[str, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class Comparison:
    """Every place that was compared: the forward pass in execution order, and the gradients by published name."""

    outputs: list[Difference]
    gradients: list[Difference]


Make = Callable[[str], Model]


def compare(reference: Make, candidate: Make, ids: Tensor, targets: Tensor, *, backward: bool) -> Comparison:
    """Run both sides in both precisions; each `make(dtype)` gives a fresh model with the same weights.

    One model is alive at a time, and gradients are compared as they arrive, so the peak is the reference's float64
    weights and gradients together.
    """
    truth = trace(reference("float64"), ids, targets, backward=backward)
    outputs = {name: Difference(name, float(value.abs().max())) for name, value in truth.outputs.items()}
    gradients = {name: Difference(name, float(value.abs().max())) for name, value in truth.gradients.items()}
    for make, dtype, slot in (
        (reference, "float32", "floor32"),
        (candidate, "float32", "float32"),
        (candidate, "float64", "float64"),
    ):
        distances = _Distances(truth)
        trace(make(dtype), ids, targets, backward=backward, distances=distances)
        for table, measured in ((outputs, distances.outputs), (gradients, distances.gradients)):
            for name, difference in table.items():
                setattr(difference, slot, measured.get(name, math.nan))
    return Comparison(list(outputs.values()), list(gradients.values()))


def reading(differences: list[Difference]) -> Reading:
    """A reading with a noise verdict for each place."""
    return Reading(
        {d.where: d.verdict for d in differences}, details={"comparisons": [d.as_row() for d in differences]}
    )


def trace(model: Model, ids: Tensor, targets: Tensor, *, backward: bool, distances: _Distances | None = None) -> Trace:
    """One pass over `ids` (B, T). With `distances`, nothing is kept: each tensor is held against the truth at once."""
    found = Trace()
    with model.block_outputs() as blocks, torch.set_grad_enabled(backward):
        if backward:
            logits, loss = model.logits_and_loss(ids, targets)
        else:
            logits = model.logits(ids)
    outputs = {**{name: t.detach() for name, t in blocks.items()}, "logits": logits.detach()}
    if backward:
        outputs["loss"] = loss.detach()
    for name, tensor in outputs.items():
        if distances is None:
            found.outputs[name] = tensor
        else:
            distances.output(name, tensor)
    del outputs, blocks, logits
    if backward:
        _backward(model, loss, found, distances)
    return found


class _Distances:
    """The largest distance of each arriving tensor from the truth; NaN where one of the two is not finite."""

    def __init__(self, truth: Trace) -> None:
        self.truth = truth
        self.outputs: dict[str, float] = {}
        self.gradients: dict[str, float] = {}

    def output(self, name: str, tensor: Tensor) -> None:
        self.outputs[name] = distance(tensor, self.truth.outputs[name])

    def gradient(self, name: str, tensor: Tensor, part: Callable[[Tensor], Tensor]) -> None:
        found = distance(tensor, part(self.truth.gradients[name]))
        self.gradients[name] = found if math.isnan(found) else max(found, self.gradients.get(name, 0.0))


def distance(found: Tensor, truth: Tensor) -> float:
    """max |found - truth|, in float64; NaN if the shapes differ or a value is not finite."""
    if found.shape != truth.shape:
        return math.nan
    worst = 0.0
    for a, b in _chunks(found, truth):
        largest = float((a.double() - b).abs().max())
        if not math.isfinite(largest):
            return math.nan
        worst = max(worst, largest)
    return worst


def _chunks(found: Tensor, truth: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in pieces of some rows, so that a difference of two large tensors is never whole in memory."""
    if found.ndim == 0:
        yield found, truth
        return
    yield from zip(found.split(8192), truth.split(8192), strict=True)


def _backward(model: Model, loss: Tensor, found: Trace, distances: _Distances | None) -> None:
    """Backward, taking each gradient as soon as it is final; a parameter without one has gradient zero."""
    if distances is None:
        loss.backward()  # type: ignore[no-untyped-call]
        found.gradients = model.gradients()
        return
    parameters = dict(model.module.named_parameters())
    pending = {row.own: row for row in model.weights.rows}

    def take(own: str) -> None:
        row, parameter = pending.pop(own), parameters[own]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        if row.published in distances.truth.gradients:
            distances.gradient(row.published, row.to_published(gradient), row.part_of)
        parameter.grad = None

    hooks = [
        parameters[own].register_post_accumulate_grad_hook(lambda _, own=own: take(own))  # type: ignore[misc]
        for own in pending
    ]
    try:
        loss.backward()  # type: ignore[no-untyped-call]
    finally:
        for hook in hooks:
            hook.remove()
    for own in list(pending):
        take(own)
