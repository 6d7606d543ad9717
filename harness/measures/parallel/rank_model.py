"""The models that are put on ranks: with the probe weights, or with numbered elements."""

from __future__ import annotations

from typing import Any

import torch

from harness.core.sizes import SIZES
from harness.oracle.probe_weights import state
from harness.subjects.build import build_with_weights
from harness.subjects.dropout_calls import has_dropout_setting
from harness.subjects.model import Model
from harness.subjects.protocols import Parallelizes


def build(subject: Parallelizes, size: str, dtype: str, **options: Any) -> Model:
    """Return the subject's model with the probe weights, without dropout if it has a setting for that."""
    if "dropout" not in options and has_dropout_setting(subject):
        options["dropout"] = 0.0
    return build_with_weights(subject, SIZES[size], state(size, "probe"), dtype, **options)


def numbered(model: Model) -> Model:
    """Number all elements of the model's parameters, from 1, in place: 0 is padding that a wrapper adds."""
    first = 1
    with torch.no_grad():
        for parameter in model.module.parameters():
            numbers = torch.arange(first, first + parameter.numel(), dtype=parameter.dtype)
            parameter.copy_(numbers.view_as(parameter))
            first += parameter.numel()
    return model
