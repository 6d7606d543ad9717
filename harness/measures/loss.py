"""The measure of the model's own loss, against the definition of cross entropy."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.devices import CPU
from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle.probe_weights import State, state
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.forward_call import why_no_targets
from harness.subjects.model import Model
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure

# Targets that the loss ignores: PyTorch's default `ignore_index`, and nanoGPT's.
IGNORE_INDEXES = (-100, -1)

# How a program refuses a target outside its vocabulary: PyTorch's own errors, or a check of the program's.
REFUSALS = (IndexError, RuntimeError, ValueError, AssertionError)


@measure
def loss_against_definition(
    subject: Subject, *, size: str, case: Literal["plain", "training", "ignored", "extreme"], length: int = 24
) -> Reading:
    """Return the relative distance of the model's loss from mean(-log p[target]) in float64, from its own logits.

    "plain": eval mode. "training": training mode without dropout. "ignored": every third position, and a whole row,
    has no target. "extreme": logits so far apart that a probability underflows in float32; its logarithm does not.
    """
    given: State = dict(state(size, "probe"))
    if case == "extreme":
        given["transformer.ln_f.weight"] = 100 * given["transformer.ln_f.weight"]
    options: dict[str, Any] = {"dropout": 0.0} if case == "training" else {}
    if case == "ignored":  # a target that is refused is an index error, after which a process has no CUDA
        options["device"] = CPU
    model = build_with_weights(subject, SIZES[size], given, **options)
    model.module.train(case == "training")
    ids, targets = batch(SIZES[size], "random", rows=3, length=length)
    counted = torch.ones_like(targets, dtype=torch.bool)
    if case == "ignored":
        counted.view(-1)[::3] = False
        counted[0] = False  # a row that is only padding
    answers = list(_logits_and_own_loss(subject, model, ids, targets, counted))
    pairs = [(float(loss), _mean_nll(logits, targets, counted)) for logits, loss in answers]
    # Of the values for an ignored target, the program's own is the one by which its loss is nearest to the definition.
    found, expected = min(pairs, key=_distance)
    return Reading(
        abs(found - expected) / expected, "relative", {"hint": f"{found:.6g} nats, by definition {expected:.6g}"}
    )


def _distance(pair: tuple[float, float]) -> float:
    gap = abs(pair[0] - pair[1])
    return math.inf if math.isnan(gap) else gap


def _mean_nll(logits: Tensor, targets: Tensor, counted: Tensor) -> float:
    """Return the mean of -log p of the counted targets, in float64: logits (B, T, V), targets (B, T)."""
    nll = -logits.double().log_softmax(-1).gather(2, targets[..., None])[..., 0]
    return float(nll[counted].mean())


def _logits_and_own_loss(
    subject: Subject, model: Model, ids: Tensor, targets: Tensor, counted: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the logits and the model's own loss over the targets that are `counted`, for each value of an ignored one.

    Raises MissingAbility if the model computes no loss, or accepts no value for an ignored target.
    """
    values = (0,) if bool(counted.all()) else IGNORE_INDEXES
    accepted = False
    for value in values:
        try:
            with torch.no_grad():
                logits, loss = model.unchecked_call(ids, torch.where(counted, targets, value))
        except REFUSALS:
            if value not in IGNORE_INDEXES:
                raise
            if value == values[-1] and not accepted:
                raise MissingAbility(
                    f"the loss of {subject.name} accepts no value for an ignored target (tried {IGNORE_INDEXES})"
                ) from None
            continue
        if loss is None:
            why = why_no_targets(model.module)
            raise MissingAbility(f"{subject.name} computes no loss of its own: its forward {why}")
        accepted = True
        yield logits, loss
