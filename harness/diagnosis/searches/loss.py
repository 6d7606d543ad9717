"""The loss explained: what the subject averages, where its logits are right and its loss is not."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.core.sizes import Size
from harness.diagnosis.finding import Finding
from harness.diagnosis.observation import ModuleCreationSites, OperationRecorder, own_files
from harness.oracle.formula import Formula, Replacement
from harness.oracle.tokens import batch
from harness.subjects.model import Model

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # logits (B, T, V), targets (B, T), ids (B, T)
IGNORED = -100
SAME = 1e-9


def cross_entropy(logits: Tensor, targets: Tensor, **settings: float) -> Tensor:
    """Mean cross entropy of flattened logits."""
    return F.cross_entropy(logits.flatten(0, -2), targets.flatten(), **settings)  # type: ignore[arg-type]


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="sum")


EXPLANATIONS: list[tuple[str, str, Loss]] = [
    (
        "labels-shifted-twice",
        "the targets, already shifted, are shifted once more",
        lambda x, t, i: cross_entropy(x[:, :-1], t[:, 1:]),
    ),
    ("labels-not-shifted", "the targets are the inputs: the model learns to copy", lambda x, t, i: cross_entropy(x, i)),
    (
        "labels-shifted-backwards",
        "every position is to predict the token before it",
        lambda x, t, i: cross_entropy(x[:, 1:], i[:, :-1]),
    ),
    (
        "labels-shifted-backwards",
        "the targets are shifted the wrong way",
        lambda x, t, i: cross_entropy(x[:, 1:], t[:, :-1]),
    ),
    (
        "labels-roll-wraparound",
        "the targets are rolled: the last position is to predict the first token",
        lambda x, t, i: cross_entropy(x, i.roll(-1, 1)),
    ),
    ("labels-roll-wraparound", "the targets are rolled once more", lambda x, t, i: cross_entropy(x, t.roll(-1, 1))),
    ("labels-roll-wraparound", "the targets are rolled backwards", lambda x, t, i: cross_entropy(x, t.roll(1, 1))),
    (
        "labels-row-mismatch",
        "the targets belong to another row of the batch",
        lambda x, t, i: cross_entropy(x, t.roll(1, 0)),
    ),
    (
        "loss-wrong-class-dim",
        "logits (B, T, V) are reshaped to (B, V, T), not transposed",
        lambda x, t, i: F.cross_entropy(x.reshape(x.shape[0], x.shape[2], x.shape[1]), t),
    ),
    (
        "loss-ignore-index-real-token",
        "targets that are token 0 are ignored",
        lambda x, t, i: cross_entropy(x, t.masked_fill(t == 0, IGNORED)),
    ),
    ("loss-summed", "the loss is summed, not averaged", lambda x, t, i: _summed(x, t)),
    ("loss-summed", "the loss is summed over time and averaged over rows", lambda x, t, i: _summed(x, t) / t.shape[0]),
    ("loss-summed", "the loss is summed over rows and averaged over time", lambda x, t, i: _summed(x, t) / t.shape[1]),
    ("loss-in-bits", "the loss is in bits, not in nats", lambda x, t, i: cross_entropy(x, t) / math.log(2)),
    ("loss-scaled", "the loss is halved", lambda x, t, i: cross_entropy(x, t) / 2),
    ("loss-scaled", "the loss is divided by the vocabulary", lambda x, t, i: cross_entropy(x, t) / x.shape[-1]),
    (
        "loss-of-probabilities",
        "a softmax is applied before the cross entropy",
        lambda x, t, i: cross_entropy(x.softmax(-1), t),
    ),
    ("loss-last-position-only", "only the last position counts", lambda x, t, i: cross_entropy(x[:, -1], t[:, -1])),
    ("loss-last-target-dropped", "the last position is left out", lambda x, t, i: cross_entropy(x[:, :-1], t[:, :-1])),
    ("loss-position-left-out", "the first position is left out", lambda x, t, i: cross_entropy(x[:, 1:], t[:, 1:])),
    ("loss-row-left-out", "only the first row of the batch counts", lambda x, t, i: cross_entropy(x[:1], t[:1])),
    ("loss-is-perplexity", "the loss is the perplexity", lambda x, t, i: cross_entropy(x, t).exp()),
    (
        "logits-low-precision",
        "the loss is computed in bfloat16",
        lambda x, t, i: cross_entropy(x.bfloat16(), t).double(),
    ),
    ("logits-low-precision", "the loss is computed in float16", lambda x, t, i: cross_entropy(x.half(), t).double()),
    (
        "logits-low-precision",
        "the logits are rounded to bfloat16 for the loss",
        lambda x, t, i: cross_entropy(x.bfloat16().double(), t),
    ),
    (
        "loss-averaged-over-pads",
        "ignored targets (-100) count in the average's denominator",
        lambda x, t, i: _summed(x, t) / t.numel(),
    ),
    (
        "loss-mask-dropped",
        "ignored targets (-100) are counted as token 0",
        lambda x, t, i: cross_entropy(x, t.clamp(min=0)),
    ),
]
for smoothing in (0.1, 0.05, 0.2, 0.01):
    EXPLANATIONS.append(
        (
            "loss-label-smoothing-left-on",
            f"label smoothing of {smoothing:g} is on",
            lambda x, t, i, s=smoothing: cross_entropy(x, t, label_smoothing=s),  # type: ignore[misc]
        )
    )


def explain(
    model: Model, weights: dict[str, Tensor], size: Size, changes: Sequence[Replacement], births: ModuleCreationSites
) -> list[Finding]:
    """Why the loss of a model whose logits are explained by `changes` is not the mean cross entropy of its targets."""
    cases = list(_cases(size))
    measured = []
    with torch.no_grad(), OperationRecorder(births) as recorder:
        for ids, targets in cases:
            try:
                measured.append(float(model.loss(ids, targets)))
            except (IndexError, RuntimeError):
                break  # the last case: it has no value for what is no target, another convention
    cases = cases[: len(measured)]
    logits = []
    for ids, _ in cases:
        formula = Formula(size, weights, changes)
        logits.append(formula(ids))

    def losses(loss: Loss) -> list[float]:
        return [float(loss(x, targets, ids)) for x, (ids, targets) in zip(logits, cases, strict=True)]

    right = losses(lambda x, t, i: cross_entropy(x, t))
    if _agree(measured, right):
        return []
    files = own_files(model)
    scalars = [step.line for step in reversed(recorder.steps) if step.tensor.ndim == 0 and step.line is not None]
    line = next((line for line in scalars if line.file in files), None)
    told = f"the loss is {measured[0]:.6g}, where the mean cross entropy of its own logits is {right[0]:.6g}"
    fault, cause = "", "no explanation of the catalogue fits"
    for name, says, loss in EXPLANATIONS:
        try:
            if _agree(measured, losses(loss)):
                fault, cause = name, says
                break
        except (RuntimeError, IndexError):
            continue
    else:
        ratios = [a / b for a, b in zip(measured, right, strict=True) if b]
        if ratios and max(ratios) - min(ratios) < SAME * abs(ratios[0]):
            fault, cause = "loss-scaled", f"the loss is {ratios[0]:.6g} times the mean cross entropy"
    if fault:
        told += "; with this in its place the two agree on every batch tried"
    return [Finding("loss", fault, cause, told, "" if line is None else str(line), "" if line is None else line.text)]


def _cases(size: Size) -> list[tuple[Tensor, Tensor]]:
    """Batches that tell the variants apart: plain ones, one with token 0 among the targets, one with ignored ones."""
    cases = []
    for seed, length in ((0, 24), (1, 24), (2, 12)):
        cases.append(batch(size, "random", rows=3, length=length, seed=seed))
    ids, targets = cases[1]
    cases[1] = ids, targets.index_fill(1, torch.tensor([3, 7]), 0)
    ids, targets = cases[2]
    cases.append((ids, targets.index_fill(1, torch.tensor([2, 5]), IGNORED)))
    return cases


def _agree(found: list[float], expected: list[float]) -> bool:
    return all(
        (math.isnan(a) and math.isnan(b)) or abs(a - b) <= SAME * max(abs(b), 1e-300)
        for a, b in zip(found, expected, strict=True)
    )
