"""Which known rule the updates follow that a program writes itself, found from its parameters and gradients alone.

A hand-written optimizer shows no moments. Those of a rule are computed here from the recorded gradients, step by step,
and each update is compared from the recorded parameters: a rule fits if every one is its own to rounding.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.measures.training.largest_error import largest
from harness.measures.training.steps.rounding import ROUNDING, rms, unit_in_last_place
from harness.measures.training.steps.update_rules import Adam, Inputs, Rule, nudged, wrong_rules
from harness.training.optimizer_steps import Group, Step
from harness.training.recording import Recording

# What is tried where the program's settings are not known.
BETAS = ((0.9, 0.95), (0.9, 0.999), (0.9, 0.98), (0.9, 0.99), (0.95, 0.95))
EPS = (1e-8, 1e-10, 1e-6, 1e-5)
FIRST = 3  # parameters, and steps, by which a rule is tried first
WORDS = ("beta1", "beta2", "eps")
COUNTED = "the step counter goes up with every parameter, so that the bias correction ends too soon"


@dataclass(frozen=True)
class Fit:
    """A rule with its distance from the updates of each step, in multiples of the rounding.

    `mistake` says what is wrong with the rule; "" for a right one. `decays` has the weight decay of each parameter.
    """

    name: str
    errors: tuple[float, ...]
    mistake: str = ""
    decays: Mapping[str, float] = field(default_factory=dict)

    @property
    def error(self) -> float:
        """The largest distance."""
        return largest(list(self.errors))


def fitted(recording: Recording, steps: int = 10) -> Fit:
    """Return the rule that fits the first steps: a right one if any does, and else a wrong one.

    Raises MissingAbility if the learning rate was not seen, or no known rule, right or wrong, fits.
    """
    own = recording.steps[:steps]
    if not any(group.lr for step in own for group in step.groups):
        raise MissingAbility(
            f"{recording.program} changes its parameters itself, and calls nothing a learning rate where it does"
        )
    right: Sequence[tuple[str, Rule]] = (("AdamW", Adam()), ("Adam", Adam(decay="in the gradient")))
    tried = list(_settings(recording.settings, own[0].groups[0].names))
    for group in tried:
        for name, rule in right:
            if (fit := _if_it_fits(own, group, name, rule)) is not None:
                return fit
    mistakes: Sequence[tuple[str, Rule]] = (*wrong_rules(tried[0]), (COUNTED, Adam()))
    for mistake, wrong in mistakes:
        if (fit := _if_it_fits(own, tried[0], "AdamW", wrong, mistake)) is not None:
            return fit
    raise MissingAbility(
        f"{recording.program} changes its parameters itself, by a rule that is none of those known here (AdamW, Adam)"
    )


def _settings(known: Mapping[str, Any], names: tuple[str, ...]) -> Iterator[Group]:
    """Yield groups with the settings that are known, and usual ones for the others, the likeliest first."""
    given = {word: float(known[word]) for word in WORDS if isinstance(known.get(word), int | float)}
    decay = float(known.get("weight_decay") or 0.0)
    pairs = dict.fromkeys((given.get("beta1", one), given.get("beta2", other)) for one, other in BETAS)
    for eps in (given["eps"],) if "eps" in given else EPS:
        for betas in pairs:
            yield Group(lr=0.0, betas=betas, eps=eps, weight_decay=decay, names=names)


def _if_it_fits(steps: Sequence[Step], group: Group, name: str, rule: Rule, mistake: str = "") -> Fit | None:
    """Return how a rule fits; None if it does not, which the first parameters and steps mostly show."""
    first = replace(group, names=group.names[:FIRST])
    if _fit(steps[:FIRST], first, name, rule, mistake, of=len(group.names)).error > ROUNDING:
        return None
    fit = _fit(steps, group, name, rule, mistake, of=len(group.names))
    return fit if fit.error <= ROUNDING else None


def _fit(steps: Sequence[Step], group: Group, name: str, rule: Rule, mistake: str = "", *, of: int) -> Fit:
    """Return how a rule fits, each parameter with the decay that is nearest: none, the declared or the apparent one."""
    worst = [0.0] * len(steps)
    decays: dict[str, float] = {}
    for number, parameter in enumerate(group.names):
        count: Callable[[int], int] = functools.partial(_counted, number, of) if mistake == COUNTED else _in_steps
        choices = {
            decay: list(_errors(steps, parameter, replace(group, weight_decay=decay), rule, count))
            for decay in dict.fromkeys(
                (group.weight_decay, 0.0, _apparent_decay(steps[0], parameter, group, rule, count))
            )
        }
        best = min(choices, key=lambda decay: largest(choices[decay]))
        decays[parameter] = best
        worst = [max(one, other) for one, other in zip(worst, choices[best], strict=True)]
    return Fit(name, tuple(worst), mistake, decays)


def _apparent_decay(step: Step, name: str, group: Group, rule: Rule, count: Callable[[int], int]) -> float:
    """Return the weight decay that makes the first update nearest to a rule, to two digits; 0 below 0.0001."""
    rate = step.groups[0].lr
    if name not in step.gradient or not rate:
        return 0.0
    p = step.before[name].double()
    without = replace(group, lr=rate, weight_decay=0.0)
    rest = step.after[name].double() - rule(Inputs(p, step.gradient[name].double(), {}, without, count(0)))["parameter"]
    decay = -float((rest * p).sum()) / (rate * float((p * p).sum()) or 1.0)
    return float(f"{decay:.2g}") if decay > 1e-4 else 0.0


def _in_steps(step: int) -> int:
    return step


def _counted(number: int, parameters: int, step: int) -> int:
    return step * parameters + number


def _errors(steps: Sequence[Step], name: str, group: Group, rule: Rule, count: Callable[[int], int]) -> Iterator[float]:
    """Yield the distance of each update of a parameter from the rule, in multiples of the rounding."""
    exact_state: dict[str, Tensor] = {}
    own_state: dict[str, Tensor] = {}
    for number, step in enumerate(steps):
        if name not in step.gradient:
            yield 0.0
            continue
        found, gradient = step.after[name], step.gradient[name]
        at = replace(group, lr=step.groups[0].lr)

        def inputs(dtype: torch.dtype, state: dict[str, Tensor]) -> Inputs:
            return Inputs(step.before[name].to(dtype), gradient.to(dtype), state, at, count(number))  # noqa: B023

        given = inputs(torch.float64, exact_state)
        exact, other = rule(given), rule(nudged(given, gradient.dtype))
        rounded = rule(inputs(found.dtype, own_state))
        expected = exact["parameter"]
        size = torch.maximum(expected.abs(), given.p.abs())
        unit = unit_in_last_place(size, found.dtype) + (other["parameter"] - expected).abs()
        own = max(rms((rounded["parameter"].double() - expected) / unit), 12**-0.5)
        yield rms((found.double() - expected) / unit) / own
        exact_state = {key: value for key, value in exact.items() if key != "parameter"}
        own_state = {key: value for key, value in rounded.items() if key != "parameter"}
