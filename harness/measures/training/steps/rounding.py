"""Rounding: the units in which the distance of a number from a formula is measured."""

from __future__ import annotations

import torch
from torch import Tensor

# The largest distance of an update from its rule, as a multiple of the rounding: the bound of the check in
# verifications/training.toml, where the measured values are.
ROUNDING = 6.0


def unit_in_last_place(value: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the distance between neighbouring numbers of a type at each value, float64."""
    info = torch.finfo(dtype)
    exponent = torch.frexp(value.double()).exponent - 1
    smallest = torch.frexp(torch.tensor(info.tiny, dtype=torch.float64)).exponent - 1
    return info.eps * 2.0 ** exponent.clamp(min=int(smallest)).double()


def rms(values: Tensor) -> float:
    """Return the root mean square."""
    return float(values.square().mean().sqrt())
