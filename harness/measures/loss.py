"""Measures of the model's own loss: held against cross entropy by definition, from the model's own logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from harness.core.errors import MissingAbility
from harness.core.sizes import SIZES
from harness.oracle.probe_weights import State, state
from harness.oracle.tokens import batch
from harness.subjects.model import Model, Subject, build_with_weights
from harness.suites.measure_registry import Reading, measure

# What is no target: PyTorch's own value, and nanoGPT's.
IGNORED = (-100, -1)


@measure
def loss_against_definition(
    subject: Subject, *, size: str, case: Literal["plain", "training", "ignored", "extreme"], length: int = 24
) -> Reading:
    """Relative distance of the model's own loss from mean(-log p[target]), computed in float64 from its own logits.

    'plain' in eval mode; 'training' in training mode without dropout; 'ignored' with every third position no target;
    'extreme' with logits so far apart that a probability underflows in float32, where its logarithm must not.
    """
    given: State = dict(state(size, "probe"))
    if case == "extreme":
        given["transformer.ln_f.weight"] = 100 * given["transformer.ln_f.weight"]
    options: dict[str, Any] = {"dropout": 0.0} if case == "training" else {}
    model = build_with_weights(subject, SIZES[size], given, **options)
    model.module.train(case == "training")
    ids, targets = batch(SIZES[size], "random", rows=3, length=length)
    kept = torch.ones_like(targets, dtype=torch.bool)
    if case == "ignored":
        kept.view(-1)[::3] = False
        kept[0] = False  # a row of padding alone
    logits, loss = _own(subject, model, ids, targets, kept)
    told = logits.double().log_softmax(-1).gather(2, targets[..., None])[..., 0]
    expected = float(-told[kept].mean())
    found = float(loss)
    return Reading(
        abs(found - expected) / expected, "relative", {"hint": f"{found:.6g} nats, by definition {expected:.6g}"}
    )


def _own(subject: Subject, model: Model, ids: Tensor, targets: Tensor, kept: Tensor) -> tuple[Tensor, Tensor]:
    """Logits and the model's own loss. MissingAbility where it has none, or no value for what is no target."""
    values = (0,) if bool(kept.all()) else IGNORED
    for value in values:
        try:
            with torch.no_grad():
                logits, loss = model.calling(model.module, ids, torch.where(kept, targets, value))
        except (IndexError, RuntimeError):  # target out of bounds: another convention
            if value == values[-1]:
                raise MissingAbility(
                    f"the loss of {subject.name} has no value for what is no target (tried {IGNORED})"
                ) from None
            continue
        if loss is None:
            raise MissingAbility(f"{subject.name} computes no loss of its own")
        return logits, loss
    raise AssertionError("unreachable")
