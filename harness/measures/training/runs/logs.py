"""Measures of what a program says about itself: the loss that it prints, its steps, and the tokens of a step."""

from __future__ import annotations

import math
from dataclasses import replace

from harness.core.errors import MissingAbility
from harness.measures.training.runs.printed_numbers import ROUNDING, PrintedNumber, nearest_print
from harness.suites.measure_registry import Reading, measure
from harness.training.events import IGNORED, Forward, mean_loss
from harness.training.protocols import Trains
from harness.training.recording import Recording


@measure
def printed_training_losses(program: Trains, *, rehearsal: str = "accumulate") -> Reading:
    """Return the distance of each step's printed loss from the mean over all the step's targets, in half digits.

    Of a printed number with d digits after the point, half a digit is 0.5 * 10^-d. At each step the printed number
    that is nearest to the mean is taken, from lines with the word "loss" if there are any. The mean over the
    steps since the last print is a convention.
    """
    recording = program.record(rehearsal)
    found: dict[str, float] = {}
    hint = line = ""
    means: list[float] = []
    last_of_line: dict[str, int] = {}  # the steps before the last print of a line
    for step in recording.steps:
        passes = [forward for forward in recording.forwards_of(step.number) if forward.counted]
        if not passes:
            continue
        means.append(mean := mean_loss(passes))
        near = nearest_print(recording, mean, after=passes[-1].order, words=("loss",))
        if near is None or (not near.half_digits <= 1 and _is_an_estimate(recording, near, passes[-1].order)):
            continue
        since = means[last_of_line.get(near.line, 0) :]
        if near.half_digits <= 1 or _is(near, math.fsum(since) / len(since)):
            near, last_of_line[near.line] = replace(near, half_digits=min(near.half_digits, 1.0)), len(means)
        found[f"step {step.number}"] = near.half_digits
        if not hint and not near.half_digits <= 1:
            line = near.line
            hint = f"step {step.number}: printed {near.text}, {_what(near, passes, means)}; mean {mean:.6f}"
    if not found:
        raise MissingAbility(f"{program.name} prints no loss")
    return Reading(found, "half digits", {"hint": hint, "line": line} if hint else {})


def _is_an_estimate(recording: Recording, near: PrintedNumber, after: int) -> bool:
    """Return True if a printed number is the mean loss of the next evaluation after a step, or of a half of it."""
    evaluated = [each for each in recording.forwards() if each.validates and each.order > after and each.counted]
    passes = [each for each in evaluated if each.step == evaluated[0].step]
    half = len(passes) // 2
    parts = [part for part in (passes, passes[:half], passes[half:]) if part]
    means = [mean(part) for part in parts for mean in (_mean_of_means, mean_loss)]
    return any(abs(mean - near.value) <= 2 * near.half + ROUNDING * abs(mean) for mean in means)


def _mean_of_means(passes: list[Forward]) -> float:
    return math.fsum(forward.total_loss / forward.counted for forward in passes) / len(passes)


def _what(printed: PrintedNumber, passes: list[Forward], means: list[float]) -> str:
    """Return what a printed loss is instead of the mean over all targets; `means` are those of the steps up to it."""
    last, K = passes[-1].total_loss / passes[-1].counted, len(passes)
    average = _mean_of_means(passes)
    for sentence, value in (
        ("the loss of the last micro-batch alone", last),
        ("the last micro-batch's loss divided by their number", last / K),
        ("the sum over the micro-batches", average * K),
        ("the mean of the micro-batches' means, which have different numbers of targets", average),
        ("the mean divided by the number of micro-batches", mean_loss(passes) / K),
        ("the sum over the steps up to here", math.fsum(means)),
        ("the mean over the steps up to here", math.fsum(means) / len(means)),
    ):
        if _is(printed, value):
            return f"which is {sentence}"
    return "which is another number"


def _is(printed: PrintedNumber, value: float) -> bool:
    """Return True if a printed number is this value, to its digits."""
    return abs(printed.value - value) <= printed.half + ROUNDING * abs(value)


def _ends_of_epochs(recording: Recording) -> set[int]:
    """Return the steps with fewer rows than most after which rows come again, or the run ends by itself.

    A new epoch begins then, or there is no more.
    """
    rows = {step.number: _rows(recording.forwards_of(step.number)) for step in recording.steps}
    counts = sorted(map(len, rows.values()))
    usual = counts[len(counts) // 2] if counts else 0
    found: set[int] = set()
    seen: set[tuple[int, ...]] = set()
    for number, own in rows.items():
        again = set(own) <= seen
        seen |= set(own)
        after = rows.get(number + 1)
        last = again or recording.ended == "finished"
        if len(own) < usual and (last if after is None else not seen.isdisjoint(after)):
            found.add(number)
    return found | _with_the_short_batch(recording)


def _with_the_short_batch(recording: Recording) -> set[int]:
    """Return the steps with one micro-batch of fewer rows, the first such of an epoch: batches may come in any order.

    A new epoch begins where a row comes again.
    """
    largest = max((len(each.ids) for each in recording.trained), default=0)
    found: set[int] = set()
    seen: set[tuple[int, ...]] = set()
    is_known = False
    for step in recording.steps:
        passes = recording.forwards_of(step.number)
        own = set(_rows(passes))
        if not seen.isdisjoint(own):
            seen, is_known = set(), False
        seen |= own
        if sum(len(each.ids) < largest for each in passes) == 1 < len(passes) and not is_known:
            found.add(step.number)
            is_known = True
    return found


def _rows(passes: list[Forward]) -> list[tuple[int, ...]]:
    """Return the rows up to their last targets: the padding behind that is another in each batch."""
    found = list[tuple[int, ...]]()
    for forward in passes:
        padded = forward.ids.shape == forward.targets.shape
        for number, ids in enumerate(forward.ids):
            counted = (forward.targets[number] != IGNORED).nonzero().flatten().tolist() if padded else []
            found.append(tuple(ids[: counted[-1] + 1 if counted else None].tolist()))
    return found


@measure
def steps_and_tokens(program: Trains, *, rehearsal: str = "accumulate") -> Reading:
    """Return the optimizer steps of a run, and the micro-batches and rows of its steps; predicted is what was declared.

    Rows without any target are padding and count as rows. A number that the program was not given is left out, and so
    are the optimizer steps of a run that was stopped before it had made as many as were declared. The step that ends
    an epoch may be shorter than the others.
    """
    recording = program.record(rehearsal)
    settings = recording.settings
    found: dict[str, int] = {}
    predicted: dict[str, int] = {}
    declared = int(settings.get("steps") or 0)
    if declared and not (recording.ended == "stopped" and len(recording.steps) < declared):
        found["optimizer steps"], predicted["optimizer steps"] = len(recording.steps), declared
    rows = int(settings.get("batch_size") or 0) * int(settings.get("accumulation") or 0)
    short = _ends_of_epochs(recording)
    seen = any(forward.has_loss for forward in recording.forwards())  # otherwise nothing is known of batches
    for step in recording.steps:
        passes = [forward for forward in recording.forwards_of(step.number) if forward.has_loss]
        if step.number in short or not seen:
            continue
        if settings.get("accumulation"):
            found[f"step {step.number}: micro-batches"] = len(passes)
            predicted[f"step {step.number}: micro-batches"] = int(settings["accumulation"])
        if rows:
            found[f"step {step.number}: rows"] = sum(len(forward.ids) for forward in passes)
            predicted[f"step {step.number}: rows"] = rows
    if not found:
        raise MissingAbility(f"{program.name} has settings neither for its steps nor for its batch size")
    wrong = next((place for place, value in found.items() if value != predicted[place]), "")
    hint = {"hint": f"{wrong}: {found[wrong]}, declared {predicted[wrong]}"} if wrong else {}
    return Reading(found, "", {"predicted": predicted, **hint})
