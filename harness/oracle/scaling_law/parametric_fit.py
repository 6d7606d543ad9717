"""Chinchilla's approach 3: E, A, B, α, β by a Huber loss of log L, for many tables of runs at once.

Minimised is the sum over runs of Huber_δ(log L(N, D) - log L), δ = 1e-3 (Hoffmann et al. 2022, appendix D.3). The
published fit took the mean of the terms, and its optimizer stopped early (Besiroglu et al. 2024, arXiv 2404.10102).
Here it is minimised by a damped Gauss-Newton method with reweighting, from a grid of starts, all in one batch:
a bootstrap and its coverage need thousands of fits. A test compares it with torch's L-BFGS.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import torch
from torch import Tensor

from harness.oracle.scaling_law.law import Law

DELTA = 1e-3  # Hoffmann et al. 2022, appendix D.3
SCREENING, ITERATIONS = 40, 400
SETTLED = 1e-13  # relative decrease of the objective, below which a fit is done
BEST_STARTS = 4  # that are followed to the end
ROWS_AT_ONCE = 4096
NEXT_TO_NOTHING = 0.02
# The grid: both exponents, and E as a share of the lowest loss.
EXPONENTS, SHARES = (0.1, 0.3, 0.6, 1.0, 1.6), (0.3, 0.7, 0.9, 0.98)


@dataclass(frozen=True)
class Points:
    """Runs as logarithms, float64 (runs,) each; `logarithm_of_loss` may be (tables, runs)."""

    log_parameters: Tensor
    log_tokens: Tensor
    log_loss: Tensor

    @classmethod
    def of(cls, parameters: Tensor, tokens: Tensor, loss: Tensor) -> Points:
        """Take the logarithms."""
        return cls(parameters.double().log(), tokens.double().log(), loss.double().log())


def fit_law(points: Points) -> Law:
    """Return the law of one table of runs."""
    return fit_laws(points)[0]


def fit_laws(points: Points, *, near: Law | None = None) -> list[Law]:
    """Return a law for each row of `log_loss` (tables, runs).

    With `near` the search starts from that law and a few starts of the grid, as for the resamples of a bootstrap.
    """
    losses = points.log_loss.reshape(-1, points.log_loss.shape[-1])
    centre = Centre(points)
    found = [_fit(centre, some, near) for some in losses.split(ROWS_AT_ONCE // 8)]
    return [centre.law(row) for row in torch.cat(found)]


def objective(points: Points, law: Law, *, delta: float = DELTA) -> float:
    """Return the sum of the Huber losses of a law."""
    centre = Centre(points)
    theta = centre.theta(law)[None]
    return float(_objective(centre.residual(theta, points.log_loss[None])[0], delta))


class Centre:
    """The law in centred logarithms: θ = (a, b, e, α, β), with a = log A - α·mean(log N) and b likewise.

    A and α are nearly collinear without this, as are B and β.
    """

    def __init__(self, points: Points) -> None:
        self.means = points.log_parameters.mean(), points.log_tokens.mean()
        self.x = points.log_parameters - self.means[0]
        self.y = points.log_tokens - self.means[1]

    def theta(self, law: Law) -> Tensor:
        """Return θ (5,) of a law."""
        logs = torch.tensor([law.A, law.B, law.E], dtype=torch.float64).log()
        a, b, e = logs[0] - law.alpha * self.means[0], logs[1] - law.beta * self.means[1], logs[2]
        return torch.stack([a, b, e, *torch.tensor([law.alpha, law.beta]).double()])

    def law(self, theta: Tensor) -> Law:
        """Return the law of θ (5,)."""
        a, b, e, alpha, beta = theta
        A, B = (a + alpha * self.means[0]).exp(), (b + beta * self.means[1]).exp()
        return Law(*(float(value) for value in (e.exp(), A, B, alpha, beta)))

    def residual(self, theta: Tensor, log_loss: Tensor) -> tuple[Tensor, Tensor]:
        """Return log L(N, D) - log L (K, runs), and its derivative by θ (K, runs, 5)."""
        a, b, e, alpha, beta = (column[:, None] for column in theta.unbind(-1))
        terms = torch.stack([a - alpha * self.x, b - beta * self.y, e.expand(-1, len(self.x))])  # (3, K, runs)
        p, q, r = terms.softmax(0)  # the share of each term in the loss
        slopes = torch.stack([p, q, r, -p * self.x, -q * self.y], -1)
        return terms.logsumexp(0) - log_loss, slopes


def starts(centre: Centre, log_loss: Tensor) -> Tensor:
    """Return the grid of starts (starts, 5) for one table of losses (runs,)."""
    lowest, middle = log_loss.min().exp(), log_loss.median().exp()
    rows = []
    for alpha, beta, share in product(EXPONENTS, EXPONENTS, SHARES):
        term = ((middle - share * lowest).clamp(min=1e-3) / 2).log()
        rows.append([float(term), float(term), float((share * lowest).log()), alpha, beta])
    return torch.tensor(rows, dtype=torch.float64)


def _fit(centre: Centre, losses: Tensor, near: Law | None) -> Tensor:
    """Return θ (K, 5) of K tables: from the grid, screened on the mean table, the best starts for each."""
    grid = starts(centre, losses.median(0).values)
    one = losses.median(0).values.expand(len(grid), -1)
    screened, values = _minimise(centre, grid, one, SCREENING)
    best = screened[values.argsort()[:BEST_STARTS]]
    if near is not None:
        best = torch.cat([centre.theta(near)[None], best[:1]])
    K, S = len(losses), len(best)
    theta = best.repeat(K, 1)  # the starts of the first table, then of the second ...
    theta, values = _minimise(centre, theta, losses.repeat_interleave(S, 0), ITERATIONS)
    chosen = values.view(K, S).argmin(1)
    return theta.view(K, S, 5)[torch.arange(K), chosen]


def _minimise(centre: Centre, theta: Tensor, losses: Tensor, iterations: int) -> tuple[Tensor, Tensor]:
    """Return θ (K, 5) at the minima near `theta`, and the objective there (K,)."""
    damping = torch.full((len(theta), 1, 1), 1e-3, dtype=torch.float64)
    residual, slopes = centre.residual(theta, losses)
    value = _objective(residual, DELTA)
    for number in range(iterations):
        # By turns two curvatures of Huber's loss. Its majorizer, in which a residual r beyond δ weighs δ/|r|, descends
        # from anywhere, and slowly; its own, in which it weighs next to nothing, is fast near the minimum.
        beyond = DELTA / residual.abs().clamp(min=DELTA)
        curved = beyond if number % 2 == 0 else torch.where(beyond < 1, NEXT_TO_NOTHING * beyond, beyond)
        gradient = torch.einsum("kn,kni->ki", residual.clamp(-DELTA, DELTA), slopes)
        hessian = torch.einsum("kn,kni,knj->kij", curved, slopes, slopes)
        scale = torch.diag_embed(hessian.diagonal(dim1=1, dim2=2) + 1e-9)
        step = torch.linalg.solve(hessian + damping * scale, gradient[..., None])[..., 0]
        tried = theta - step.clamp(-1, 1)
        tried_residual, tried_slopes = centre.residual(tried, losses)
        tried_value = _objective(tried_residual, DELTA)
        better = tried_value <= value
        done = bool(((value - tried_value).abs() <= SETTLED * value + 1e-300).all())
        theta = torch.where(better[:, None], tried, theta)
        residual = torch.where(better[:, None], tried_residual, residual)
        slopes = torch.where(better[:, None, None], tried_slopes, slopes)
        value = torch.where(better, tried_value, value)
        damping = torch.where(better[:, None, None], damping / 3, damping * 4).clamp(1e-12, 1e8)
        if done:
            break
    return theta, value


def _objective(residual: Tensor, delta: float) -> Tensor:
    """Return the sum of Huber losses (K,) of residuals (K, runs)."""
    size = residual.abs()
    return torch.where(size <= delta, size**2 / 2, delta * (size - delta / 2)).sum(-1)
