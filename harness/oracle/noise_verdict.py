"""The noise verdict: a difference that shrinks with precision is rounding; a difference that stays is a bug.

Both sides run in float32 and in float64. The reference's float64 result is the expected value. The error of the
reference's own float32 run is the measured floor: it says how much error float32 rounding alone causes at this place.
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

# float64 has 29 more significand bits than float32, so its rounding floor is the float32 floor times 2^-29.
PRECISION_GAIN = 2.0**-29

# How many times the floor rounding may reach. Both factors rest on one measurement, which
# harness/tests/oracle/test_noise_verdict.py repeats: the reference `gpt` against Hugging Face's GPT-2 at the debug size
# with probe weights, the worst ratio over all outputs and gradients.
#                                                           float32   float64
#   a correct model                                         1.96      2.06
#   epsilon 1.01e-5 instead of 1e-5 in one norm of three    1.96      5.1e7    (the smallest fault that was tried)
#   ln_f rounded to bfloat16 in the float32 run only        8.1e3     2.06
# Float32 has 4 times, float64 31 times the ratio of the correct model: the float64 floor is predicted from the float32
# floor, not measured, and the faults leave more room there. The test asserts at least 2 and 8 times.
FLOOR_FACTOR_32 = 8.0
FLOOR_FACTOR_64 = 64.0

CHUNK = 2**18  # numbers that are compared at once: 2 MiB in float64

BuildModel = Callable[[str], Model]  # from a dtype's name, "float32" or "float64", to the model in it


@dataclass(frozen=True)
class Difference:
    """The largest absolute difference at one place in both precisions, with the floor; all in the place's own unit.

    Attributes:
        where: The place: `block 0`, `logits`, `loss`, or the published name of a gradient.
        scale: The largest absolute value that is expected.
        float32: The candidate's difference in float32 from the reference's float64 result.
        float64: The candidate's difference in float64.
        floor32: The reference's own difference in float32.
    """

    where: str
    scale: float
    float32: float
    float64: float
    floor32: float

    @property
    def floor64(self) -> float:
        """The float64 rounding floor that the measured float32 floor predicts."""
        return self.floor32 * PRECISION_GAIN

    @property
    def verdict(self) -> str:
        """'equal' (bitwise in float64, with the reference's float32 error), 'rounding' or 'different'."""
        if self.float64 == 0.0 and self.float32 == self.floor32:
            return "equal"
        # If the reference's float32 result happens to be exact, nothing was measured: half a unit in the last place
        # of the scale is the floor then.
        floor = max(self.floor32, self.scale * torch.finfo(torch.float32).eps / 2)
        within = self.float32 <= FLOOR_FACTOR_32 * floor and self.float64 <= FLOOR_FACTOR_64 * floor * PRECISION_GAIN
        return "rounding" if within else "different"  # every comparison with NaN is false: different

    def as_row(self) -> dict[str, object]:
        """Return the numbers and the verdict, JSON-ready."""
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
class ReferenceRun:
    """The reference's float64 outputs and gradients, and the errors of its own float32 run.

    Attributes:
        outputs: The outputs by place, in execution order.
        gradients: The gradients by published name; empty without a backward pass.
        floors: The errors of the reference's float32 run.
    """

    outputs: dict[str, Tensor]
    gradients: dict[str, Tensor]
    floors: _DistanceSink


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
        """True if only float64 shows a difference, and only in digits that float32 does not have."""
        return bool(self.different) and all(
            d.float32 <= FLOOR_FACTOR_32 * d.floor32 and d.float64 <= torch.finfo(torch.float32).eps * d.scale
            for d in self.different
        )


def run_reference(build: BuildModel, ids: Tensor, targets: Tensor, *, backward: bool) -> ReferenceRun:
    """Run the reference in both precisions.

    Args:
        build: Builds the reference in a dtype.
        ids: Token ids (B, T).
        targets: Target ids (B, T).
        backward: Whether to compute the loss and the gradients as well.
    """
    model_cache.clear()  # the last check's model is not needed here, and memory is
    expected = _TensorSink()
    _run(build("float64"), ids, targets, backward, expected)
    run = ReferenceRun(expected.outputs, expected.gradients, _DistanceSink(expected.outputs, expected.gradients))
    _run(build("float32"), ids, targets, backward, run.floors)
    return run


def compare(candidate: BuildModel, reference: ReferenceRun, ids: Tensor, targets: Tensor) -> NoiseComparison:
    """Run the candidate in both precisions on the same `ids` and `targets`, and compare it with the reference.

    One model is alive at a time and gradients are compared as they arrive, so the peak is one float64 model and the
    reference's gradients.
    """
    measured = {dtype: _DistanceSink(reference.outputs, reference.gradients) for dtype in ("float32", "float64")}
    for dtype, distances in measured.items():
        _run(candidate(dtype), ids, targets, bool(reference.gradients), distances)

    def differences(kind: str) -> list[Difference]:
        return [
            Difference(
                name,
                scale=max_abs(tensor),
                float32=getattr(measured["float32"], kind).get(name, math.nan),
                float64=getattr(measured["float64"], kind).get(name, math.nan),
                floor32=getattr(reference.floors, kind).get(name, math.nan),
            )
            for name, tensor in getattr(reference, kind).items()
        ]

    return NoiseComparison(differences("outputs"), differences("gradients"))


def reading(differences: list[Difference]) -> Reading:
    """Return a reading with a noise verdict for each place."""
    return Reading(
        {d.where: d.verdict for d in differences}, details={"comparisons": [d.as_row() for d in differences]}
    )


def distance(found: Tensor, expected: Tensor) -> float:
    """Return max |found - expected|; NaN if the shapes differ or a value is not finite.

    They are compared on the device of what is expected.
    """
    if found.shape != expected.shape:
        return math.nan
    found = found.to(expected.device)
    gap = 0.0
    for a, b in _chunks(found, expected):
        gap = maximum(gap, max_abs(a - b))  # subtracting a float64 tensor promotes a float32 one
    return gap if math.isfinite(gap) else math.nan


def maximum(a: float, b: float) -> float:
    """Return the larger of the two, and NaN if either is NaN, as torch.maximum does; Python's `max` may drop a NaN."""
    return math.nan if math.isnan(a) or math.isnan(b) else max(a, b)


def relative_distance(found: Tensor, expected: Tensor) -> float:
    """Return max |found - expected| relative to max |expected|; NaN if the shapes differ or a value is not finite."""
    return distance(found, expected) / max(max_abs(expected), 1e-300)


def max_abs(tensor: Tensor) -> float:
    """Return max |x|; NaN if any x is."""
    low, high = torch.aminmax(tensor)
    return maximum(abs(float(low)), abs(float(high)))


class _Sink(Protocol):
    """Receives each tensor of a run as soon as it is known."""

    def output(self, name: str, tensor: Tensor) -> None: ...

    def gradient(self, row: MappedWeight, own: Tensor) -> None: ...


class _TensorSink:
    """Keeps every tensor. The parts of a gradient are joined under their published name."""

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


class _DistanceSink:
    """Keeps the distance of each tensor from the expected tensor; NaN if either has a value that is not finite."""

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
            self.gradients[name] = maximum(found, self.gradients.get(name, 0.0))


def _run(model: Model, ids: Tensor, targets: Tensor, backward: bool, sink: _Sink) -> None:
    """Run the model on `ids`, and pass each tensor to the sink at once."""
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
    """Run the backward pass, and pass each gradient to the sink as soon as it is final, then free it.

    A parameter that no gradient reaches has gradient zero.
    """
    parameters = dict(model.module.named_parameters())
    pending: dict[str, list[MappedWeight]] = {}  # one parameter of the subject may contain several published ones
    for row in model.weights.rows:
        pending.setdefault(row.own, []).append(row)

    def pass_on(own: str) -> None:
        rows, parameter = pending.pop(own), parameters[own]
        gradient = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
        for row in rows:
            sink.gradient(row, gradient)
        parameter.grad = None

    hooks = [
        parameters[own].register_post_accumulate_grad_hook(functools.partial(_on_gradient, pass_on, own))
        for own in pending
        if parameters[own].requires_grad  # a frozen parameter is passed on at the end, as zero
    ]
    try:
        loss.backward()
    finally:
        for hook in hooks:
            hook.remove()
    for own in list(pending):
        pass_on(own)


def _on_gradient(pass_on: Callable[[str], None], own: str, parameter: Tensor) -> None:
    pass_on(own)


def _chunks(found: Tensor, expected: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield both tensors in pieces of rows.

    A piece of their difference stays in a core's cache, which takes a tenth of the time of the whole.
    """
    if found.ndim == 0:
        yield found, expected
        return
    if found.ndim > 2:
        found, expected = found.flatten(0, -2), expected.flatten(0, -2)
    rows = max(1, CHUNK * len(found) // max(1, found.numel()))
    yield from zip(found.split(rows), expected.split(rows), strict=True)
