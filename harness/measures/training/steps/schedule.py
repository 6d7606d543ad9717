"""The measure of the learning rate at each step, against the closed forms of the known schedules."""

from __future__ import annotations

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest
from harness.measures.training.steps.schedule_forms import EXACT, Declared, fitted, known_forms, wrong_forms
from harness.suites.measure_registry import Reading, measure
from harness.training.protocols import Trains
from harness.training.recording import Recording
from harness.training.setting_words import describe


@measure
def rate_errors(program: Trains, *, rehearsal: str = "past-horizon") -> Reading:
    """Return the distance of the learning rate at each step from the closed form that fits best, in units of the peak.

    The forms are the known schedules with every convention of counting steps; the peak, the minimum, the warm-up and
    the horizon are those that the program was given, or fitted where it was given none. The form that fits at most
    steps is taken, so that the others are the wrong ones.
    """
    recording = program.record(rehearsal)
    rates = _rates(recording)
    declared = _declared(recording)
    best, expected = _best_form(rates, declared)
    errors = _errors(rates, expected)
    details = {"form": best}
    apart = _other_groups(recording, rates)
    if not largest(errors) <= EXACT and not recording.settings.get("horizon") and not apart:
        raise MissingAbility(
            f"the end of the schedule of {recording.program} is not known, and no known schedule fits its "
            f"{len(rates)} learning rates; looked for {describe('horizon')}"
        )
    if apart:
        details["hint"] = f"the learning rate of {next(iter(apart))} is not in proportion to that of group 0"
    elif not largest(errors) <= EXACT:
        details["hint"] = _cause(rates, declared) or f"the closest known schedule is: {best}"
    found = {f"step {k}": error for k, error in enumerate(errors)}
    return Reading(apart or found, "of the peak", details)


def _rates(recording: Recording) -> list[float]:
    """Return the learning rate of each step's first group."""
    if not recording.steps:
        raise MissingAbility(f"{recording.program} made no optimizer step in the rehearsal '{recording.rehearsal}'")
    return [step.groups[0].lr for step in recording.steps]


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
    return found


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
        kind=settings.get("schedule"),
        accumulation=int(settings.get("accumulation") or 1),
    )


def _best_form(rates: list[float], declared: Declared) -> tuple[str, list[float]]:
    """Return the name and the rates of the known schedule that fits at most steps, or as many steps more closely."""
    candidates = [(form.name, form.fitted(rates, declared)) for form in known_forms(declared, len(rates))]
    return min(candidates, key=lambda item: _misfit(rates, item[1]))


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
    return ""
