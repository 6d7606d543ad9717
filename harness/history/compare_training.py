"""Two runs of a training program, before and after a change: where they part first, and if that is rounding."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from harness.diagnosis.training import event_lines
from harness.measures.training.runs.run_comparison import EQUAL, differences, same_batches
from harness.measures.training.steps.gradients import NOISE, gradient_noise, noise_ratio
from harness.training.optimizer_steps import Step
from harness.training.recording import Recording

Kind = Literal["equal", "rounding", "changed"]
# Relative: two float64 gradients of one function at the same weights differ by some 1e-15, of two functions by more.
SAME_FUNCTION = 1e-9
SAME_LOSS = 1e-5  # relative: what rounding in float32 has done to the loss of a short run


@dataclass(frozen=True)
class Parting:
    """Where two runs part first.

    Attributes:
        kind: "equal" bits to the end; "rounding" only; or "changed".
        what: The first thing that differs, as a sentence; "" if nothing does.
        why: What decides between rounding and a change.
        line: The user's line of that event in the new run.
    """

    kind: Kind
    what: str = ""
    why: str = ""
    line: str = ""


def compare_recordings(old: Recording, new: Recording) -> Parting:
    """Return where two runs of one rehearsal part first, and why that is a change or rounding.

    It is rounding if, at the step where the bits part, both programs have the same gradient in float64, if each step
    of both is its own program's gradient to its noise, and if batches, learning rates and settings stay equal.
    """
    if len(old.steps) != len(new.steps):
        return Parting("changed", f"{len(old.steps)} steps before, {len(new.steps)} after", "", _line(new, "steps"))
    found = differences(old, new, list(zip(old.steps, new.steps, strict=True)))
    place, what = next(((place, what) for place, what in found.items() if what != EQUAL), ("", ""))
    if not place:
        return Parting("equal")
    index = list(found).index(place)
    one, other = old.steps[index], new.steps[index]
    sentence = f"{place}: {what}"
    if where := _first_parameter(one, other, what):
        sentence += f", first in {where}"
    line = _line(new, what)
    if (cause := _not_rounding(old, new)) is not None:
        return Parting("changed", sentence, cause, line)
    if "weights before" in what:
        return Parting("changed", sentence, "the weights at the start are drawn, not computed", line)
    if not (one.replayed and other.replayed):
        return Parting("changed", sentence, "no gradient could be computed again in float64", line)
    gap = _relative(one.replayed, other.replayed)
    if gap > SAME_FUNCTION:
        return Parting("changed", sentence, f"in float64 the gradients of this step differ by {gap:.2g}", line)
    worst = max(_noise_of(step) for recording in (old, new) for step in recording.steps)
    if not worst <= NOISE:
        why = f"in float64 they agree to {gap:.1g}, and a step is {worst:.3g} times the noise from its own gradient"
        return Parting("changed", sentence, why, line)
    why = f"in float64 the gradients of this step agree to {gap:.1g}, and each step is within {worst:.2g} of its noise"
    return Parting("rounding", sentence, why, line)


def _not_rounding(old: Recording, new: Recording) -> str | None:
    """Return what differs at any step that rounding cannot change; None if nothing does."""
    for one, other in zip(old.steps, new.steps, strict=True):
        passes, others = old.forwards_of(one.number), new.forwards_of(other.number)
        if not same_batches(passes, others):
            return f"the batch of step {one.number} is another"
        if [group.lr for group in one.groups] != [group.lr for group in other.groups]:
            rates = f"{one.groups[0].lr:.6g} before, {other.groups[0].lr:.6g} after"
            return f"the learning rate of step {one.number} is another: {rates}"
        if one.groups != other.groups:
            return f"the optimizer's settings of step {one.number} are others"
        for p, o in zip(passes, others, strict=True):
            if abs(p.loss - o.loss) > SAME_LOSS * max(abs(p.loss), 1e-9):
                return f"the loss of step {one.number} is {o.loss:.6f}, before {p.loss:.6f}"
    return None


def _noise_of(step: Step) -> float:
    noise = gradient_noise(step.replayed, step.replayed32)
    return noise_ratio(step.unclipped, step.replayed, noise)


def _relative(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> float:
    """Return the largest |one - other| / |one| over all parameters together; infinity if they have other names."""
    if one.keys() != other.keys():
        return float("inf")
    size = sum(float(tensor.square().sum()) for tensor in one.values()) ** 0.5
    gap = sum(float((other[name] - tensor).square().sum()) for name, tensor in one.items()) ** 0.5
    return gap / size if size else float(gap > 0)


def _first_parameter(one: Step, other: Step, what: str) -> str:
    """Return the first parameter that differs in the part that a sentence is about, with its distance; "" for none."""
    part = next(
        (part for word, part in (("before", "before"), ("gradient", "gradient"), ("after", "after")) if word in what),
        "",
    )
    if not part or part not in one.tensors or part not in other.tensors:
        return ""
    values, others = one.tensors[part], other.tensors[part]
    for name, value in values.items():
        if name not in others:
            return f"{name}, which the new run does not have"
        if not torch.equal(value, others[name]):
            gap = float((value.double() - others[name].double()).norm()) / (float(value.double().norm()) or 1.0)
            return f"{name} by {gap:.2g} of its size"
    return next((f"{name}, which the old run does not have" for name in others if name not in values), "")


def _line(recording: Recording, what: str) -> str:
    """Return the user's line of the event that a sentence is about."""
    if "batch" in what:
        return event_lines.of_the_ids(recording, "")
    if "loss" in what:
        return event_lines.of_the_loss(recording, "")
    if "gradient" in what:
        return event_lines.of_the_backward(recording, "")
    if "settings" in what or "before" in what:
        return event_lines.of_the_optimizer(recording, "")
    return event_lines.of_the_step(recording, "")
