"""The measure of the best checkpoint: it is saved when the validation loss is the lowest so far, and only then."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import MissingAbility
from harness.measures.training.batches.token_streams import Batches
from harness.measures.training.batches.training_estimate import TrainingEstimates
from harness.measures.training.runs.validation import evaluations_of, passes_by_model
from harness.suites.measure_registry import Reading, measure
from harness.training.events import mean_loss
from harness.training.protocols import Trains
from harness.training.recording import Recording

AS_IT_SHOULD = "as it should"
CLOSE = 1e-4  # nats: a program may ask for an improvement of at least so much, or not see it in its own rounding
BEST = "best"

Rule = Callable[[Sequence[float]], bool]
# What decides that a checkpoint is saved, from the losses up to now.
RULES: Mapping[str, Rule] = {
    "the lowest so far": lambda losses: losses[-1] < min(losses[:-1], default=math.inf),
    "the highest so far": lambda losses: losses[-1] > max(losses[:-1], default=-math.inf),
    "lower than the one before it": lambda losses: losses[-1] < (losses[-2] if len(losses) > 1 else math.inf),
    "higher than the one before it": lambda losses: losses[-1] > (losses[-2] if len(losses) > 1 else -math.inf),
    "lower than the first one": lambda losses: losses[-1] < (losses[0] if len(losses) > 1 else math.inf),
}


@measure
def best_checkpoints(program: Trains, *, rehearsal: str = "fluctuating") -> Reading:
    """Return for each validation whether the best checkpoint is saved after it as it should be.

    That is the file with "best" in its name. It is to be saved if the loss over the validation's targets is the lowest
    so far, and only then; the first validation may save it or not. If a validation is of two models, as of the weights
    and of their mean, either of them may decide.
    """
    recording = program.record(rehearsal)
    saves = [save for save in recording.saves if BEST in Path(save.path).name.lower()]
    sequences = _validation_losses(recording)
    steps = list(evaluations_of(recording))
    if not saves:
        raise MissingAbility(f"{program.name} saved no file called 'best' in the rehearsal '{rehearsal}'")
    if {save.step for save in saves} <= {steps[-1]}:
        raise MissingAbility(f"{program.name} saves its best weights at the end only: what they are was not seen")
    saved = [any(save.step == step for save in saves) for step in steps]
    if all(RULES["the lowest so far"](losses[: n + 1]) for losses in sequences for n in range(len(losses))):
        raise MissingAbility(f"each validation of {program.name} in '{rehearsal}' is better than the one before it")
    judged = [(losses, _judged(losses, steps, saved)) for losses in sequences]
    losses, found = min(judged, key=lambda each: len(_wrong(each[1])))
    hint = _why(recording, losses, steps, saved) if _wrong(found) else ""
    return Reading(found, "", {"hint": hint, "line": saves[-1].line} if hint else {})


@measure
def weights_of_best_checkpoints(program: Trains, *, rehearsal: str = "fluctuating") -> Reading:
    """Return for each file called "best" whether it has the weights with the lowest validation loss so far.

    The weights are those of the model that was validated, bitwise. A file that has none of the weights that were
    validated or trained is not judged: it may store them in another type.
    """
    recording = program.record(rehearsal)
    saves = [save for save in recording.saves if BEST in Path(save.path).name.lower() and save.weights]
    if not saves:
        raise MissingAbility(f"{program.name} saved no weights in a file called 'best' in the rehearsal '{rehearsal}'")
    validated = _validated(recording)
    if validated and saves[0].order > validated[-1].order and validated[-1] in _lowest(validated):
        raise MissingAbility(f"the last validation of {program.name} in '{rehearsal}' is the best, and it saves then")
    found: dict[str, str] = {}
    hint, line = "", ""
    for number, save in enumerate(saves, start=1):
        before = [each for each in validated if each.order < save.order]
        if not before:
            continue
        inside = [each for each in before if set(each.weights) <= set(save.weights)]
        best = [_lowest([each for each in before if each.model == own.model])[0] for own in inside]
        place = f"save {number} of {Path(save.path).name}, after step {save.step}"
        if any(own.loss <= lowest.loss + CLOSE for own, lowest in zip(inside, best, strict=True)):
            found[place] = AS_IT_SHOULD
        elif inside:
            found[place] = f"the weights of the validation before step {inside[-1].step}, which are not the best"
        elif save.trained and set(save.trained) <= set(save.weights):
            found[place] = "the weights that are trained, which no validation was of"
        if found.get(place, AS_IT_SHOULD) != AS_IT_SHOULD and not hint:
            lowest = _lowest(best or before)[0]
            what = f"it has {found[place]}; the best are those of the validation before step {lowest.step}"
            hint, line = f"{place}: {what}", save.state_line if inside else save.line
    if not found:
        raise MissingAbility(f"the files called 'best' of {program.name} have none of the weights that were validated")
    return Reading(found, "", {"hint": hint, "line": line} if hint else {})


@dataclass(frozen=True)
class _Validated:
    """A validation: its last event, which of the models it is of, the steps before it, the weights, and its loss."""

    order: int
    model: int
    step: int
    weights: tuple[str, ...]
    loss: float


def _lowest(validated: Sequence[_Validated]) -> list[_Validated]:
    """Return the validation of each model with the lowest loss."""
    models = sorted({each.model for each in validated})
    return [min((e for e in validated if e.model == model), key=lambda each: each.loss) for model in models]


def _validated(recording: Recording) -> list[_Validated]:
    """Return the validations of each set of weights, in order."""
    estimates = TrainingEstimates(Batches(recording))
    found = []
    for step, passes in evaluations_of(recording).items():
        for model, part in enumerate(passes_by_model(estimates.without(passes))):
            by_weights = {each.weights for each in part}
            if len(by_weights) == 1 and part[0].weights:
                found.append(_Validated(part[-1].order, model, step, part[0].weights, mean_loss(part)))
    return found


def _wrong(found: Mapping[str, str]) -> list[str]:
    return [place for place, value in found.items() if value != AS_IT_SHOULD]


def _judged(losses: Sequence[float], steps: Sequence[int], saved: Sequence[bool]) -> dict[str, str]:
    found: dict[str, str] = {}
    for number, (step, is_saved) in enumerate(zip(steps, saved, strict=True)):
        lowest = min(losses[:number], default=math.inf)
        if number and abs(losses[number] - lowest) > CLOSE:
            better = losses[number] < lowest
            said = "saved, and not the lowest" if is_saved else "not saved, and the lowest"
            found[f"validation before step {step}"] = AS_IT_SHOULD if better == is_saved else said
    return found


def _validation_losses(recording: Recording) -> list[list[float]]:
    """Return the losses of the validations in their order; two such lists where each validation is of two models."""
    estimates = TrainingEstimates(Batches(recording))
    parts = [passes_by_model(estimates.without(passes)) for passes in evaluations_of(recording).values()]
    if len(parts) < 3:
        raise MissingAbility(
            f"{recording.program} validated {len(parts)} times in '{recording.rehearsal}', not 3 times"
        )
    models = min(len(part) for part in parts)
    return [[mean_loss(part[model]) for part in parts] for model in range(models)]


def _why(recording: Recording, losses: Sequence[float], steps: Sequence[int], saved: Sequence[bool]) -> str:
    """Return by which rule the checkpoint is saved instead."""
    before = [[each for each in recording.trained if each.step == step - 1] for step in steps]
    training = [mean_loss(passes) if passes else math.inf for passes in before]
    first = [mean_loss(passes[:1]) for passes in evaluations_of(recording).values()]
    for whose, values in (
        ("the validation loss", losses),
        ("the loss of the last training batch", training),
        ("the loss of the first batch of the validation", first),
    ):
        for what, rule in RULES.items():
            by_rule = [rule(values[: number + 1]) for number in range(len(values))]
            if by_rule[1:] == list(saved)[1:]:
                return f"it is saved when {whose} is {what}"
    if all(saved):
        return "it is saved after every validation"
    if not any(saved[1:]):
        return "it is saved after the first validation only"
    wrong = next(n for n, value in enumerate(saved) if n and value != RULES["the lowest so far"](losses[: n + 1]))
    is_it = "saved" if saved[wrong] else "not saved"
    return (
        f"it is {is_it} after the validation before step {steps[wrong]}, with a loss of {losses[wrong]:.4f}; "
        f"the lowest before it is {min(losses[:wrong]):.4f}"
    )
