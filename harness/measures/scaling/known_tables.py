"""Tables of runs whose law is known, and how precisely a sweep of that size could know it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from harness.oracle.scaling_law.law import BESIROGLU, FLOPS_PER_WEIGHT, HOFFMANN, NAMES, Law
from harness.oracle.scaling_law.parametric_fit import DELTA, Centre, Points

LAWS: Mapping[str, Law] = {
    "hoffmann": HOFFMANN,
    "besiroglu": BESIROGLU,
    # Size and data differ much, so that what is mixed up shows; the loss falls from 4.6 to 2.6.
    "unequal": Law(E=2.5, A=3000.0, B=120.0, alpha=0.5, beta=0.21),
}
# By size: the decades of budgets (10^18 FLOPs and on), and the sizes of a budget, each twice the one before.
SHAPES: Mapping[str, tuple[int, int]] = {"debug": (5, 7), "sweep": (9, 9)}
NOISE = 0.01  # of the loss, in the sweep whose standard errors are the unit
SPREAD = 0.2  # of log L between replicates of a point, to either side
WITHIN = 0.9  # of Huber's δ, the largest residual of the balanced losses
BROKEN, BROKEN_BY = 11, 1.5  # the run that broke, and the factor of its loss


@dataclass(frozen=True)
class KnownTable:
    """Runs under a law: budgets, parameters, tokens and losses, float64 (runs,) each."""

    law: Law
    flops: Tensor
    parameters: Tensor
    tokens: Tensor
    loss: Tensor

    @cached_property
    def points(self) -> Points:
        """The runs as logarithms."""
        return Points.of(self.parameters, self.tokens, self.loss)

    @property
    def arrays(self) -> dict[str, np.ndarray]:
        """C, N, D and L for a subject's function, copies that it may write into."""
        columns = {"C": self.flops, "N": self.parameters, "D": self.tokens, "L": self.loss}
        return {name: column.numpy().copy() for name, column in columns.items()}

    def in_standard_errors(self, found: Mapping[str, float]) -> dict[str, float]:
        """Return how far each constant is from the law's, in standard errors of a sweep of these runs with 1% noise.

        A and B count by their logarithms, E relative to itself. A constant that has no logarithm is infinitely far.
        """
        errors = self._standard_errors
        away = {}
        for name in NAMES:
            truth, value = getattr(self.law, name), found[name]
            if name in ("E", "A", "B"):
                off = abs(np.log(value / truth)) if value > 0 and np.isfinite(value) else np.inf
            else:
                off = abs(value - truth) if np.isfinite(value) else np.inf
            away[name] = float(off) / errors[name]
        return away

    @cached_property
    def slopes(self) -> Tensor:
        """The derivative of each run's log L by (a, b, e, α, β), centred: (runs, 5)."""
        centre = Centre(self.points)
        slopes: Tensor = centre.residual(centre.theta(self.law)[None], self.points.log_loss[None])[1][0]
        return slopes

    @cached_property
    def _standard_errors(self) -> dict[str, float]:
        """The standard errors of log E, log A, log B, α and β by the information of independent runs: σ²(JᵀJ)⁻¹."""
        centre, slopes = Centre(self.points), self.slopes
        covariance = NOISE**2 * torch.linalg.inv(slopes.T @ slopes)  # of (a, b, e, α, β), centred
        # log A = a + α·mean(log N), and log B likewise.
        rows = {
            "E": (0, 0, 1, 0, 0), "A": (1, 0, 0, float(centre.means[0]), 0), "B": (0, 1, 0, 0, float(centre.means[1])),
            "alpha": (0, 0, 0, 1, 0), "beta": (0, 0, 0, 0, 1),
        }  # fmt: skip
        found = {}
        for name, row in rows.items():
            direction = torch.tensor(row, dtype=torch.float64)
            found[name] = float((direction @ covariance @ direction).sqrt())
        return found


def known_table(size: str, law: str, losses: str = "exact") -> KnownTable:
    """Return a table of LAWS and SHAPES, with losses that are changed as `losses` says, a key of LOSSES."""
    truth = LAWS[law]
    budgets, sizes = SHAPES[size]
    flops = torch.tensor([10.0 ** (18 + number) for number in range(budgets)], dtype=torch.float64).repeat_interleave(
        sizes
    )
    best = torch.tensor([truth.optimal_parameters(budget) for budget in flops.tolist()], dtype=torch.float64)
    # More sizes below the best one than above it: a mistake that is symmetric does not hide.
    parameters = best * 2.0 ** (torch.arange(sizes).repeat(budgets) - sizes // 2 - 1)
    tokens = flops / (FLOPS_PER_WEIGHT * parameters)
    return LOSSES[losses](KnownTable(truth, flops, parameters, tokens, truth.loss(parameters, tokens)))


def _three_of_each(table: KnownTable) -> KnownTable:
    """Return each run three times, its log loss lower, right and higher: a fit of log L is not moved by it."""
    off = torch.tensor([-SPREAD, 0.0, SPREAD], dtype=torch.float64).exp().repeat(len(table.loss))
    columns = (column.repeat_interleave(3) for column in (table.flops, table.parameters, table.tokens, table.loss))
    flops, parameters, tokens, loss = columns
    return KnownTable(table.law, flops, parameters, tokens, loss * off)


def _balanced(table: KnownTable) -> KnownTable:
    """Return losses off the law by less than Huber's δ, so that no fit of log L is moved, and one of L is.

    A fit of log L is at its minimum where the residuals r are orthogonal to its slopes S. One of L has the residuals
    L·r and the slopes L·S, so that it moves by (SᵀL²S)⁻¹SᵀL²r: here that is largest in α. Symmetric losses do not show
    a robust fit of L, since the run in the middle of each three decides.
    """
    S, squares = table.slopes, table.loss[:, None] ** 2
    towards = squares * S @ torch.linalg.inv(S.T @ (squares * S))[:, 3]  # (runs)
    off = towards - S @ torch.linalg.lstsq(S, towards[:, None]).solution[:, 0]
    off *= WITHIN * DELTA / off.abs().max()
    return KnownTable(table.law, table.flops, table.parameters, table.tokens, table.loss * off.exp())


def _one_broken(table: KnownTable) -> KnownTable:
    """Return the table with one run whose loss is half again as high."""
    loss = table.loss.clone()
    loss[BROKEN] *= BROKEN_BY
    return KnownTable(table.law, table.flops, table.parameters, table.tokens, loss)


LOSSES: Mapping[str, Callable[[KnownTable], KnownTable]] = {
    "exact": lambda table: table,
    "three of each": _three_of_each,
    "balanced": _balanced,
    "one broken": _one_broken,
}
