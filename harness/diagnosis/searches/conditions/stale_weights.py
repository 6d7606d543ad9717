"""The search for weights that are used as they were before a change: at which operation, in which line."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from harness.core.sizes import SIZES, Size
from harness.diagnosis.finding import NO_VARIANT, Finding
from harness.diagnosis.recorders import ModuleCreationSites
from harness.diagnosis.searches import computation
from harness.diagnosis.searches.conditions.replay import under_condition
from harness.measures.conditions.condition import Condition
from harness.measures.conditions.newest_weights import CHANGES
from harness.oracle.formula import At, Formula, operation_of
from harness.oracle.probe_weights import state
from harness.oracle.tokens import batch
from harness.oracle.variants import Variant
from harness.subjects.build import build_with_weights
from harness.subjects.protocols import Subject
from harness.suites.record import Record

FAULT = "stale-weights"
STALE = 1e-3  # relative, as the check has it
# The weights that each operation reads; those that people pack first.
READ: Mapping[str, tuple[str, ...]] = {
    "attn.qkv": ("attn.c_attn.weight", "attn.c_attn.bias"),
    **{name: (f"{name}.weight", f"{name}.bias") for name in ("attn.c_proj", "mlp.c_fc", "mlp.c_proj")},
    "embedding.token": ("wte.weight",),
    "embedding.position": ("wpe.weight",),
    "head": ("wte.weight",),
    **{name: (f"{name}.weight", f"{name}.bias") for name in ("ln_1", "ln_2", "ln_f")},
}
MODES = tuple(
    Condition(mode=mode, gradients=gradients)
    for mode in ("eval", "train")
    for gradients in ("no_grad", "recorded", "inference_mode")
)


def stale_weights(subject: Subject, record: Record) -> list[Finding]:
    """Return which operation uses the old weights, in a mode in which it does after a change that the check names."""
    size = SIZES[str(record.check.parameters["size"])]
    stale = [name for name, gap in record.value.items() if not gap < STALE]
    for name in stale[:2]:
        for mode in MODES:
            if found := _after(subject, size, name.removeprefix("after "), mode):
                return found
    return []


def _after(subject: Subject, size: Size, change: str, mode: Condition) -> list[Finding]:
    """Return what is found in one mode after one change; [] if the answer is that of the new weights."""
    ids, targets = batch(size, "random", rows=2, length=24)
    with ModuleCreationSites() as sites:
        model = build_with_weights(subject, size, state(size.name, "probe"), "float64", dropout=0.0)
    old = computation.published_weights(model, state(size.name, "probe"))
    with torch.no_grad():
        for each in (*MODES, mode):  # whatever is kept from call to call is filled, and in this mode last
            under_condition(subject, model, each, ids, targets).logits(ids)
    CHANGES[change](model, 0.5)
    model.module.double()
    new = {key: tensor * 0.5 for key, tensor in old.items()}
    under = under_condition(subject, model, mode, ids, targets)
    expected = Formula(size, new)(ids)
    with torch.no_grad():
        own = under.logits(ids)
    if float((own - expected).abs().max()) <= STALE * float(expected.abs().max()):
        return []
    found = computation.differences(
        under, sites, new, ids, targets, unlisted=tuple(_of_old_weights(size, old)), only_forward=True
    )
    said = f"after {change}, in {mode.mode} mode with gradients {mode.gradients}".replace("gradients no_", "no_")
    return [
        dataclasses.replace(each, fault=FAULT, cause=f"{said}: {each.cause}")
        for each in found
        if each.cause != NO_VARIANT or each.source
    ]


def _of_old_weights(size: Size, old: Mapping[str, Tensor]) -> Iterator[Variant]:
    for operation, names in READ.items():
        for chosen in dict.fromkeys((names[:1], names, names[1:])):
            if chosen:
                says = f"{operation} uses {' and '.join(chosen)} as before the change"
                yield Variant("", operation, says, _with_old(operation, size, old, chosen))


def _with_old(operation: str, size: Size, old: Mapping[str, Tensor], names: tuple[str, ...]) -> Any:
    def function(at: At, *inputs: Any) -> Any:
        own = [f"transformer.{name}" for name in names]
        own += [f"transformer.h.{at.layer}.{name}" for name in names]
        weights = {**at.formula.weights, **{key: old[key] for key in own if key in old}}
        return operation_of(operation)(At(Formula(size, weights), at.layer), *inputs)

    return function
