"""The measure of numbers that are not finite: NaN and infinity in losses, gradients and parameters."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor

from harness.suites.measure_registry import Reading, measure
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Recording


@dataclass(frozen=True)
class _Place:
    """Numbers of one kind at a step: how many are not finite, how it is said, and the user's line."""

    step: int
    wrong: int
    says: str
    line: str


@measure
def numbers_not_finite(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return how many numbers of each step are NaN or infinite: losses, gradients and parameters.

    The hint says where the first one comes from: what came before it is finite. A long rehearsal records only losses.
    """
    recording = program.record(rehearsal)
    found: dict[str, int] = {}
    details: dict[str, str] = {}
    for place in _places(recording):
        name = f"step {place.step}"
        found[name] = found.get(name, 0) + place.wrong
        if place.wrong and not details:
            details = {"hint": f"{name}: {place.says}", "line": place.line}
    return Reading(found, "numbers", details)


def _places(recording: Recording) -> Iterator[_Place]:
    """Yield the numbers in the order in which a step computes them."""
    steps = {step.number: step for step in recording.steps}
    first = True
    for number in sorted({*steps, *(each.step for each in recording.trained)}):
        step = steps.get(number)
        if step is not None:
            changed = "is finite after the step before, and not at this one: the optimizer did not change it"
            yield _of(step, "before", f"{{}} {'is not finite at the start' if first else changed}", step.line)
            first = False
        losses = [each for each in recording.trained if each.step == number and each.has_loss and each.counted]
        wrong = [each for each in losses if not math.isfinite(each.loss)]
        if wrong:
            of_finite = " of finite parameters" if step is not None and "before" in step.tensors else ""
            says = f"the forward pass{of_finite} has a loss of {wrong[0].loss}"
            line = wrong[0].loss_line or wrong[0].line
            if made := next((each for each in recording.made_nan if each.step == number), None):
                says, line = f"{says}; {made.function} makes the first NaN", made.line or line
            yield _Place(number, len(wrong), says, line)
        if step is not None:
            backward = next((each.line for each in recording.backward_passes if each.step == number), step.line)
            beside = "the loss is finite, and the gradient of {} is not" if losses else "{}'s gradient is not finite"
            yield _of(step, "unclipped", beside, backward)
            clipped = next((clip.line for clip in recording.clips_of(number)), step.clip_line or step.line)
            yield _of(step, "gradient", "the gradient of {} is finite before it is clipped, and not after", clipped)
            after = f"the gradients are finite, and {{}} is not after the step{_rate(step)}"
            yield _of(step, "after", after, step.line)


def _of(step: Step, part: str, says: str, line: str) -> _Place:
    """Return the place of a step's tensors of that part; none is wrong if they are not recorded."""
    tensors: Mapping[str, Tensor] = step.tensors.get(part, {})
    wrong = {name: int((~each.isfinite()).sum()) for name, each in tensors.items() if not bool(each.isfinite().all())}
    return _Place(step.number, sum(wrong.values()), says.format(next(iter(wrong), "")), line)


def _rate(step: Step) -> str:
    rates = [group.lr for group in step.groups if not math.isfinite(group.lr)]
    return f": the learning rate is {rates[0]}" if rates else ""
