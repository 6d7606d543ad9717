"""The measure of the mean of the weights that a program keeps beside them (EMA): it moves to them, by its decay."""

from __future__ import annotations

import itertools
import statistics
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.suites.measure_registry import Reading, Scalar, measure
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Recording

SAME = 0.02  # relative, see the bound of the check: two shares of the newest weights that differ by less are one
COPY = 1e-4  # a share so near to 1 is a copy
MOST = 0.5  # a mean of which the newest weights are more is none


@measure
def shares_of_the_newest(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return, for each step, by which share the mean of the weights moves to the weights after the step.

    That is 1 - decay in m = decay * m + (1 - decay) * w. Predicted is the program's own decay; or else one share in
    all steps, at most 0.5; or the warm-up of the decay, (1 + k) / (10 + k). A mean that starts later is a copy before.
    """
    recording = program.record(rehearsal)
    steps = [step for step in recording.steps if "average" in step.tensors]
    pairs = [pair for pair in itertools.pairwise(steps) if pair[1].number == pair[0].number + 1]
    if not pairs:
        raise MissingAbility(f"{program.name} keeps no mean of the weights (ema, average, shadow) that was seen")
    names = sorted(steps[0].average)
    moving = {each for one, other in pairs for each in names if not torch.equal(one.average[each], other.average[each])}
    trained = {each for each in names if any(not torch.equal(step.before[each], step.after[each]) for step in steps)}
    shares = {one.number: _share(one, other, sorted(moving), one.after) for one, other in pairs}
    still = trained - moving
    found: dict[str, Scalar] = {f"step {number}": share for number, share in shares.items() if share is not None}
    if not found:
        raise MissingAbility(f"the mean of the weights of {program.name} moved in no step of '{rehearsal}'")
    predicted = {f"step {number}": value for number, value in _predicted(recording, shares)}
    found |= {f"parameters without a mean: {name}": 1.0 for name in sorted(still)}
    predicted |= {f"parameters without a mean: {name}": 0.0 for name in sorted(still)}
    wrong = [place for place in found if not abs(float(found[place]) - predicted[place]) <= SAME * predicted[place]]
    hint = _why(recording, pairs, found, predicted, wrong) if wrong else ""
    return Reading(found, "", {"predicted": predicted, **({"hint": hint} if hint else {})})


def _share(one: Step, other: Step, names: list[str], weights: Mapping[str, Tensor]) -> float | None:
    """Return by which share the mean moved to these weights in a step; None if it did not move, NaN if not to them."""
    if not names:
        return None
    moves = [(other.average[name].double() - one.average[name].double()).flatten() for name in names]
    ways = [(weights[name].double() - one.average[name].double()).flatten() for name in names]
    move, way = torch.cat(moves), torch.cat(ways)
    if not bool(move.any()):
        return None
    share = float((move * way).sum() / (way * way).sum().clamp_min(1e-300))
    rest = float((move - share * way).norm() / move.norm())
    return share if rest < 0.05 else float("nan")


def _predicted(recording: Recording, shares: dict[int, float | None]) -> Iterator[tuple[int, float]]:
    """Yield each step's number and the share that it should have."""
    declared = recording.settings.get("ema_decay")
    decay = float(declared) if isinstance(declared, float | int) and 0 < declared < 1 else None
    known = [share for share in shares.values() if share is not None and share == share]
    usual = statistics.median(known) if known else MOST
    usual = min(usual, MOST)
    started = False
    for number, share in shares.items():
        if share is None:
            continue
        wanted = 1 - decay if decay is not None else usual
        if not started and abs(share - 1) < COPY and len(set(known)) > 1:
            yield number, 1.0  # a copy, before the mean begins
            continue
        started = True
        warm = [1 - min(decay if decay is not None else 1.0, (1 + k) / (10 + k)) for k in (number, number + 1)]
        yield number, next((value for value in warm if abs(share - value) <= SAME * value), wanted)


def _why(
    recording: Recording,
    pairs: list[tuple[Step, Step]],
    found: dict[str, Scalar],
    predicted: dict[str, float],
    wrong: list[str],
) -> str:
    """Return what is wrong with the mean."""
    place = wrong[0]
    if place.startswith("parameters"):
        return f"{len(wrong)} parameters are trained and have no mean that moves: {place.partition(': ')[2]}"
    share, wanted = float(found[place]), predicted[place]
    if share == share and abs(share - (1 - wanted)) <= SAME:
        return f"decay and 1 - decay are swapped: the newest weights have a share of {share:.3g}, not {wanted:.3g}"
    names = sorted(pairs[0][0].average)
    one, other = pairs[-1]
    before = _share(one, other, names, one.before)
    if share != share and before is not None and before == before:
        return f"the mean moves to the weights before the step, by {before:.3g}, not to those after it"
    return f"{place}: the newest weights have a share of {share:.3g}, not {wanted:.3g}"
