"""Measures of a run's types: of parameters, gradients and moments, and of the updates that they lose."""

from __future__ import annotations

import torch

from harness.core.errors import MissingAbility
from harness.measures.training.steps.optimizer_step import Update, updates
from harness.measures.training.steps.rounding import unit_in_last_place
from harness.suites.measure_registry import Reading, Scalar, measure
from harness.training.protocols import Trains


@measure
def training_dtypes(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the narrowest type of the parameters, the gradients, the moments and the loss.

    Autocast computes products in 16 bits; the loss, the weights, and what is summed over steps, stay in float32.
    """
    recording = program.record(rehearsal)
    if not recording.steps:
        raise MissingAbility(f"{program.name} made no optimizer step")
    step = recording.steps[-1]
    kinds = {
        "parameters": {parameter.dtype for parameter in recording.parameters.values() if parameter.requires_grad},
        "gradients": {_name(gradient) for gradient in step.gradient.values()},
        "moments": {_name(t) for state in step.state_after.values() for t in state.values() if t.dim()},
        "loss": {forward.loss_dtype for forward in recording.forwards() if forward.has_loss},
    }
    autocast = {forward.autocast for forward in recording.forwards("train") if forward.autocast}
    found: dict[str, Scalar] = {kind: min(types, key=_bits) for kind, types in kinds.items() if types}
    details = {"autocast": sorted(map(str, autocast))}
    narrow = [kind for kind, dtype in found.items() if _bits(str(dtype)) < 32]
    if narrow == ["loss"]:
        line = next(forward.loss_line for forward in recording.forwards() if forward.loss_dtype == found["loss"])
        return Reading(found, "", {**details, "hint": f"the loss is computed in {found['loss']}", "line": line})
    return Reading(found, "", details)


@measure
def updates_lost_in_steps(program: Trains, *, rehearsal: str = "plain") -> Reading:
    """Return the share of a parameter's elements that a step should change and leaves as they are, by step.

    An element should change if the update, by the optimizer's rule in float64, is larger than two units in the last
    place of a float32 weight: a float32 weight then changes, whatever the order of rounding. The worst parameter
    counts.
    """
    recording = program.record(rehearsal)
    found: dict[str, float] = {}
    hint = ""
    for step in recording.steps:
        shares = {update.name: _share_lost(update) for update in updates(step)}
        if not shares:
            continue
        worst = max(shares, key=lambda name: shares[name])
        found[f"step {step.number}"] = shares[worst]
        hint = hint or (f"step {step.number}: {shares[worst]:.1%} of {worst}" if shares[worst] > 0 else "")
    if not found:
        raise MissingAbility(f"no parameter in the optimizer of {program.name} has a gradient")
    return Reading(found, "of the elements", {"hint": hint} if hint else {})


def _share_lost(update: Update) -> float:
    """Return the share of the elements that should change and do not; 0 if none should."""
    given = update.inputs(torch.float64)
    expected = update.rule(given)["parameter"]
    largest = torch.maximum(expected.abs(), given.p.abs())
    due = (expected - given.p).abs() > 2 * unit_in_last_place(largest, torch.float32)
    still = update.found()["parameter"] == update.step.before[update.name]
    return float((due & still).sum()) / max(int(due.sum()), 1)


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _bits(dtype: str) -> float:
    return torch.finfo(getattr(torch, dtype)).bits
