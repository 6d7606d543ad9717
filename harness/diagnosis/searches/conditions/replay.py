"""A model under a condition, as a model: each of its calls is made as the condition says."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import _disable_current_modes

from harness.measures.conditions.condition import Condition
from harness.measures.conditions.sweep import EVENTS, GRADIENTS, given_ids
from harness.subjects.dropout_calls import WithoutDropout
from harness.subjects.model import Model
from harness.subjects.protocols import Subject


def under_condition(
    subject: Subject,
    model: Model,
    condition: Condition,
    ids: Tensor,
    targets: Tensor,
    before: Sequence[Condition] = (),
) -> Model:
    """Return the model, each of whose calls happens under the condition.

    `ids` (R, T) and `targets` (R, T) are those of the sweep, which the events use; the calls in `before` are made once,
    now. What an event computes is not seen by the modes that record a call.
    """
    for each in before:
        with contextlib.suppress(Exception):  # it may be refused
            _call(subject, model, each, given_ids(ids, each), targets)

    def call(module: nn.Module, given: Tensor, wanted: Tensor | None) -> tuple[Tensor, Tensor | None]:
        return _call(subject, model, condition, _of_kind(given, condition), targets, ids, wanted)

    return dataclasses.replace(model, calling=call)


def _call(
    subject: Subject,
    model: Model,
    condition: Condition,
    given: Tensor,
    targets: Tensor,
    ids: Tensor | None = None,
    wanted: Tensor | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Return the logits and the loss of one call; its targets are `wanted`, or those of the sweep."""
    training = condition.mode == "train"
    with _disable_current_modes(), torch.enable_grad():
        EVENTS[condition.after](subject, model, given.long() if ids is None else ids)
    if condition.call == "targets" and wanted is None:
        wanted = targets[: given.shape[0], : given.shape[1]].contiguous()
    if model.module.training != training:  # a model may drop what it keeps when its mode is set
        model.module.train(training)
    # A gradient that is asked for is recorded, whatever the condition.
    entered = torch.enable_grad if torch.is_grad_enabled() else GRADIENTS[condition.gradients]
    with entered(), WithoutDropout() if training else contextlib.nullcontext():
        logits, loss = model.one_call(given, wanted)
        if logits.shape[:2] != given.shape:  # of the last position alone
            logits, _ = model.calling(model.module, given, None)
    if training:
        model.module.eval()
    return logits, loss


def _of_kind(ids: Tensor, condition: Condition) -> Tensor:
    return given_ids(ids, dataclasses.replace(condition, rows=ids.shape[0], length=ids.shape[1]))
