"""Measures of a run on several ranks: equal weights, and the gradient of all their batches together."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest
from harness.measures.training.runs.run_comparison import EQUAL
from harness.measures.training.steps.gradients import NOISE, gradient_noise, noise_ratio
from harness.suites.measure_registry import Reading, Scalar, measure
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Recording


@measure
def ranks_differing(program: Trains, *, rehearsal: str = "two-ranks") -> Reading:
    """Return what differs between the ranks at each step, bitwise: "equal", or "the weights after it differ"."""
    recordings = _recordings(program, rehearsal)
    found: dict[str, Scalar] = {}
    for steps in zip(*(recording.steps for recording in recordings), strict=False):
        parts = {"before": "the weights before it differ", "gradient": "the gradients that it uses differ"}
        parts["after"] = "the weights after it differ"
        differs = (text for part, text in parts.items() if not _all_equal(steps, part))
        found[f"step {steps[0].number}"] = next(differs, EQUAL)
    counts = {len(recording.steps) for recording in recordings}
    if len(counts) > 1:
        found["number of steps"] = f"{min(counts)} on one rank, {max(counts)} on another"
    apart = next((f"{place}: {what}" for place, what in found.items() if what != EQUAL), "")
    return Reading(found, "", {"hint": apart} if apart else {})


@measure
def errors_of_the_joint_gradient(program: Trains, *, rehearsal: str = "two-ranks") -> Reading:
    """Return the distance of each step's gradient from that of the mean loss over the targets of all ranks.

    The unit is the noise, as in `gradient_errors`; the worst rank counts.
    """
    recordings = _recordings(program, rehearsal)
    found: dict[str, float] = {}
    hint = ""
    for steps in zip(*(recording.steps for recording in recordings), strict=False):
        counts = [_targets(recording, step) for recording, step in zip(recordings, steps, strict=True)]
        exact = _mean([step.replayed for step in steps], counts)
        rounded = _mean([step.replayed32 for step in steps], counts)
        noise = gradient_noise(exact, rounded)
        found[f"step {steps[0].number}"] = error = largest(noise_ratio(step.unclipped, exact, noise) for step in steps)
        if not hint and not error <= NOISE:
            hint = f"step {steps[0].number}: {_cause(steps, exact, noise, counts)}"
    return Reading(found, "of the noise", {"hint": hint} if hint else {})


def _recordings(program: Trains, rehearsal: str) -> list[Recording]:
    recordings = program.record_ranks(rehearsal)
    if len(recordings) < 2 or not all(recording.steps for recording in recordings):
        raise MissingAbility(f"{program.name} did not train on several ranks")
    return recordings


def _all_equal(steps: tuple[Step, ...], part: str) -> bool:
    if all(part in step.hashes for step in steps):
        return all(dict(step.hashes[part]) == dict(steps[0].hashes[part]) for step in steps)
    first: dict[str, Tensor] = dict(getattr(steps[0], part))
    return all(
        first.keys() == getattr(step, part).keys()
        and all(torch.equal(first[name], tensor) for name, tensor in getattr(step, part).items())
        for step in steps[1:]
    )


def _targets(recording: Recording, step: Step) -> int:
    return sum(forward.counted for forward in recording.forwards_of(step.number))


def _mean(gradients: list[dict[str, Tensor]], weights: list[int]) -> dict[str, Tensor]:
    """Return the mean of the ranks' gradients, weighted by their targets, in the type of each."""
    total = sum(weights)
    return {
        name: torch.stack([g[name] * (w / total) for g, w in zip(gradients, weights, strict=True)]).sum(0)
        for name in gradients[0]
    }


def _cause(steps: tuple[Step, ...], exact: dict[str, Tensor], noise: dict[str, float], counts: list[int]) -> str:
    """Return what the gradient is instead of the joint one, as a sentence."""
    ranks = len(steps)
    for sentence, expected in (
        ("each rank uses the gradient of its own batch: there is no sum over ranks", None),
        (f"the gradient is {ranks} times the mean: a sum over ranks without a division", _scaled(exact, ranks)),
        ("the gradient is divided twice by the number of ranks", _scaled(exact, 1 / ranks)),
        (
            "the mean of the ranks' means is not that of all targets",
            _mean([dict(s.replayed) for s in steps], [1] * ranks),
        ),
    ):
        if all(noise_ratio(s.unclipped, expected or s.replayed, noise) <= NOISE * max(ranks, 1) for s in steps):
            return sentence
    return f"the ranks have {counts} targets"


def _scaled(gradients: dict[str, Tensor], by: float) -> dict[str, Tensor]:
    return {name: gradient * by for name, gradient in gradients.items()}
