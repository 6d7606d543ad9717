"""The search for what a subject computes as its loss, where its logits are right and its loss is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import NO_VARIANT, Finding
from harness.diagnosis.observation import own_files
from harness.diagnosis.recorders import ModuleCreationSites, OperationRecorder
from harness.diagnosis.variants.loss import IGNORED, LOSS_VARIANTS, Loss, definition
from harness.diagnosis.variants.loss_weights import in_words, loss_weights
from harness.oracle.formula import Formula, Replacement
from harness.oracle.tokens import batch
from harness.subjects.model import Model

SAME = 1e-9  # relative
Case = tuple[Tensor, Tensor]  # ids (B, T), targets (B, T)


def search(
    model: Model,
    weights: dict[str, Tensor],
    size: Size,
    changes: Sequence[Replacement],
    sites: ModuleCreationSites,
    cases: Sequence[Case] = (),
) -> tuple[list[Finding], list[Replacement]]:
    """Return why the loss is not the mean cross entropy of the targets, [] if it is; and the changes that it has.

    The formula with `changes` computes the model's logits. A model whose head is wrong may still compute the loss from
    what its head got: that loss is right, and has the changes without those of the head. Batches whose logits are not
    the formula's say nothing of the loss: there the forward pass is wrong.
    """
    cases = [each for each in cases or _cases(size) if _is_matched(model, weights, size, changes, each[0])]
    measured, line = _measured(model, cases, sites)
    cases = cases[: len(measured)]
    if not cases:
        return [], list(changes)

    def losses(loss: Loss, logits: Sequence[Tensor]) -> list[float]:
        return [float(loss(x, targets, ids)) for x, (ids, targets) in zip(logits, cases, strict=True)]

    inside = [change for change in changes if change.operation != "head"]
    for applied in (inside, list(changes)):  # of both, the last one is described
        logits = [Formula(size, weights, applied)(ids) for ids, _ in cases]
        right = losses(definition, logits)
        if _agree(measured, right):
            return [], applied
    evidence = f"the loss is {measured[0]:.6g}; the mean cross entropy of the model's own logits is {right[0]:.6g}"
    fault, cause = "", NO_VARIANT
    for variant in LOSS_VARIANTS:
        try:
            if _agree(measured, losses(variant.loss, logits)):
                fault, cause = variant.fault, variant.says
                break
        except (RuntimeError, IndexError):
            continue  # the variant is not defined for these batches
    else:
        ratios = [a / b for a, b in zip(measured, right, strict=True) if b]
        if ratios and max(ratios) - min(ratios) < SAME * abs(ratios[0]):
            fault, cause = "loss-scaled", f"the loss is {ratios[0]:.6g} times the mean cross entropy"
        elif solved := _solved(model, cases):
            cause = solved
            evidence += "; solved from the gradient by the logits, in two batches"
    if fault:
        evidence += "; this variant gives the model's loss on every batch tried"
    return [Finding("loss", fault, cause, evidence, *location(line))], list(changes)


def _solved(model: Model, cases: Sequence[Case]) -> str:
    """Return what the loss counts, if two batches say the same of it; "" otherwise."""
    said = []
    for ids, targets in cases[:2]:
        found = loss_weights(model, ids, targets)
        said.append("" if found is None else in_words(found, ids, targets))
    return said[0] if len(set(said)) == 1 else ""


def _is_matched(
    model: Model, weights: dict[str, Tensor], size: Size, changes: Sequence[Replacement], ids: Tensor
) -> bool:
    with torch.no_grad():
        own, expected = model.logits(ids).double(), Formula(size, weights, changes)(ids)
    return bool((own - expected).abs().max() <= SAME * expected.abs().max())


def _cases(size: Size) -> list[Case]:
    """Return batches that distinguish the variants: plain ones, one with targets 0, one with ignored targets."""
    cases = [batch(size, "random", rows=3, length=length, seed=seed) for seed, length in ((0, 24), (1, 24), (2, 12))]
    ids, targets = cases[1]
    cases[1] = ids, targets.index_fill(1, torch.tensor([3, 7]), 0)
    ids, targets = cases[2]
    cases.append((ids, targets.index_fill(1, torch.tensor([2, 5]), IGNORED)))
    return cases


def _measured(model: Model, cases: Sequence[Case], sites: ModuleCreationSites) -> tuple[list[float], SourceLine | None]:
    """Return the model's losses, and the line of its own file that computed the last one."""
    measured = []
    with torch.no_grad(), OperationRecorder(sites) as recorder:
        for ids, targets in cases:
            try:
                measured.append(float(model.loss(ids, targets)))
            except (IndexError, RuntimeError):
                break  # the last case: a model need not support ignored targets
    files = own_files(model)
    scalars = [step.line for step in reversed(recorder.steps) if step.tensor.ndim == 0 and step.line is not None]
    return measured, next((line for line in scalars if line.file in files), None)


def _agree(found: list[float], expected: list[float]) -> bool:
    return all(
        (math.isnan(a) and math.isnan(b)) or abs(a - b) <= SAME * max(abs(b), 1e-300)
        for a, b in zip(found, expected, strict=True)
    )
