"""The measure of gradient clipping: by the global norm, once, with the direction kept."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest
from harness.suites.measure_registry import Reading, measure
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Recording

Gradients = Mapping[str, Tensor]

# The largest distance from the right gradient, in units in the last place of its type. See the bound of the check in
# verifications/training.toml.
EXACT = 100.0


@measure
def clipping_errors(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the distance of the gradient that each step uses from g * min(1, c / (|g| + 1e-6)).

    g is the gradient before clipping, |g| its norm over all parameters, in float64, and c the limit: the one that the
    program was given, or that of its calls of torch's clipping functions. Clipping has to happen at one step at least,
    or it cannot be judged. The unit is the gradient's norm times the spacing of its type at 1; twice the relative error
    of torch's own norm of these gradients is no error (4e-5 in float32 for a table of GPT-2's vocabulary).
    """
    recording = program.record(rehearsal)
    limit = _limit(recording)
    found: dict[str, float] = {}
    hint, clipped = "", False
    for step in recording.steps:
        before, used = _float64(step.unclipped), _float64(step.gradient)
        if more := {name for clip in recording.clips_of(step.number) for name in clip.names} - set(before):
            raise MissingAbility(f"{sorted(more)[0]} is clipped and in no group of the optimizer; every-parameter-once")
        spacing = max(torch.finfo(gradient.dtype).eps for gradient in step.unclipped.values())
        clipped = clipped or not _norm(before) <= limit
        distance = _distance(used, by_global_norm(before, limit)) - 2 * _rounding_of_norm(step.unclipped)
        found[f"step {step.number}"] = error = largest([0.0, distance]) / spacing
        if not hint and not error <= EXACT:
            hint = f"step {step.number}: {_cause(recording, step, before, used, limit, EXACT * spacing)}"
    if not clipped:
        raise MissingAbility(f"no gradient of the rehearsal '{rehearsal}' has a norm above the limit of {limit:g}")
    return Reading(found, "units in the last place", {"hint": hint} if hint else {})


def _rounding_of_norm(gradients: Gradients) -> float:
    """Return the relative error of the norm over all gradients that torch computes in their own type."""
    exact = _norm(_float64(gradients))
    own = float(torch.nn.utils.get_total_norm(list(gradients.values())))
    return abs(own / exact - 1) if exact else 0.0


def _limit(recording: Recording) -> float:
    """Return the largest norm that is allowed. Raises MissingAbility if the program clips nothing and has no limit."""
    called = {clip.limit for step in recording.steps for clip in recording.clips_of(step.number)}
    given = recording.settings.get("clip")
    limit = float(given) if given else max(called, default=0.0)
    if limit <= 0:
        raise MissingAbility(f"{recording.program} does not clip: no call was seen, and no setting names a limit")
    return limit


def by_global_norm(gradients: Gradients, limit: float) -> Gradients:
    """Return the gradients times min(1, limit / (norm + 1e-6)), the norm over all of them (Pascanu et al. 2013)."""
    factor = min(1.0, limit / (_norm(gradients) + 1e-6))
    return {name: gradient * factor for name, gradient in gradients.items()}


def _by_tensor(gradients: Gradients, limit: float) -> Gradients:
    return {n: g * min(1.0, limit / (float(g.norm()) + 1e-6)) for n, g in gradients.items()}


def _by_value(gradients: Gradients, limit: float) -> Gradients:
    return {n: g.clamp(-limit, limit) for n, g in gradients.items()}


def _by_largest(gradients: Gradients, limit: float) -> Gradients:
    largest = max(float(g.abs().max()) for g in gradients.values())
    return {n: g * min(1.0, limit / (largest + 1e-6)) for n, g in gradients.items()}


def _always(gradients: Gradients, limit: float) -> Gradients:
    return {n: g * (limit / (_norm(gradients) + 1e-6)) for n, g in gradients.items()}


def _squared(gradients: Gradients, limit: float) -> Gradients:
    return {n: g * min(1.0, limit / (_norm(gradients) ** 2 + 1e-6)) for n, g in gradients.items()}


MISTAKES: tuple[tuple[str, Callable[[Gradients, float], Gradients]], ...] = (
    ("the gradient is not clipped before the step", lambda gradients, limit: gradients),
    ("each tensor is clipped by its own norm", _by_tensor),
    ("each value is clipped, which changes the direction", _by_value),
    ("the norm is that of the largest element", _by_largest),
    ("gradients below the limit are scaled up to it", _always),
    ("the norm is not square-rooted", _squared),
)


def _cause(recording: Recording, step: Step, before: Gradients, used: Gradients, limit: float, close: float) -> str:
    """Return the known mistake that explains the gradient of a step, or its norm."""
    if not used:
        return "the gradients are set to zero after the backward passes, and before the step"
    for sentence, mistake in MISTAKES:
        if _distance(used, mistake(before, limit)) <= close:
            return sentence
    names = {name for clip in recording.clips_of(step.number) for name in clip.names}
    if left := [name for name in before if names and name not in names]:
        return f"the norm is over {len(names)} of {len(before)} parameters, without {left[0]}"
    cosine = _dot(before, used) / (_norm(before) * _norm(used) or math.nan)
    return f"the norm is {_norm(before):.4g} before and {_norm(used):.4g} after, the cosine between them {cosine:.6f}"


def _float64(gradients: Gradients) -> Gradients:
    return {name: gradient.double() for name, gradient in gradients.items()}


def _norm(gradients: Gradients) -> float:
    return math.sqrt(_dot(gradients, gradients))


def _dot(a: Gradients, b: Gradients) -> float:
    return math.fsum(float((a[name] * b[name]).sum()) for name in a if name in b)


def _distance(found: Gradients, expected: Gradients) -> float:
    """Return |found - expected| / |expected|; a gradient that one of them lacks counts as zero."""
    names = {*found, *expected}
    zero = torch.zeros((), dtype=torch.float64)
    squares = [float((found.get(n, zero) - expected.get(n, zero)).square().sum()) for n in names]
    size = _norm(expected)
    return math.sqrt(math.fsum(squares)) / size if size else float(any(squares))
