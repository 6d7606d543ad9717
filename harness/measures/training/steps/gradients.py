"""The measure of gradients: each step's is that of the mean loss over all of its targets, and of nothing else."""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest
from harness.suites.measure_registry import Reading, measure
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Recording

Gradients = Mapping[str, Tensor]
# The largest distance from the float64 gradient, as a multiple of that of the same computation in the program's own
# type. See the bound of the check in verifications/training.toml.
NOISE = 8.0
LEAST_SCALE = 15.0  # more micro-batches than most programs have
SAME_SCALE = 1e-3  # 16 bits round
NEAR = 1e-3  # weights of micro-batches that are so near are the same: they are fitted, in a gradient of float32


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
        passes = recording.forwards_of(step.number)
        counted, positions = sum(each.counted for each in passes), sum(each.targets.numel() for each in passes)
        over = f": it is divided by all {positions} positions, and {counted} have a target"
        why = over if counted < positions and abs(factor - counted / positions) <= NEAR * factor else ""
        declared = int(recording.settings.get("accumulation") or 0)
        if len(passes) < declared and abs(factor * declared / len(passes) - 1) <= NEAR:
            why = f": the step is made after {len(passes)} of {declared} micro-batches"
        if _is_a_loss_scale(factor) and recording.clips_of(step.number):
            why = ": it is clipped while it is multiplied by the loss scale"
        return f"the gradient is {factor:.6g} times that of the mean loss of its {_micro_batches(len(passes))}{why}"
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
    if sentence := _of_micro_batches(recording, step, found, like, size):
        return sentence
    worst = max(like, key=lambda name: _ratio(step, name, noise))
    cosine = _cosine(found, own)
    return f"{worst} is the furthest off; {factor:.4g} times the expected gradient, the cosine to it is {cosine:.6f}"


def _is_a_loss_scale(factor: float) -> bool:
    """Return True for a large power of two, of which a GradScaler's scale is one."""
    return factor > LEAST_SCALE and abs(factor / 2 ** round(math.log2(factor)) - 1) < SAME_SCALE


def _of_micro_batches(recording: Recording, step: Step, found: Tensor, like: Gradients, size: float) -> str:
    """Return how much of each micro-batch's mean is in the gradient, if it is a sum of them; "" if it is not.

    `found`: the gradient as a vector. `size`: the noise. The weights are fitted by least squares.
    """
    counts = [each.counted for each in recording.forwards_of(step.number)]
    parts = {int(number): _vector(part, like) for number, part in step.micro_batches.items()}
    if len(parts) < 2 or len(parts) != len(counts) or not bool(found.isfinite().all()):
        return ""
    own = torch.stack([parts[number] * (sum(counts) / counts[number]) for number in sorted(parts)])
    weights = torch.linalg.lstsq(own @ own.T, own @ found).solution
    if float((found - weights @ own).norm()) > NOISE * size * max(1.0, float(weights.abs().max())):
        return ""
    values, count = [float(weight) for weight in weights], len(counts)
    least = min(range(count), key=lambda number: counts[number])
    few = f"micro-batch {least} has {counts[least]} of {sum(counts)} targets"
    if _all_near(values, [1 / count] * count):
        return f"the gradient is the mean of the micro-batches' means: {few}, and weighs as much as the others"
    if _all_near(values, [1.0] * count):
        return f"the gradient is the sum of the micro-batches' means, not divided by their number: {few}"
    dropped = sum(1 for _ in itertools.takewhile(lambda value: abs(value) <= NEAR, values))
    if 0 < dropped < count - 1:
        return f"the first {dropped} of {count} micro-batches since the last step have no part in the gradient"
    if dropped == count - 1:
        return f"the gradient is that of the last of {count} micro-batches alone, {values[-1]:.4g} times its mean"
    shares = ", ".join(f"{value / (number / sum(counts)):.4g}" for value, number in zip(values, counts, strict=True))
    return f"the micro-batches of the step have {shares} times the weight that their targets give them"


def _all_near(values: list[float], expected: list[float]) -> bool:
    return all(abs(value - other) <= NEAR for value, other in zip(values, expected, strict=True))


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
