"""Measures of how a program spends compute: the exponent of iso-FLOP curves, the best sizes, the FLOPs of training."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from harness.measures.scaling.known_tables import LAWS
from harness.measures.scaling.law_fits import LawName
from harness.oracle.scaling_law.iso_flop import line
from harness.oracle.scaling_law.law import FLOPS_PER_WEIGHT, compute
from harness.subjects.protocols import AllocatesCompute, CountsTrainingFlops, FitsIsoFlops
from harness.suites.measure_registry import Reading, measure

EXPONENT = 0.43  # of N_opt in the table of parabolas: far from 1/2, so that N and D are told apart
OFFSETS = (-2.0, -1.1, -0.4, 0.3, 0.9)  # of log N from the minimum: not symmetric, and none at the minimum itself
# The minimum lies elsewhere between the sizes of each budget, so that the lowest run is not at a power of the budget.
SHIFTS = (0.0, 0.25, -0.2, 0.3, 0.1)
LIKE = 1e-3  # of a value: a mistake is named if the subject's is as near to what it gives
BUDGETS = (1e19, 3e21, 1e24)


@measure
def iso_flop_exponent(subject: FitsIsoFlops, *, size: str) -> Reading:
    """Return how far the subject's exponent of N_opt is from that of a table whose iso-FLOP curves are parabolas.

    They are parabolas of the loss over log N, so that the method has no error of its own on them.
    """
    C, N, L = _parabolas()
    found = subject.fit_iso_flops(C, N, C / (FLOPS_PER_WEIGHT * N), L)
    hint = _named(found, _mistakes_of_parabolas(C, N, L))
    details = {"found": found, "exponent": EXPONENT, "line": subject.iso_flops_line, "hint": hint or f"{found:.4g}"}
    return Reading({"exponent": abs(found - EXPONENT)}, "", {**details, "answers": {"exponent": hint}})


@measure
def best_sizes(subject: AllocatesCompute, *, size: str, law: LawName) -> Reading:
    """Return how far the subject's N_opt (and D_opt) are from the minimum of the law along C = 6·N·D, as a fraction."""
    truth = LAWS[law]
    constants = {"E": truth.E, "A": truth.A, "B": truth.B, "alpha": truth.alpha, "beta": truth.beta}
    away: dict[str, float] = {}
    answers: dict[str, str] = {}
    for budget in BUDGETS:
        N, D = subject.allocate(budget, constants)
        place = f"N at {budget:g}"
        away[place] = abs(N / truth.optimal_parameters(budget) - 1)
        answers[place] = _named(N, _mistakes_of_sizes(budget, law))
        if D is not None:
            place = f"D at {budget:g}"
            away[place] = abs(D / truth.optimal_tokens(budget) - 1)
            answers[place] = _named(D, {"D is C/N, without the 6": budget / N})
    hint = next((answer for answer in answers.values() if answer), "")
    return Reading(away, "of the value", {"line": subject.allocation_line, "hint": hint, "answers": answers})


@measure
def training_flops_ratio(subject: CountsTrainingFlops, *, size: str) -> Reading:
    """Return the FLOPs that the subject counts for training, over 6·N·D."""
    N, D = 3.5e8, 7.7e9
    ratio = subject.training_flops(N, D) / compute(N, D)
    hint = _named(ratio, {"2·N·D: the forward pass alone": 1 / 3, "4·N·D: the backward pass alone": 2 / 3,
                          "8·N·D: with the forward pass computed again": 4 / 3})  # fmt: skip
    return Reading({"6ND": ratio}, "", {"line": subject.flops_line, "hint": hint, "answers": {"6ND": hint}})


def _parabolas() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Return C, N and L of exact parabolas in log N with minima at 0.1·C^EXPONENT."""
    rows = []
    for number, shift in enumerate(SHIFTS):
        C = 1e17 * 10**number
        best = np.log(0.1) + EXPONENT * np.log(C)
        for offset in OFFSETS:
            x = best + offset + shift
            rows.append((C, np.exp(x), 5.0 * C**-0.02 + 0.05 * (x - best) ** 2))
    C, N, L = np.asarray(rows, dtype=np.float64).T
    return C, N, L


def _mistakes_of_parabolas(C: np.ndarray, N: np.ndarray, L: np.ndarray) -> dict[str, float]:
    """Return what known mistakes give on the table, by words."""
    log_C, lowest, over_N = [], [], []
    for budget in np.unique(C):
        own = budget == C
        log_C.append(float(np.log(budget)))
        lowest.append(float(np.log(N[own][L[own].argmin()])))
        c2, c1, _ = np.polyfit(N[own] / N[own].mean(), L[own], 2)
        over_N.append(float(np.log(max(-c1 / (2 * c2), 1e-9) * N[own].mean())))
    minima = [float(np.log(0.1)) + EXPONENT * x for x in log_C]
    return {
        "1 - a: the exponent of the tokens": 1 - EXPONENT,
        "1/a: the line is that of log C over log N": line(minima, log_C)[0],
        "the run with the lowest loss, not the minimum of the parabola": line(log_C, lowest)[0],
        "the parabola is one in N, not in log N": line(log_C, over_N)[0],
    }


def _mistakes_of_sizes(budget: float, law: LawName) -> dict[str, float]:
    truth = LAWS[law]
    a, total = truth.size_exponent, truth.alpha + truth.beta
    G = (truth.alpha * truth.A / (truth.beta * truth.B)) ** (1 / total)
    return {
        "the exponent is that of the tokens, α/(α+β)": G * (budget / FLOPS_PER_WEIGHT) ** (1 - a),
        "the compute is taken for 2·N·D": G * (budget / 2) ** a,
        "the compute is taken for N·D": G * budget**a,
        "G is upside down": (budget / FLOPS_PER_WEIGHT) ** a / G,
        "G lacks α and β": (truth.A / truth.B) ** (1 / total) * (budget / FLOPS_PER_WEIGHT) ** a,
        "N and D are swapped": truth.optimal_tokens(budget),
    }


def _named(found: float, mistakes: Mapping[str, float]) -> str:
    """Return the words of the mistake that gives `found`; "" if none does."""
    return next((words for words, value in mistakes.items() if abs(found / value - 1) < LIKE), "")
