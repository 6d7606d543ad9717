"""Variants of the initialisation of residual projections, by their standard deviation."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

STD = 0.02  # of GPT-2's other matrices


@dataclass(frozen=True)
class ResidualScale:
    """One way to scale residual projections: the fault's id, the end of a sentence, and the standard deviation.

    `std` is a function of the number of layers; GPT-2's is 0.02/sqrt(2L). `alike`: faults that have the same effect.
    """

    fault: str
    says: str
    std: Callable[[int], float]
    alike: tuple[str, ...] = ()


RESIDUAL_SCALES = (
    ResidualScale("init-residual-scale-missing", "are not scaled by 1/sqrt(2L)", lambda layers: STD,
                  alike=("init-residual-scale-name-mismatch", "init-repeated")),
    ResidualScale("init-residual-scale-by-layers", "are scaled by 1/sqrt(L), not by 1/sqrt(2L)",
                  lambda layers: STD / math.sqrt(layers)),
    ResidualScale("init-residual-scale-by-layers", "are scaled by 1/(2L), not by its square root",
                  lambda layers: STD / (2 * layers)),
    ResidualScale("init-residual-zero", "start at zero", lambda layers: 0.0),
)  # fmt: skip
