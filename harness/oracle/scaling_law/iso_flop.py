"""Chinchilla's approach 2: for each budget a parabola of the loss over log N, its minimum, and the slope of the minima.

Hoffmann et al. 2022, section 3.2. Each run ends its own schedule, so that every loss of a budget is a final one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.oracle.scaling_law.law import FLOPS_PER_WEIGHT

COEFFICIENTS = 3  # of a parabola, and the fewest sizes of a budget


@dataclass(frozen=True)
class Parabola:
    """The loss over x = log N at one budget, lowest + curvature·(x - middle)²; the runs had `low` to `high` in N."""

    flops: float
    middle: float
    lowest: float
    curvature: float
    low: float
    high: float

    @property
    def parameters(self) -> float:
        """N at the minimum."""
        return math.exp(self.middle)

    @property
    def tokens(self) -> float:
        """D at the minimum, C / 6N."""
        return self.flops / (FLOPS_PER_WEIGHT * self.parameters)

    @property
    def bracketed(self) -> bool:
        """True if it opens upwards, with its minimum between the smallest and the largest size that was run."""
        return self.curvature > 0 and self.low <= self.parameters <= self.high

    def loss(self, parameters: Tensor) -> Tensor:
        """Return the parabola at N."""
        return self.lowest + self.curvature * (parameters.double().log() - self.middle) ** 2


@dataclass(frozen=True)
class Frontier:
    """The minima of all budgets, and the power laws through them by least squares in logarithms."""

    parabolas: tuple[Parabola, ...]
    size_exponent: float  # a of N_opt ~ C^a
    log_scale: float  # log N_opt at C = 1
    loss_exponent: float  # γ of L_opt ~ C^-γ, with no constant E

    @property
    def data_exponent(self) -> float:
        """The exponent b of D_opt ~ C^b; C = 6·N·D makes it 1 - a."""
        return 1 - self.size_exponent

    def optimal_parameters(self, flops: float) -> float:
        """Return N_opt of the power law."""
        return math.exp(self.log_scale + self.size_exponent * math.log(flops))


def fit_frontier(flops: Tensor, parameters: Tensor, loss: Tensor) -> Frontier | None:
    """Return the frontier of runs (runs,), whose budgets are `flops`; None if there is none.

    That is so with fewer than two budgets of at least three sizes whose parabolas open upwards.
    """
    return frontier_of(fit_parabolas(flops, parameters, loss[None])[0])


def fit_frontiers(flops: Tensor, parameters: Tensor, losses: Tensor) -> list[Frontier]:
    """Return the frontiers of tables with the same runs and losses (tables, runs); those without one are left out."""
    found = (frontier_of(parabolas) for parabolas in fit_parabolas(flops, parameters, losses))
    return [frontier for frontier in found if frontier is not None]


def fit_parabolas(flops: Tensor, parameters: Tensor, losses: Tensor) -> list[list[Parabola]]:
    """Return for each table (tables, runs) the parabolas of its budgets, by least squares of the loss on log N."""
    found: list[list[Parabola]] = [[] for _ in losses]
    for budget in flops.unique().tolist():
        own = flops == budget
        sizes = parameters[own].double()
        if len(sizes.unique()) < COEFFICIENTS:
            continue
        x = sizes.log()
        centre = x.mean()
        columns = torch.stack([torch.ones_like(x), x - centre, (x - centre) ** 2], 1)
        coefficients = losses[:, own].double() @ torch.linalg.pinv(columns).T  # (tables, 3)
        for parabolas, (c0, c1, c2) in zip(found, coefficients.tolist(), strict=True):
            if c2 != 0:
                turn = -c1 / (2 * c2)
                ends = sizes.min().item(), sizes.max().item()
                parabolas.append(Parabola(budget, float(centre) + turn, c0 + c1 * turn / 2, c2, *ends))
    return found


def frontier_of(parabolas: Sequence[Parabola]) -> Frontier | None:
    """Return the power laws through the minima of the parabolas that open upwards; None with fewer than two."""
    opening = [parabola for parabola in parabolas if parabola.curvature > 0 and parabola.lowest > 0]
    if len(opening) < 2:
        return None
    log_flops = [math.log(parabola.flops) for parabola in opening]
    slope, intercept = line(log_flops, [parabola.middle for parabola in opening])
    falling, _ = line(log_flops, [math.log(parabola.lowest) for parabola in opening])
    return Frontier(tuple(opening), slope, intercept, -falling)


def line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return slope and intercept of the least-squares line of y on x."""
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    above = sum((one - middle_x) * (other - middle_y) for one, other in zip(x, y, strict=True))
    slope = above / sum((one - middle_x) ** 2 for one in x)
    return slope, middle_y - slope * middle_x
