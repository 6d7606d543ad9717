"""The settings that a run had: what a rehearsal set, what the program was seen with, and what it declares itself."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.training.settings import Assignment, Settings

NEVER_SEEN = frozenset(("text", "out", "resume", "steps"))  # by their names: other things are called the same
# Settings that declare something, whoever chose them.
DECLARED = frozenset(
    (
        *("min_lr", "warmup", "horizon", "schedule", "weight_decay", "beta1", "beta2", "eps", "clip"),
        *("accumulation", "ema_decay"),
    )
)


def in_effect(settings: Settings, assignment: Assignment, observed: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run, by word: those that a flag sets, and else those that the program was seen with.

    A configuration that the program reads may override what was set. What no rehearsal sets is declared by the
    program's own value. Its learning rate is taken to be the schedule's peak only if it was set: programs scale it.
    """
    by_flag = {word: value for word, value in assignment.values.items() if word in settings.flags}
    known = (DECLARED | set(assignment.values)) - NEVER_SEEN
    if "cooldown" in settings and "horizon" not in settings:
        known -= {"horizon"}  # the frames of the program call the length of its final decay so
    if "warmup_share" in settings:
        known -= {"warmup"}  # and a share of the steps
    known |= {"steps"} - set(assignment.values)  # the program's own number of steps, the end of its schedule
    seen = {word: value for word, value in observed.items() if word in known}
    peak, least = assignment.values.get("lr", seen.get("lr")), seen.get("min_lr")
    if isinstance(peak, float) and isinstance(least, float) and least > peak:
        del seen["min_lr"]  # a share of the peak
    own = {word: value for word, value in settings.own.items() if word in DECLARED and type(value) is float}
    return {**own, **assignment.values, **seen, **by_flag, **settings.given}
