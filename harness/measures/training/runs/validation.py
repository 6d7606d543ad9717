"""Measures of validation: that it is pure, is on the same windows each time, and prints the loss that it computed."""

from __future__ import annotations

import math

import torch

from harness.core.errors import MissingAbility
from harness.measures.training.batches.token_streams import Batches
from harness.measures.training.batches.training_estimate import TrainingEstimates
from harness.measures.training.runs.printed_numbers import nearest_print
from harness.suites.measure_registry import Reading, Scalar, measure
from harness.training.events import Forward, mean_loss
from harness.training.protocols import Trains
from harness.training.recording import Recording


@measure
def impure_passes(program: Trains, *, rehearsal: str = "validate-often") -> Reading:
    """Count the passes in the wrong mode: validation with gradients or in training mode, training in eval mode.

    A pass with gradients that no backward pass uses is validation.
    """
    recording = program.record(rehearsal)
    with_gradients = [forward for forward in recording.forwards("train") if forward.idle]
    validation = [forward for forward in recording.forwards() if forward.validates or forward.idle]
    if not validation:
        raise MissingAbility(f"{program.name} did not validate in the rehearsal '{rehearsal}'")
    found = {
        "validation passes with gradients": with_gradients,
        "validation passes not in eval mode": [forward for forward in validation if forward.mode != "eval"],
        "training passes not in training mode": [forward for forward in recording.trained if forward.mode != "train"],
    }
    wrong = next(((what, passes[0]) for what, passes in found.items() if passes), None)
    details = {"hint": _mode_of(*wrong), "line": _line_of(*wrong)} if wrong else {}
    return Reading({what: len(v) for what, v in found.items()}, "passes", details)


def _mode_of(what: str, forward: Forward) -> str:
    """Return what is wrong with the mode of a pass, and since when, as a sentence."""
    since = f", since {forward.mode_line}" if forward.mode_line and "gradients" not in what else ""
    return f"{what}: {forward.line or forward.mode}{since}"


def _line_of(what: str, forward: Forward) -> str:
    """Return the line to look at: of training in eval mode, where that was set; otherwise where the model is called."""
    return (forward.mode_line if what.startswith("training") else "") or forward.line


def evaluations_of(recording: Recording) -> dict[int, list[Forward]]:
    """Return the validation passes by the number of optimizer steps before them.

    What is evaluated more, after the last step and after its result is printed, is left out: the whole set at the end,
    or the best weights.
    """
    found: dict[int, list[list[Forward]]] = {}
    printed = [each.order for each in recording.printed]
    for forward in recording.forwards():
        if forward.validates:
            parts = found.setdefault(forward.step, [[]])
            if parts[-1] and any(parts[-1][-1].order < order < forward.order for order in printed):
                parts.append([])
            parts[-1].append(forward)
    *before, last = found.items() if found else [(0, [])]
    usual = min((len(parts) for _, parts in before), default=len(last[1]))
    return {step: _once([each for part in parts[:usual] for each in part]) for step, parts in (*before, last) if parts}


def _once(passes: list[Forward]) -> list[Forward]:
    """Return the passes without those that are made again, with the same weights on the same windows."""
    half = len(passes) // 2
    first, second = passes[:half], passes[half:]
    pairs = list(zip(first, second, strict=False))
    again = len(first) == len(second) and all(a.weights and a.weights == b.weights for a, b in pairs)
    return first if again and all(torch.equal(a.ids, b.ids) for a, b in pairs) else passes


@measure
def changes_of_the_validation_set(program: Trains, *, rehearsal: str = "validate-often") -> Reading:
    """Return "the same" or "other windows" for each validation after the first, by the windows that it is on.

    An estimate of the training loss, on as many batches as the validation, may be on other windows each time.
    """
    recording = program.record(rehearsal)
    estimates = TrainingEstimates(Batches(recording))
    evaluations = {step: estimates.without(passes) for step, passes in evaluations_of(recording).items()}
    if len(evaluations) < 2:
        raise MissingAbility(f"{program.name} validated {len(evaluations)} times in the rehearsal '{rehearsal}'")
    (first_step, first), *rest = evaluations.items()
    found: dict[str, Scalar] = {}
    for step, passes in rest:
        same = _windows(passes) == _windows(first)
        found[f"validation before step {step}"] = "the same" if same else "other windows"
    hint = f"the first one, before step {first_step}, is on {len(_windows(first))} windows"
    return Reading(found, "", {"hint": hint})


def passes_by_model(passes: list[Forward]) -> list[list[Forward]]:
    """Return a validation's passes in two parts if two models are on the same windows, as weights and their mean."""
    half = len(passes) // 2
    parts = [passes[:half], passes[half:]]
    return parts if half and _windows(parts[0]) == _windows(parts[1]) else [passes]


def _windows(passes: list[Forward]) -> list[tuple[int, ...]]:
    return sorted(tuple(row) for forward in passes for row in forward.ids.tolist())


@measure
def printed_validation_losses(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the distance of each printed validation loss from the mean over all its targets, in half printed digits.

    Of a printed number with d digits after the point, half a digit is 0.5 * 10^-d. At each validation the printed
    number that is nearest to the mean is taken. Half of the passes may be an estimate of the training loss; where it is
    not known on which part a pass is, that may be the first half.
    """
    recording = program.record(rehearsal)
    estimates = TrainingEstimates(Batches(recording))
    found: dict[str, float] = {}
    hint = line = ""
    for step, passes in evaluations_of(recording).items():
        own = estimates.without(passes)
        parts = [own] if estimates.known(passes) or len(passes) % 2 else [passes, passes[len(passes) // 2 :]]
        by_model = passes_by_model(own)
        means = [mean_loss(part, smoothed=False) for part in (by_model if len(by_model) > 1 else parts)]
        words = ("val", "eval", "test")
        nearest = [nearest_print(recording, mean, after=passes[-1].order, words=words) for mean in means]
        printed = [number for number in nearest if number is not None]
        if not printed:
            continue
        mean, near = means[0], min(printed, key=lambda number: number.half_digits)
        found[f"validation before step {step}"] = near.half_digits
        averages = [forward.total_loss / forward.counted for forward in own if forward.counted]
        average = sum(averages) / len(averages)
        if not hint and not near.half_digits <= 1:
            line = near.line
            padded = sum(each.total_loss for each in own) / sum(each.targets.numel() for each in own)
            known = {
                average: "the mean of the batches' means",
                padded: "the mean over all positions, the padding too",
            }
            if any(each.label_smoothing for each in own):
                known[mean_loss(own)] = "the loss with label smoothing, the criterion of training"
            why = next((known[value] for value in known if abs(near.value - value) <= near.half), "")
            another = f"another number, {'smaller' if near.value < mean else 'larger'} than it should be"
            why = why or (another if math.isfinite(near.value) else "no loss")
            hint = f"before step {step}: printed {near.text}, which is {why}; the mean over the targets is {mean:.6f}"
    if not found:
        raise MissingAbility(f"{program.name} prints no validation loss")
    return Reading(found, "half digits", {"hint": hint, "line": line} if hint else {})
