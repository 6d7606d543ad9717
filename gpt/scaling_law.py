"""A scaling law L(N, D) = E + A/N^α + B/D^β: its fit to runs, and how it spends compute (Hoffmann et al. 2022).

N counts parameters, D training tokens; C = 6·N·D is the compute of training in FLOPs, L the loss in nats.
"""

import csv
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from gpt.errors import ScalingError

FLOPS_PER_WEIGHT = 6
"""Of training on one token: 2 in the forward pass, 4 in the backward pass (Kaplan et al. 2020)."""
HUBER_DELTA = 1e-3
"""Beyond it, in log L, a residual counts linearly: a run that broke does not move the law (appendix D.3)."""
STARTS = tuple(product((0.1, 0.2, 0.4, 0.7, 1.0), (0.1, 0.2, 0.4, 0.7, 1.0), (0.3, 0.6, 0.8, 0.95)))
"""(α, β, E as a share of the lowest loss) where the fit may start: the objective has several minima."""
FOLLOWED = 3
"""The starts, of those where the objective is lowest, from which it is minimised."""


@dataclass(frozen=True)
class ScalingLaw:
    """The constants of L(N, D) = E + A/N^α + B/D^β."""

    E: float
    """The loss that neither size nor data can remove: the entropy of the text."""
    A: float
    B: float
    alpha: float
    beta: float

    def loss(self, N: Tensor, D: Tensor) -> Tensor:
        """Return the loss in nats after training N parameters on D tokens, of the shape of both."""
        return self.E + self.A / N**self.alpha + self.B / D**self.beta


def training_flops(N: float, D: float) -> float:
    """Return the compute of training N parameters on D tokens, 6·N·D FLOPs."""
    return FLOPS_PER_WEIGHT * N * D


def optimal_sizes(C: float, law: ScalingLaw) -> tuple[float, float]:
    """Return (N, D) with the lowest loss among those with 6·N·D = C.

    Along 6·N·D = C the derivative of L by log N is 0 where αA/N^α = βB/D^β, so that N_opt = G·(C/6)^(β/(α+β)) with
    G = (αA/βB)^(1/(α+β)) (equation 4).
    """
    total = law.alpha + law.beta
    G = (law.alpha * law.A / (law.beta * law.B)) ** (1 / total)
    N = G * (C / FLOPS_PER_WEIGHT) ** (law.beta / total)
    return N, C / (FLOPS_PER_WEIGHT * N)


def fit_scaling_law(N: Sequence[float], D: Sequence[float], L: Sequence[float]) -> ScalingLaw:
    """Return the law that minimises the sum of Huber(log L(N, D) - log L) over runs ("approach 3").

    The sum, not the mean: divided by the number of runs, the objective falls below an optimizer's default tolerance
    long before the minimum (Besiroglu et al. 2024). Raises `ScalingError` for fewer than six runs, and for numbers that
    are not positive and finite.
    """
    x, y, z = (_logarithms(name, values) for name, values in (("N", N), ("D", D), ("L", L)))
    if not len(x) == len(y) == len(z) or len(x) < 6:
        raise ScalingError(f"N, D and L have {len(x)}, {len(y)} and {len(z)} values; expected at least 6 of each")
    x0, y0 = x.mean(), y.mean()  # without centring, A and α are nearly collinear

    def objective(theta: Tensor) -> Tensor:
        a, b, e, alpha, beta = theta
        predicted = torch.stack([a - alpha * (x - x0), b - beta * (y - y0), e.expand_as(x)]).logsumexp(0)
        return F.huber_loss(predicted, z, reduction="sum", delta=HUBER_DELTA)

    starts = sorted((_start(z, *start) for start in STARTS), key=lambda theta: float(objective(theta)))
    found = [_minimum(objective, start) for start in starts[:FOLLOWED]]
    a, b, e, alpha, beta = min(found, key=lambda theta: float(objective(theta).nan_to_num(nan=math.inf))).tolist()
    return ScalingLaw(math.exp(e), math.exp(a + alpha * x0), math.exp(b + beta * y0), alpha, beta)


def _start(log_loss: Tensor, alpha: float, beta: float, share: float) -> Tensor:
    """Return (a, b, e, α, β) at which E is a share of the lowest loss, and both terms are the same at the centre."""
    E = share * log_loss.min().exp()
    term = ((log_loss.median().exp() - E) / 2).log()
    return torch.stack([term, term, E.log(), *torch.tensor([alpha, beta], dtype=torch.float64)])


def _minimum(objective: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """Return the minimum of an objective that is nearest to a start, by L-BFGS."""
    theta = start.clone().requires_grad_()
    # Tolerances far below the objective, a sum of squares that may be 1e-9: the optimizer's defaults stop at the start.
    optimizer = torch.optim.LBFGS(
        [theta], max_iter=500, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = objective(theta)
        value.backward()  # type: ignore[no-untyped-call]  # untyped in torch
        return value.detach()

    optimizer.step(closure)  # type: ignore[no-untyped-call]  # torch's optimizers are annotated in part
    return theta.detach()


def fit_iso_flops(C: Sequence[float], N: Sequence[float], L: Sequence[float]) -> float:
    """Return the exponent a of N_opt ~ C^a from runs at several budgets ("approach 2").

    For each budget a parabola of L over log N has its minimum at N_opt, and a is the slope of log N_opt over log C, by
    least squares. Raises `ScalingError` unless two budgets have three sizes and a parabola that opens upwards.
    """
    log_C, log_N = _logarithms("C", C), _logarithms("N", N)
    losses = _logarithms("L", L).exp()
    minima = []
    for budget in torch.unique(log_C):
        x, loss = log_N[log_C == budget], losses[log_C == budget]
        if len(torch.unique(x)) < 3:
            continue
        _, slope, curvature = _polynomial(x - x.mean(), loss, 2)
        if curvature > 0:
            minima.append((float(budget), float(x.mean()) - slope / (2 * curvature)))
    if len(minima) < 2:
        raise ScalingError(
            f"{len(minima)} budgets have a minimum; expected at least 2, each with three sizes around it"
        )
    budgets, sizes = torch.tensor(minima, dtype=torch.float64).T
    return _polynomial(budgets - budgets.mean(), sizes, 1)[1]


def read_runs(path: Path) -> tuple[list[float], list[float], list[float]]:
    """Return N, D and L of the runs in a CSV table, each at the end of its own schedule.

    The columns are parameters, tokens, horizon (the tokens of the run's schedule) and loss. A row of a run in progress
    is left out: its learning rate has not come down yet, so that its loss is not the lowest for these tokens.
    """
    with path.open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if float(row["tokens"]) >= float(row["horizon"])]
    N, D, L = ([float(row[column]) for row in rows] for column in ("parameters", "tokens", "loss"))
    return N, D, L


def _polynomial(x: Tensor, y: Tensor, degree: int) -> list[float]:
    """Return the coefficients of the least-squares polynomial, of x^0 first."""
    powers = torch.stack([x**power for power in range(degree + 1)], 1)
    found: list[float] = torch.linalg.lstsq(powers, y[:, None]).solution[:, 0].tolist()
    return found


def _logarithms(name: str, values: Sequence[float]) -> Tensor:
    """Return the logarithms, (runs) of float64. Raises `ScalingError` for a value that has none."""
    found = torch.as_tensor(values, dtype=torch.float64)
    if found.ndim != 1 or not bool(((found > 0) & found.isfinite()).all()):
        raise ScalingError(f"{name} has the shape {tuple(found.shape)}; expected one row of positive, finite numbers")
    return found.log()
