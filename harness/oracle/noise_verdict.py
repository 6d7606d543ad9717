"""The noise verdict: a difference that shrinks with precision is rounding; one that stays is a bug.

Both sides are run in float32 and in float64. The reference's float64 result stands for the truth: no float32 program
can be nearer to it than rounding lets it, and how near the reference's own float32 run comes is the measured floor.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from harness.oracle import model_cache
from harness.subjects.model import Model
from harness.subjects.weight_map import MappedWeight, joined
from harness.suites.measure_registry import Reading

# float64 carries 29 bits more than float32, so its rounding floor is the float32 one times 2^-29.
PRECISION_GAIN = 2.0**-29
# How far above the floor rounding may be. Set by measurement: see harness/tests/oracle/test_noise_verdict.py for both sides of it.
FLOOR_FACTOR_32 = 8.0
FLOOR_FACTOR_64 = 64.0


@dataclass(frozen=True)
class Difference:
    """The largest difference at one place, in both precisions, beside its floors; same unit as the quantity."""

    where: str
    scale: float
    float32: float
    float64: float
    floor32: float

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
class Truth:
    """The reference's float64 pass, and how far its own float32 pass is from it: what candidates are held against."""

    outputs: dict[str, Tensor]  # by place in execution order
    gradients: dict[str, Tensor]  # by published name; empty without a backward pass
    floors: _Distances


@dataclass(frozen=True)
class NoiseComparison:
    """Every place that was compared: the forward pass in execution order, and the gradients by published name."""

    outputs: list[Difference]
    gradients: list[Difference]

    @property
    def different(self) -> list[Difference]:
        """The places that differ by more than rounding."""
        return [difference for difference in (*self.outputs, *self.gradients) if difference.verdict == "different"]

    @property
    def only_beyond_float32(self) -> bool:
        """Whether float64 alone tells the two apart, and only in digits that float32 does not have."""
        return bool(self.different) and all(
            d.float32 <= FLOOR_FACTOR_32 * d.floor32 and d.float64 <= torch.finfo(torch.float32).eps * d.scale
            for d in self.different
        )


Make = Callable[[str], Model]


def truth(reference: Make, ids: Tensor, targets: Tensor, *, backward: bool) -> Truth:
    """Run the reference, `make(dtype)`, in both precisions over `ids` (B, T)."""
    model_cache.clear()  # what neighbouring checks shared is not needed here, and memory is
    kept = _Kept()
    _pass(reference("float64"), ids, targets, backward, kept)
    found = Truth(kept.outputs, kept.gradients, _Distances(kept.outputs, kept.gradients))
    _pass(reference("float32"), ids, targets, backward, found.floors)
    return found


def compare(candidate: Make, against: Truth, ids: Tensor, targets: Tensor) -> NoiseComparison:
    """Run the candidate in both precisions and hold it against the truth.

    One model is alive at a time and gradients are compared as they arrive, so the peak is one float64 model and the
    truth's gradients.
    """
    measured = {dtype: _Distances(against.outputs, against.gradients) for dtype in ("float32", "float64")}
    for dtype, distances in measured.items():
        _pass(candidate(dtype), ids, targets, bool(against.gradients), distances)

    def differences(kind: str) -> list[Difference]:
        return [
            Difference(
                name,
                scale=largest(tensor),
                float32=getattr(measured["float32"], kind).get(name, math.nan),
                float64=getattr(measured["float64"], kind).get(name, math.nan),
                floor32=getattr(against.floors, kind).get(name, math.nan),
            )
            for name, tensor in getattr(against, kind).items()
        ]

    return NoiseComparison(differences("outputs"), differences("gradients"))


def reading(differences: list[Difference]) -> Reading:
    """A reading with a noise verdict for each place."""
    return Reading(
        {d.where: d.verdict for d in differences}, details={"comparisons": [d.as_row() for d in differences]}
    )


def distance(found: Tensor, expected: Tensor) -> float:
    """max |found - expected|; NaN if the shapes differ or a value is not finite."""
    if found.shape != expected.shape:
        return math.nan
    gap = 0.0
    for a, b in _chunks(found, expected):
        gap = worst(gap, largest(a - b))  # a float32 beside a float64 one is widened by the subtraction
    return gap if math.isfinite(gap) else math.nan


def worst(a: float, b: float) -> float:
    """The larger of two, and NaN if either is: `max` would drop it, and with it what went wrong."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def largest(tensor: Tensor) -> float:
    """max |x|."""
    return float(torch.linalg.vector_norm(tensor, math.inf))


class _Sink(Protocol):
    """Takes each tensor of a pass as soon as it is known."""

    def output(self, name: str, tensor: Tensor) -> None: ...

    def gradient(self, row: MappedWeight, own: Tensor) -> None: ...


class _Kept:
    """Keeps every tensor, the gradients' parts put together under their published names."""

    def __init__(self) -> None:
        self.outputs: dict[str, Tensor] = {}
        self.gradients: dict[str, Tensor] = {}
        self._parts: dict[str, list[tuple[MappedWeight, Tensor]]] = {}

    def output(self, name: str, tensor: Tensor) -> None:
        self.outputs[name] = tensor

    def gradient(self, row: MappedWeight, own: Tensor) -> None:
        parts = self._parts.setdefault(row.published, [])
        parts.append((row, row.to_published(own)))
        self.gradients[row.published] = joined(parts)


class _Distances:
    """Keeps of each tensor its largest distance from the expected one; NaN where one of the two is not finite."""

    def __init__(self, outputs: dict[str, Tensor], gradients: dict[str, Tensor]) -> None:
        self.outputs: dict[str, float] = {}
        self.gradients: dict[str, float] = {}
        self._expected_outputs, self._expected_gradients = outputs, gradients

    def output(self, name: str, tensor: Tensor) -> None:
        self.outputs[name] = distance(tensor, self._expected_outputs[name])

    def gradient(self, row: MappedWeight, own: Tensor) -> None:
        name = row.published
        if name in self._expected_gradients:
            found = distance(row.to_published(own), row.part_of(self._expected_gradients[name]))
            self.gradients[name] = worst(found, self.gradients.get(name, 0.0))


def _pass(model: Model, ids: Tensor, targets: Tensor, backward: bool, sink: _Sink) -> None:
    """One pass over `ids`, each tensor handed to the sink at once."""
    with model.block_outputs() as blocks, torch.set_grad_enabled(backward):
        if backward:
            logits, loss = model.logits_and_loss(ids, targets)
        else:
            logits = model.logits(ids)
    for name, tensor in blocks.items():
        sink.output(name, tensor.detach())
    sink.output("logits", logits.detach())
    if backward:
        sink.output("loss", loss.detach())
        del blocks, logits
        _backward(model, loss, sink)


def _backward(model: Model, loss: Tensor, sink: _Sink) -> None:
    """Backward, handing on each gradient as soon as it is final; a parameter without one has gradient zero."""
    parameters = dict(model.module.named_parameters())
    pending: dict[str, list[MappedWeight]] = {}  # one own parameter may hold several published ones
    for row in model.weights.rows:
        pending.setdefault(row.own, []).append(row)

    def take(own: str) -> None:
        rows, parameter = pending.pop(own), parameters[own]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for row in rows:
            sink.gradient(row, gradient)
        parameter.grad = None

    hooks = [
        parameters[own].register_post_accumulate_grad_hook(functools.partial(_taken, take, own))
        for own in pending
        if parameters[own].requires_grad  # a frozen one is taken at the end, as zero
    ]
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    for own in list(pending):
        take(own)


def _taken(take: Callable[[str], None], own: str, parameter: Tensor) -> None:
    take(own)


def _chunks(found: Tensor, expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Both in pieces of some rows, so that a difference of two large tensors is never whole in memory."""
    if found.ndim == 0:
        yield found, expected
    else:
        yield from zip(found.split(8192), expected.split(8192), strict=True)
