"""Measures of a program's parametric fit ("approach 3"): does it find the law that made the runs?"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from harness.measures.scaling.known_tables import KnownTable, known_table
from harness.oracle.scaling_law.law import NAMES, Law
from harness.oracle.scaling_law.parametric_fit import DELTA, Centre, objective
from harness.subjects.protocols import FitsScalingLaw
from harness.suites.measure_registry import Reading, measure

LawName = Literal["hoffmann", "besiroglu", "unequal"]
Losses = Literal["exact", "three of each", "balanced", "one broken"]
LIKE = 0.1  # standard errors: a mistake is named if the subject's constants are as near to what it gives
RIGHT = 0.02  # below this nothing is looked for
SQUARES = 1e9  # a δ beyond which no residual is: Huber's loss is then half the squares
Predicted = Callable[[KnownTable, Law], Law]


@measure
def law_found(subject: FitsScalingLaw, *, size: str, law: LawName, losses: Losses = "exact") -> Reading:
    """Return how far the subject's constants are from those that made the runs, in standard errors.

    The unit is the standard error of each constant in a sweep of the same runs whose losses had 1% noise. `losses`:
    exact; each three times, symmetric in log L; off by less than Huber's δ, orthogonal to the slopes of log L; or with
    one run that broke. The details say which known mistake gives
    the constants that the subject found.
    """
    table = known_table(size, law, losses)
    columns = table.arrays
    found = subject.fit_law(columns["N"], columns["D"], columns["L"])
    away = table.in_standard_errors(found)
    hint = _mistake(table, found, exact=losses == "exact") if max(away.values()) > RIGHT else ""
    said = ", ".join(f"{name} {found[name]:.4g}" for name in NAMES)
    details = {"found": said, "law": str(table.law), "line": subject.fit_line}
    # A rule reads the answers of failed places, so each place has what explains it.
    return Reading(
        away, "standard errors", {**details, "hint": hint or said, "answers": dict.fromkeys(away, hint or said)}
    )


def _mistake(table: KnownTable, found: Mapping[str, float], *, exact: bool) -> str:
    """Return the known mistake that gives these constants on this table; else how far the fit is from its minimum."""
    if abs(found["E"]) < 1e-3 * float(table.loss.min()):
        return "E is 0: the loss is fitted as if it fell to nothing"
    for words, predicted in MISTAKES.items():
        if _alike(table, predicted(table, table.law), found):
            return words
    if any(not math.isfinite(found[name]) or (found[name] <= 0 and name in ("E", "A", "B")) for name in NAMES):
        return "a constant is not a positive number"
    if all(found[name] == float(f"{found[name]:.2g}") for name in ("alpha", "beta")):
        return "the exponents are rounded to two digits"
    off = [name for name, away in table.in_standard_errors(found).items() if away > RIGHT]
    if len(off) < len(NAMES):  # an optimizer that stops early leaves none where it is at the minimum
        ratios = " and ".join(f"{name}, which is {found[name] / getattr(table.law, name):.4g} times it" for name in off)
        return f"the other constants are those of the law, and not {ratios}"
    there, lowest = objective(table.points, Law(**found)), objective(table.points, _robust(table))
    if exact and there > lowest * (1 + 1e-6) + 1e-15:
        return f"the optimizer stopped early: the objective is {there:.2g} there and {lowest:.2g} at its minimum"
    return ""


def _alike(table: KnownTable, predicted: Law, found: Mapping[str, float]) -> bool:
    """Return True if the subject's constants are those of a mistake, and not as well those of the law."""
    constants = {name: getattr(predicted, name) for name in NAMES}
    apart = max(table.in_standard_errors(constants).values())
    if apart <= RIGHT:
        return False
    made = KnownTable(predicted, table.flops, table.parameters, table.tokens, table.loss)
    return max(made.in_standard_errors(found).values()) <= min(LIKE, apart / 3)


def _fit_of(of: Callable[[Tensor], Tensor], *, delta: float = SQUARES) -> Predicted:
    """Return what a fit of `of`(log L) gives, by Huber's loss: by least squares, unless a `delta` is given."""

    def fit(table: KnownTable, law: Law) -> Law:
        centre = Centre(table.points)
        theta = centre.theta(law).requires_grad_()
        optimizer = torch.optim.LBFGS(
            [theta], max_iter=300, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe"
        )

        def closure() -> Tensor:
            optimizer.zero_grad()
            predicted = centre.residual(theta[None], table.points.log_loss[None])[0][0] + table.points.log_loss
            value = F.huber_loss(of(predicted), of(table.points.log_loss), reduction="sum", delta=delta)
            value.backward()
            return value.detach()

        optimizer.step(closure)
        return centre.law(theta.detach())

    return fit


def _robust(table: KnownTable) -> Law:
    """Return the law of the runs: no noise of these tables moves Huber's fit of log L by a standard error."""
    return table.law


def _in_base_ten(table: KnownTable, law: Law) -> Law:
    """Return e^(log10 x) for each constant x: a fit in base 10 whose constants are taken for natural logarithms."""
    E, A, B = (math.exp(math.log10(value)) for value in (law.E, law.A, law.B))
    return Law(E, A, B, law.alpha, law.beta)


MISTAKES: Mapping[str, Predicted] = {
    "α and β are swapped": lambda table, law: Law(law.E, law.A, law.B, law.beta, law.alpha),
    "A and α are those of the data, B and β those of the size": lambda table, law: Law(
        law.E, law.B, law.A, law.beta, law.alpha
    ),
    "the constants are powers of ten taken for powers of e": _in_base_ten,
    "the residuals are those of the loss, not of its logarithm": _fit_of(torch.exp),
    "the residuals are those of the loss, not of its logarithm, with Huber's loss": _fit_of(torch.exp, delta=DELTA),
    "the residuals are squared, without Huber's loss: one broken run moves the law": _fit_of(lambda log: log),
}
