"""The chi-squared distribution, by which counts are judged."""

from __future__ import annotations

import torch


def chi_squared_tail(value: float, freedom: int) -> float:
    """Return P(X >= value) of the chi-squared distribution: the regularised upper incomplete gamma function."""
    return float(torch.special.gammaincc(torch.tensor(freedom / 2.0).double(), torch.tensor(value / 2.0).double()))
