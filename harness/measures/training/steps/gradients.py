"""The measure of gradients: each step's is that of the mean loss over all of its targets, and of nothing else."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest
from harness.suites.measure_registry import Reading, measure
from harness.training.protocols import Trains
from harness.training.recording import Recording, Step

Gradients = Mapping[str, Tensor]
# The largest distance from the float64 gradient, as a multiple of that of the same computation in the program's own
# type. See the bound of the check in verifications/training.toml.
NOISE = 8.0


@measure
def gradient_errors(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the distance of each step's gradient, before clipping, from that of the mean loss over its targets.

    The expected gradient is computed in float64 by the program's own model from the recorded batches; the same in the
    program's own type gives the noise, which is the unit. Several micro-batches count as one batch of all targets.
    """
    recording = program.record(rehearsal)
    found: dict[str, float] = {}
    hint = ""
    for step in recording.steps:
        if not step.replayed:
            raise MissingAbility(f"the gradients of {program.name} could not be replayed: no batch was seen")
        expected = in_groups(step, step.replayed)
        noise = gradient_noise(expected, step.replayed32)
        found[f"step {step.number}"] = error = noise_ratio(step.unclipped, expected, noise)
        if not hint and not error <= NOISE:
            hint = f"step {step.number}: {_cause(recording, step, noise)}"
    return Reading(found, "of the noise", {"hint": hint} if hint else {})


def in_groups(step: Step, gradients: Gradients) -> Gradients:
    """Return the gradients of parameters in the optimizer's groups; those of others are not recorded."""
    names = {name for group in step.groups for name in group.names}
    return {name: gradient for name, gradient in gradients.items() if name in names}


def gradient_noise(exact: Gradients, rounded: Gradients) -> dict[str, float]:
    """Return the distance |rounded - exact| of each gradient, but at least that of rounding every element once."""
    return {
        name: max(
            float((rounded[name].double() - gradient).norm()),
            float(gradient.norm()) * torch.finfo(rounded[name].dtype).eps / 12**0.5,
        )
        for name, gradient in exact.items()
    }


def noise_ratio(found: Gradients, expected: Gradients, noise: Mapping[str, float]) -> float:
    """Return the largest |found - expected| over parameters, in units of the noise; a missing gradient is zero.

    A gradient that is zero but for rounding (attention's key bias) has noise of the size that its neighbours have.
    """
    least = max(noise.values(), default=0.0) * torch.finfo(torch.float32).eps
    ratios: list[float] = []
    for name, gradient in expected.items():
        distance = float((found[name].double() - gradient).norm()) if name in found else float(gradient.norm())
        ratios.append(distance / max(noise[name], least) if distance else 0.0)
    return largest(ratios)


def _cause(recording: Recording, step: Step, noise: Mapping[str, float]) -> str:
    """Return what the gradient of a step is instead, as a sentence."""
    like = in_groups(step, step.replayed)
    found, own = _vector(step.unclipped, like), _vector(step.replayed, like)
    size = math.sqrt(math.fsum(value**2 for value in noise.values()))
    factor = float(found @ own / (own @ own))
    if float((found - factor * own).norm()) <= NOISE * size * max(1.0, abs(factor)):
        count = len(recording.forwards_of(step.number))
        return f"the gradient is {factor:.6g} times that of the mean loss of its {_micro_batches(count)}"
    steps = recording.steps
    before = next((s for s in steps if s.number == step.number - 1), None)
    if before is not None:
        last, used = _vector(before.replayed, like), _vector(before.gradient, like)
        for sentence, vector in (
            ("the gradient of the step before is still in it: no zero_grad", own + used),
            ("the gradient of the step before, unclipped, is still in it: no zero_grad", own + last),
        ):
            if float((found - vector).norm()) <= NOISE * size * 4:
                return sentence
        # One step has moved the weights since, so that the two are not equal.
        if _cosine(found, last) > max(0.9, _cosine(found, own)):
            return "the gradient is that of the batch before"
    worst = max(like, key=lambda name: _ratio(step, name, noise))
    cosine = _cosine(found, own)
    return f"{worst} is the furthest off; {factor:.4g} times the expected gradient, the cosine to it is {cosine:.6f}"


def _micro_batches(count: int) -> str:
    return "batch" if count == 1 else f"{count} micro-batches"


def _ratio(step: Step, name: str, noise: Mapping[str, float]) -> float:
    expected = step.replayed[name]
    found = step.unclipped.get(name, torch.zeros_like(expected))
    return float((found.double() - expected).norm()) / (noise[name] or math.inf)


def _cosine(a: Tensor, b: Tensor) -> float:
    return float(a @ b) / (float(a.norm() * b.norm()) or math.nan)


def _vector(gradients: Gradients, like: Gradients) -> Tensor:
    """Return gradients as one float64 vector, in the order of `like`; one that is missing is zero."""
    return torch.cat(
        [gradients.get(name, torch.zeros_like(tensor)).double().flatten() for name, tensor in like.items()]
    )
