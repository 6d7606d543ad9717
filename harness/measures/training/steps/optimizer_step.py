"""The measure of the optimizer's step, against its rule as a formula in float64."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest, rank_of_error
from harness.measures.training.steps.hand_written import fitted
from harness.measures.training.steps.rounding import ROUNDING, rms, unit_in_last_place
from harness.measures.training.steps.update_rules import RULES, Inputs, Rule, nudged, rule_of, wrong_rules
from harness.suites.measure_registry import Reading, measure
from harness.training.optimizer_steps import Group, Step
from harness.training.protocols import Trains


@dataclass(frozen=True, eq=False)
class Update:
    """One parameter's update: the group, the rule, and what it starts from and gives."""

    name: str
    group: Group
    rule: Rule
    steps: int
    step: Step

    def inputs(self, dtype: torch.dtype) -> Inputs:
        """Return what the update starts from, in a type."""
        state = self.step.state_before.get(self.name, {})
        return Inputs(
            self.step.before[self.name].to(dtype),
            self.step.gradient[self.name].to(dtype),
            {key: value.to(dtype) for key, value in state.items()},
            self.group,
            self.steps,
        )

    def found(self) -> dict[str, Tensor]:
        """Return the parameter and its moments after the update, as the program has them."""
        return {"parameter": self.step.after[self.name], **self.step.state_after.get(self.name, {})}

    def error(self, rule: Rule | None = None) -> float:
        """Return the distance from the rule, as a multiple of that of the rule computed in the program's own type.

        Both are root mean squares of the distances from the rule in float64, in units in the last place, of the
        parameter or a moment, whichever is further off. A unit includes what one rounding of the gradient changes. The
        program's own type rounds by at least 1/√12 of a unit.
        """
        rule = rule or self.rule
        found, given = self.found(), self.inputs(torch.float64)
        before = {"parameter": given.p, **given.state}
        exact, other = rule(given), rule(nudged(given, self.step.gradient[self.name].dtype))
        rounded = rule(self.inputs(found["parameter"].dtype))
        errors: list[float] = []
        for key, expected in exact.items():
            if key not in found or found[key].shape != expected.shape:
                return math.inf
            size = torch.maximum(expected.abs(), before[key].abs()) if key in before else expected
            unit = unit_in_last_place(size, found[key].dtype) + (other[key] - expected).abs()
            own = max(rms((rounded[key].double() - expected) / unit), 12**-0.5)
            errors.append(rms((found[key].double() - expected) / unit) / own)
        return largest(errors)


@measure
def update_errors(program: Trains, *, rehearsal: str = "plain", steps: int = 10) -> Reading:
    """Return the distance of each of the first `steps` optimizer steps from the optimizer's rule.

    The rule starts from the recorded parameters, gradients and moments of each step, in float64. The unit is the
    distance of the same formula in the program's own type, by rounding; the worst parameter is taken. The rule is that
    of the optimizer's class (AdamW, Adam, SGD) with the options of its groups. Of updates that the program writes
    itself it is the one that fits.
    """
    recording = program.record(rehearsal)
    found: dict[str, float] = {}
    hint = ""
    if recording.steps and recording.steps[0].is_hand_written:
        fit = fitted(recording, steps)
        details = {"rule": fit.name, **({"hint": f"step 0: {fit.mistake}"} if fit.mistake else {})}
        # Of a wrong rule that fits no distance from the right one is computed.
        far = [math.inf if fit.mistake else error for error in fit.errors]
        return Reading({f"step {k}": error for k, error in enumerate(far)}, "of the rounding", details)
    for step in recording.steps[:steps]:
        errors = [(update.error(), update) for update in updates(step)]
        if not errors:
            continue
        error, update = max(errors, key=lambda item: rank_of_error(item[0]))
        found[f"step {step.number}"] = error
        if not hint and not error <= ROUNDING:
            hint = f"step {step.number}, {update.name}: {_cause(update)}"
    if not found:
        raise MissingAbility(f"no parameter in the optimizer of {program.name} has a gradient")
    return Reading(found, "of the rounding", {"hint": hint} if hint else {})


def updates(step: Step) -> Iterator[Update]:
    """Yield the update of each parameter of an optimizer whose rule is known. Raises MissingAbility if none is."""
    rules = [rule_of(group.optimizer or step.optimizer, group) for group in step.groups]
    if not any(rules):
        raise MissingAbility(f"the rule of {step.optimizer} is not known here; known: {', '.join(RULES)}")
    for group, rule in zip(step.groups, rules, strict=True):
        if rule is None:
            continue
        for name in group.names:
            if name in step.gradient:
                yield Update(name, group, rule, _steps_before(step, name), step)


def _steps_before(step: Step, name: str) -> int:
    """Return the updates of a parameter before this step: the optimizer's own count."""
    state = step.state_before.get(name, {})
    return int(state["step"]) if "step" in state else (0 if not state else step.number)


def _cause(update: Update) -> str:
    """Return the known mistake that explains an update, or how far off it is."""
    candidates = [(update.error(rule), sentence) for sentence, rule in wrong_rules(update.group)]
    if candidates and (best := min(candidates, key=lambda item: rank_of_error(item[0])))[0] <= min(
        ROUNDING, update.error() / 2
    ):
        return best[1]
    p, found = update.inputs(torch.float64).p, update.found()["parameter"].double()
    expected = update.rule(update.inputs(torch.float64))["parameter"]
    size = float((expected - p).norm()) or math.nan
    return f"the update is {float((found - p).norm()) / size:.4g} times as long as that of {update.step.optimizer}"
