"""Errors of a float32 model in units of the float32 floor: the error of the reference's own float32 run."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.core.sizes import Size
from harness.oracle import model_cache, noise_verdict
from harness.oracle.hugging_face import oracle
from harness.oracle.probe_weights import state_of
from harness.oracle.tokens import batch
from harness.subjects.build import build_with_weights
from harness.subjects.model import Model
from harness.subjects.protocols import Subject

ROWS, LENGTH = 2, 24


def float32_model(subject: Subject, size: Size) -> Model:
    """Return the subject with probe weights in float32, in eval mode, without dropout."""
    return build_with_weights(subject, size, state_of(size, "probe"), dropout=0.0)


def reference_run(size: Size) -> noise_verdict.ReferenceRun:
    """Return Hugging Face's GPT-2 with probe weights on the batch of these measures, with its float32 floors."""
    ids, targets = batch(size, "random", rows=ROWS, length=LENGTH)
    given = state_of(size, "probe")
    return model_cache.cached_if_small(
        size.name,
        ("errors in floors", size),
        lambda: noise_verdict.run_reference(lambda dtype: oracle(size, given, dtype), ids, targets, backward=True),
    )


def outputs_and_gradients(model: Model, size: Size) -> dict[str, Tensor]:
    """Return the logits, the loss and every gradient, by published name, of one pass; they are cleared in the model."""
    ids, targets = batch(size, "random", rows=ROWS, length=LENGTH)
    model.module.zero_grad(set_to_none=True)
    logits, loss = model.logits_and_loss(ids, targets)
    loss.backward()
    found = {"logits": logits.detach(), "loss": loss.detach(), **model.gradients()}
    model.module.zero_grad(set_to_none=True)
    return found


def in_floors(
    found: Mapping[str, Tensor], expected: Mapping[str, Tensor], reference: noise_verdict.ReferenceRun
) -> dict[str, float]:
    """Return the largest distance at each place that the reference has, in units of the reference's float32 error.

    If that is 0, half a unit in the last place of the largest value is the floor, as in the noise verdict.
    """
    floors = {**reference.floors.outputs, **reference.floors.gradients}
    scales = {**reference.outputs, **reference.gradients}
    half_unit = torch.finfo(torch.float32).eps / 2
    return {
        place: noise_verdict.distance(found[place], expected[place])
        / max(floors[place], half_unit * noise_verdict.max_abs(scales[place]))
        for place in found
        if place in floors
    }
