"""Calls of a forward pass with one option, by the name that the subject gives it."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.core.devices import moved, moved_nest
from harness.core.errors import MissingAbility
from harness.subjects.forward_answer import unpack
from harness.subjects.forward_call import call
from harness.subjects.forward_style import call_forward, forward_parameters, style_of
from harness.subjects.model import Model
from harness.subjects.option_names import FORWARD_OPTIONS, own_name
from harness.subjects.protocols import Subject


def option_of(subject: Subject, model: Model, option: str) -> str:
    """Return the parameter of `forward` that sets an option of FORWARD_OPTIONS.

    Raises MissingAbility if there is none, or if the model is called by an adapter or for one sequence at a time.
    """
    parameters = forward_parameters(model.module)
    name = own_name(option, FORWARD_OPTIONS, parameters)
    if name is None:
        raise MissingAbility(f"forward of {subject.name} has no option '{option}' ({FORWARD_OPTIONS[option][0]}, ...)")
    if model.calling is not call or style_of(model.module).one_sequence:
        raise MissingAbility(f"forward of {subject.name} is not called with ids (B, T), so '{name}' is not judged")
    return name


def answer_with(model: Model, ids: Tensor, **options: Any) -> Any:
    """Return what the forward pass returns for ids (B, T) and options, without gradients."""
    with torch.no_grad(), model.precision():
        own = moved(ids, model.device)
        return call_forward(model.module, own, style_of(model.module), **moved_nest(options, model.device))


def logits_with(model: Model, ids: Tensor, **options: Any) -> Tensor:
    """Return the logits of ids (B, T) with options, as the model returns them: (B, T, V), or of the last positions."""
    return unpack(answer_with(model, ids, **options), ids)[0].to(ids.device)
