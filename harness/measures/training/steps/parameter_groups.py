"""Measures of the optimizer's groups: which parameters are in them, decay, and move, and with which settings."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Mapping

import torch

from harness.core.errors import MissingAbility
from harness.measures.training.steps.hand_written import fitted
from harness.measures.training.steps.update_rules import RULES, rule_of
from harness.suites.measure_registry import Reading, Scalar, measure
from harness.training.optimizer_steps import Step
from harness.training.protocols import Trains
from harness.training.recording import Parameter, Recording


@measure
def times_in_groups(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return how often each parameter of the model is in the optimizer's groups; a tied one counts under one name."""
    recording = program.record(rehearsal)
    _require_optimizer(recording)
    times = Counter(name for group in _first_step(recording).groups for name in group.names)
    own = _own(recording)
    aliases = {name: parameter.alias_of for name, parameter in recording.parameters.items() if parameter.alias_of}
    for name, first in aliases.items():
        times[str(first)] += times.pop(name, 0)
    outside = {name: each for name, each in recording.parameters.items() if not each.registered and not times[name]}
    missing = [name for name in own if not times[name]]
    strangers = _strangers(times, own)
    hint = {"hint": "the optimizer has parameters that no module of the model owns"} if strangers else {}
    if missing and not strangers:
        frozen = [name for name in missing if not own[name].requires_grad]
        hint["hint"] = f"{len(missing)} of {len(own)} parameters are in no group: {_some(missing)}" + (
            f"; requires_grad is False for {_some(frozen)}" if frozen else ""
        )
    if outside:
        hint = {
            "hint": f"{len(outside)} parameters are used, and in no module of the model: {_some(list(outside))}; "
            "modules in a list are registered by nn.ModuleList only",
            "line": next(iter(outside.values())).line,
        }
    return Reading({name: times[name] for name in (*own, *outside)} | strangers, "times", hint)


def _require_optimizer(recording: Recording) -> None:
    """Raise MissingAbility if the program changes its parameters itself: it has no groups that could be seen."""
    if _first_step(recording).is_hand_written:
        raise MissingAbility(f"{recording.program} changes its parameters itself: no optimizer of torch has groups")


def _strangers(times: Mapping[str, int], own: Mapping[str, object]) -> dict[str, int]:
    """Return 0 for each parameter in a group that is none of the model's: what the optimizer updates is not used."""
    return {f"{name}, which is not in the model": 0 for name in times if name not in own and times[name]}


@measure
def untrained_random_tensors(program: Trains, *, rehearsal: str = "plain", other: str = "other-seed") -> Reading:
    """Count the tensors in the model's modules that are drawn at random, and are no parameters: nothing trains them.

    They differ between two seeds, and are the same in two runs with the same seed: no memory that was never written.
    """
    own, others, again = (program.record(name).constants for name in (rehearsal, other, "again"))
    drawn = [name for name, value in own.items() if others.get(name, value) != value == again.get(name)]
    hint = f"drawn at random, and no parameter: {_some(drawn)}; nn.Parameter makes one"
    return Reading({"random tensors that are no parameters": len(drawn)}, "tensors", {"hint": hint} if drawn else {})


@measure
def steps_moved(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the share of the steps in which each parameter changed, of those whose learning rate can move it.

    Those are the steps whose rate is at least a hundredth of the largest one of its group: at the ends of a schedule an
    update may be less than half a unit in the last place. A gradient of zero in the first steps, as behind a matrix
    that starts at zero, moves nothing either.
    """
    recording = program.record(rehearsal)
    if not any(group.lr > 0 for step in recording.steps for group in step.groups):
        raise MissingAbility(f"{program.name} made no step with a learning rate above 0")
    names = list(_own(recording))
    if not names:
        raise MissingAbility(f"no module that {program.name} called owns the parameters of its optimizer")
    moved = {name: _share_of_moves(recording, name) for name in names}
    still = [name for name, share in moved.items() if share < 1]
    used = {name for step in recording.steps for name in step.gradient}
    cause = "stay as they are in a step" if used & set(still) else "get no gradient"
    details = {}
    frozen = [name for name in still if not recording.parameters[name].requires_grad] if still else []
    if frozen and frozen == still:
        cause, details["line"] = "are frozen (requires_grad)", recording.parameters[frozen[0]].line
    hint = {"hint": f"{len(still)} of {len(names)} parameters {cause}: {_some(still)}", **details}
    return Reading(moved, "of the steps", hint if still else {})


def _share_of_moves(recording: Recording, name: str) -> float:
    """Return the share of the steps that change a parameter; 0 for one that is in no group."""
    rates = [next((group.lr for group in step.groups if name in group.names), 0.0) for step in recording.steps]
    able = [step for step, rate in zip(recording.steps, rates, strict=True) if rate > 0 and rate >= max(rates) / 100]
    able = list(itertools.dropwhile(lambda step: _has_zero_gradient(step, name), able))
    return sum(_moves(step, name) for step in able) / len(able) if able else 0.0


def _has_zero_gradient(step: Step, name: str) -> bool:
    return name in step.gradient and not bool(step.gradient[name].any())


def _moves(step: Step, name: str) -> bool:
    """Return True if a step changes a parameter."""
    return name in step.before and not torch.equal(step.before[name], step.after[name])


@measure
def decay_by_parameter(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the weight decay of each parameter; predicted is the declared one for matrices and 0 for vectors.

    Embeddings may all be without decay: that is a convention (minGPT), and so is GPT-2's, by which they decay.
    If the program was not given a decay, the largest of its groups is taken to be the declared one. The weight_decay of
    Adam is no decay: it adds to the gradient (L2), and the moments scale it away (Loshchilov and Hutter 2019).
    """
    recording = program.record(rehearsal)
    step = _first_step(recording)
    own = _own(recording)
    given = {name: group.weight_decay for group in step.groups for name in group.names if name in own}
    if step.is_hand_written:
        given = {name: decay for name, decay in fitted(recording).decays.items() if name in own}
    if not given:
        raise MissingAbility(f"no parameter of the model of {program.name} is in a group of the optimizer")
    declared = recording.settings.get("weight_decay")
    decay = float(declared) if declared is not None else max(given.values(), default=0.0)
    adam = [rule_of(group.optimizer or step.optimizer, group) == RULES["Adam"] for group in step.groups]
    l2 = any(is_adam and group.weight_decay for is_adam, group in zip(adam, step.groups, strict=True))
    found = dict.fromkeys(given, 0.0) if l2 else given
    if not step.is_hand_written:
        found = {name: value + decay_outside(recording, name, decay) for name, value in found.items()}
    tables = [name for name in found if own[name].embedding]
    spared = set(tables) if not any(found[name] for name in tables) else set()
    predicted = {name: decay if len(own[name].shape) >= 2 and name not in spared else 0.0 for name in found}
    wrong = [name for name in found if found[name] != predicted[name]]
    cause = "Adam adds its weight_decay to the gradient (L2); AdamW decays the weights" if l2 else ""
    judged = {name: value for name, value in found.items() if name not in spared}
    hint = {"hint": cause or _decay_cause(judged, predicted, decay, wrong)} if wrong else {}
    return Reading(found, "", {"predicted": predicted, **hint})


def decay_outside(recording: Recording, name: str, declared: float) -> float:
    """Return the weight decay of a parameter that the program writes itself, beside the optimizer's step; mostly 0.

    It is a factor 1 - lr * decay of the parameter between its gradient and the step, or after the step.
    """
    steps = recording.steps
    for step, following in zip(steps, [*steps[1:], None], strict=True):
        if "before" not in step.tensors or name not in step.before:
            continue
        rate = next((group.lr for group in step.groups if name in group.names), 0.0)
        changes = [(step.at_gradient[name], step.before[name])]
        if following is not None and name in following.at_gradient:
            changes.append((step.after[name], following.at_gradient[name]))
        for old, new in changes:
            if rate and not torch.equal(old, new):
                return _as_decay(old, new, rate, declared)
    return 0.0


def _as_decay(old: torch.Tensor, new: torch.Tensor, rate: float, declared: float) -> float:
    """Return the decay by which one value is another one; 0 if it is by no factor."""
    one, other = old.double(), new.double()
    rounding = 2 * torch.finfo(old.dtype).eps * one.abs().max()
    if bool(((one * (1 - rate * declared) - other).abs() <= rounding).all()):
        return declared
    factor = float((one * other).sum() / (one * one).sum())
    is_factor = bool(((one * factor - other).abs() <= rounding).all())
    return float(f"{(1 - factor) / rate:.3g}") if is_factor and factor < 1 else 0.0


def _decay_cause(found: dict[str, float], predicted: dict[str, float], decay: float, wrong: list[str]) -> str:
    """Return what is wrong with the decay groups, as a sentence."""
    if not any(found.values()):
        return f"no parameter decays; matrices should, by {decay:g}"
    if all(value == found[wrong[0]] for value in found.values()):
        return f"every parameter has a decay of {found[wrong[0]]:g}, those of one dimension too"
    if all(found[name] == (0.0 if predicted[name] else decay) for name in found):
        return "the groups are swapped: vectors decay, and matrices do not"
    return f"{_some(wrong)} has a decay of {found[wrong[0]]:g}, not {predicted[wrong[0]]:g}"


@measure
def optimizer_settings(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return beta1, beta2 and eps of each group; predicted is what the program was given, or else the usual range.

    Where the program was given nothing, a beta1 above beta2 is predicted to be swapped, and eps to be at most 1e-6.
    """
    recording = program.record(rehearsal)
    found: dict[str, Scalar] = {}
    predicted: dict[str, float] = {}
    for number, group in enumerate(_first_step(recording).groups):
        values: dict[str, float] = {}
        expected: dict[str, float] = {}
        if group.betas is not None:
            values |= {"beta1": group.betas[0], "beta2": group.betas[1]}
            expected |= {"beta1": min(group.betas), "beta2": max(group.betas)}
        if group.eps is not None:
            values["eps"], expected["eps"] = group.eps, min(group.eps, 1e-6)
        for word, value in values.items():
            declared = recording.settings.get(word)
            found[f"group {number}, {word}"] = value
            predicted[f"group {number}, {word}"] = expected[word] if declared is None else float(declared)
    if not found:
        raise MissingAbility(f"the optimizer {_first_step(recording).optimizer} has neither betas nor eps")
    wrong = [place for place in found if found[place] != predicted[place]]
    hint = {"hint": _settings_cause(found, predicted, wrong)} if wrong else {}
    return Reading(found, "", {"predicted": predicted, **hint})


def _settings_cause(found: dict[str, Scalar], predicted: dict[str, float], wrong: list[str]) -> str:
    """Return which settings are other ones than the declared, as a sentence."""
    group = wrong[0].partition(",")[0]
    one, other = f"{group}, beta1", f"{group}, beta2"
    if {one, other} <= set(wrong) and (found[one], found[other]) == (predicted[other], predicted[one]):
        return f"beta1 and beta2 are swapped: they are {found[one]:g} and {found[other]:g}"
    return f"{wrong[0]} is {found[wrong[0]]:g}, and {predicted[wrong[0]]:g} was declared"


def _own(recording: Recording) -> dict[str, Parameter]:
    """Return the parameters of the model, a tied one under its first name."""
    own = recording.parameters.items()
    return {name: parameter for name, parameter in own if parameter.alias_of is None and parameter.registered}


def _first_step(recording: Recording) -> Step:
    if not recording.steps:
        raise MissingAbility(f"{recording.program} made no optimizer step in the rehearsal '{recording.rehearsal}'")
    return recording.steps[0]


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
