"""The measure of the learning rate at each step, against the closed forms of the known schedules."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial

from harness.core.errors import HarnessError, Missing, MissingAbility
from harness.measures.training.largest_error import largest
from harness.measures.training.steps.schedule_forms import (
    EXACT,
    Declared,
    Form,
    decaying_forms,
    fitted,
    known_forms,
    wrong_forms,
)
from harness.suites.measure_registry import Reading, measure
from harness.training.protocols import Trains
from harness.training.recording import Recording
from harness.training.setting_words import describe

PLAIN = "plain"
OF_A_RATE = re.compile(r"(^|_)(lr|peak|rate)(_|$)")  # an option of a group


@measure
def rate_errors(program: Trains, *, rehearsal: str = "past-horizon") -> Reading:
    """Return the distance of the learning rate at each step from the closed form that fits best, in units of the peak.

    The forms are the known schedules with every convention of counting steps; the peak, the minimum, the warm-up and
    the horizon are those that the program was given, or fitted where it was given none. The form that fits at most
    steps is taken, so that the others are the wrong ones.

    A run may end long before its schedule. Where the program was not given the end as such, the schedule may end at any
    step; one that no form fits then is judged only if it is a known mistake.
    """
    recording = program.record(rehearsal)
    rates = _rates(recording)
    declared = _declared(recording)
    if not declared.ends and rehearsal != PLAIN and _ends_with_the_run(program):
        declared = replace(declared, ends=True)
    if of_epochs := _of_epochs(recording, rates):
        return _once_an_epoch(recording, of_epochs, declared)
    best, expected = _best_form(rates, declared)
    to_zero = replace(declared, floor=0.0)
    if declared.cooldown and declared.floor is None and _cause(rates, to_zero):
        declared = to_zero  # a minimum that only a known mistake needs is none
        best, expected = _best_form(rates, declared)
    errors = _errors(rates, expected)
    details = {"form": best}
    if apart := _other_groups(recording, rates):
        hint = _how_it_is_apart(recording, next(iter(apart)))
        return Reading(apart, "of the peak", {**details, "hint": hint})
    if not largest(errors) <= EXACT:
        cause = _cause(rates, declared)
        if not cause and not declared.ends:
            raise MissingAbility(
                f"the end of the schedule of {recording.program} is not known, and no known schedule fits its "
                f"{len(rates)} learning rates; looked for {describe('horizon')}"
            )
        details["hint"] = cause or f"the closest known schedule is: {best}"
    found = {f"step {k}": error for k, error in enumerate(errors)}
    return Reading(found, "of the peak", details)


def _ends_with_the_run(program: Trains) -> bool:
    """Return True if a known schedule ends with the steps of the plain rehearsal: it does with those of any other."""
    try:
        recording = program.record(PLAIN)
    except (HarnessError, Missing):
        return False
    rates, declared = _rates(recording), replace(_declared(recording), ends=True)
    if declared.horizon is None or len(set(rates)) < 3:
        return False
    forms = (form.fitted(rates, declared) for form in known_forms(declared, len(rates)))
    return any(largest(_errors(rates, expected)) <= EXACT for expected in forms)


def _of_epochs(recording: Recording, rates: list[float]) -> list[float]:
    """Return the rate of each epoch if it changes between epochs only; [] if it does not, or epochs are not known."""
    epochs = int(recording.settings.get("epochs") or 0)
    if not epochs or len(rates) % epochs or len(rates) == epochs or len(set(rates)) == 1:
        return []
    steps = len(rates) // epochs
    found = [set(rates[first : first + steps]) for first in range(0, len(rates), steps)]
    return [each.pop() for each in found] if all(len(each) == 1 for each in found) else []


def _once_an_epoch(recording: Recording, rates: list[float], declared: Declared) -> Reading:
    """Return how far the rates of a schedule that counts steps, and goes on by one an epoch only, are from the first.

    Raises MissingAbility for any other: a few epochs fit too many schedules.
    """
    assert declared.horizon is not None
    forms = decaying_forms(declared.warmup or 0, declared.horizon)
    if not declared.warmup or not _least_error(rates, declared, forms) <= EXACT:
        raise MissingAbility(f"{recording.program} changes its learning rate between epochs only")
    steps = len(recording.steps) // len(rates)
    found = {f"epoch {n}": abs(rate - rates[0]) / max(rates) for n, rate in enumerate(rates) if n}
    hint = f"the schedule counts steps, and goes on by one an epoch, which has {steps}"
    return Reading(found, "of the peak", {"hint": hint})


def fitted_schedule(recording: Recording) -> str:
    """Return the known schedule that fits the learning rates of a recording, or how far the closest one is."""
    rates, declared = _rates(recording), _declared(recording)
    best, expected = _best_form(rates, declared)
    error = largest(_errors(rates, expected))
    if error <= EXACT:
        return f"{best}, peak {max(rates):.3g}"
    return f"no known schedule fits; the closest is {best}, off by {error:.2g} of the peak"


def _rates(recording: Recording) -> list[float]:
    """Return the learning rate of each step's first group."""
    if not recording.steps:
        raise MissingAbility(f"{recording.program} made no optimizer step in the rehearsal '{recording.rehearsal}'")
    rates = [step.groups[0].lr for step in recording.steps]
    if recording.steps[0].is_hand_written and not any(rates):
        raise MissingAbility(
            f"{recording.program} changes its parameters itself, and calls nothing a learning rate where it does"
        )
    return rates


def _other_groups(recording: Recording, rates: list[float]) -> dict[str, float]:
    """Return, for each further group whose rate is not in proportion to the first one's, how far it is from that."""
    top = max(range(len(rates)), key=lambda k: rates[k])
    found = {}
    for number in range(1, len(recording.steps[0].groups)):
        own = [step.groups[number].lr for step in recording.steps]
        scale = own[top] / rates[top] if rates[top] else 1.0
        error = largest(abs(value - scale * rate) for value, rate in zip(own, rates, strict=True)) / (max(own) or 1.0)
        if not error <= EXACT:
            found[f"group {number}"] = error
        elif own == rates and (ratio := _own_ratio(recording, number)) != 1.0:
            found[f"group {number}"] = abs(ratio - 1.0)
    return found


def _own_ratio(recording: Recording, number: int) -> float:
    """Return the ratio of the rates that a group and group 0 have of their own; 1 if they have none, or the same.

    They are those with which the optimizer was built, or an option of the program, as "base_lr".
    """
    own, first = recording.steps[0].groups[number], recording.steps[0].groups[0]
    pairs = [(own.built_lr, first.built_lr)]
    pairs += [(own.options.get(key), first.options.get(key)) for key in own.options if OF_A_RATE.search(key)]
    numbers = [(a, b) for a, b in pairs if type(a) is float and type(b) is float and a and b]
    return next((a / b for a, b in numbers if a != b), 1.0) if own.optimizer == first.optimizer else 1.0


def _how_it_is_apart(recording: Recording, group: str) -> str:
    ratio = _own_ratio(recording, int(group.partition(" ")[2]))
    if ratio != 1.0:
        return f"{group} has {ratio:.4g} times the learning rate of group 0 of its own, and steps with the same one"
    return f"the learning rate of {group} is not in proportion to that of group 0"


def _declared(recording: Recording) -> Declared:
    """Return the schedule's settings that the program was given."""
    settings = recording.settings
    horizon = settings.get("horizon") or settings.get("steps")
    return Declared(
        peak=settings.get("lr"),
        floor=settings.get("min_lr"),
        warmup=settings.get("warmup"),
        horizon=int(horizon) if horizon else None,
        ends=bool(settings.get("horizon")),
        cooldown=settings.get("cooldown"),
        epochs=int(settings.get("epochs") or 1),
        ranks=recording.ranks,
        kind=settings.get("schedule"),
        accumulation=int(
            settings.get("accumulation") or max(1, len(recording.forwards_of(recording.steps[-1].number)))
        ),
    )


def _best_form(rates: list[float], declared: Declared) -> tuple[str, list[float]]:
    """Return the name and the rates of the known schedule that fits at most steps, or as many steps more closely."""
    forms = list(known_forms(declared, len(rates)))
    if not declared.ends:
        forms += known_forms(_with_a_later_end(rates, declared), len(rates))
    candidates = [(form.name, form.fitted(rates, declared)) for form in forms]
    if declared.floor:
        to_zero, least = replace(declared, floor=0.0), declared.floor
        cut = [(f.name, [max(least, rate) for rate in f.fitted(rates, to_zero)]) for f in forms if f.to_floor]
        candidates += [(f"{name}, not below the minimum", own) for name, own in cut if not _misfit(rates, own)[0]]
    return min(candidates, key=lambda item: _misfit(rates, item[1]))


def _with_a_later_end(rates: list[float], declared: Declared) -> Declared:
    """Return the declared settings with the horizon that fits best: a run may end long before it."""
    if declared.warmup is None:
        return declared
    forms = partial(decaying_forms, declared.warmup)
    end = _best_end(lambda end: _least_error(rates, declared, forms(end)))
    return replace(declared, horizon=end)


def _best_end(error_of: Callable[[int], float]) -> int:
    """Return the end of a schedule, in steps, for which the error is least: coarsely first, then between neighbours."""
    ends = sorted({round(1.1**n) for n in range(1, 150)})  # up to 1.5 million steps
    while True:
        errors = [error_of(end) for end in ends]
        best = errors.index(min(errors))
        low, high = ends[max(0, best - 1)], ends[min(len(ends) - 1, best + 1)]
        if high - low <= 2:
            return ends[best]
        ends = sorted({low + (high - low) * n // 20 for n in range(21)} | {ends[best]})


def _least_error(
    rates: list[float], declared: Declared, forms: Iterable[Form], *, every: int = 1, first: int = 0
) -> float:
    """Return the largest error of the form that fits best, if each optimizer step is `every` steps of the schedule.

    `first`: the step of the schedule at the first optimizer step.
    """
    fits = (fitted([form.weights(k * every + first) for k in range(len(rates))], rates, declared) for form in forms)
    return min(largest(_errors(rates, fit)) for fit in fits)


def _misfit(rates: list[float], expected: list[float]) -> tuple[int, float]:
    errors = _errors(rates, expected)
    return sum(not error <= EXACT for error in errors), largest(errors)


def _errors(rates: list[float], expected: list[float]) -> list[float]:
    peak = max(map(abs, expected)) or 1.0
    return [abs(rate - value) / peak for rate, value in zip(rates, expected, strict=True)]


def _cause(rates: list[float], declared: Declared) -> str:
    """Return the known mistake that gives these rates at every step, or an empty string."""
    for sentence, weights in wrong_forms(declared, len(rates)):
        if largest(_errors(rates, fitted(weights, rates, declared))) <= EXACT:
            return f"the learning rate follows: {sentence}"
    if not declared.ends and declared.warmup and declared.accumulation > 1:
        forms = partial(decaying_forms, declared.warmup)
        for first in (0, declared.accumulation):

            def error_of(end: int, first: int = first) -> float:
                return _least_error(rates, declared, forms(end), every=declared.accumulation, first=first)

            if error_of(_best_end(error_of)) <= EXACT:
                return "the learning rate follows: a known schedule, with steps counted in micro-batches"
    return _other_ends(rates, declared)


def _other_ends(rates: list[float], declared: Declared) -> str:
    """Return the peak and the minimum of the known schedule that fits with other ones than the declared, or ""."""
    if not declared.ends or declared.warmup is None or declared.horizon is None or len(rates) <= declared.horizon:
        return ""
    free = replace(declared, peak=None, floor=None)
    for form in decaying_forms(declared.warmup, declared.horizon):
        fit = form.fitted(rates, free)
        if largest(_errors(rates, fit)) <= EXACT:
            given = f"{declared.peak:g} and {declared.floor or 0:g}" if declared.peak else "others"
            return f"the schedule has a peak of {max(fit):.3g} and a minimum of {fit[-1]:.3g}; declared are {given}"
    return ""
