"""What a sweep says: both of Chinchilla's fits for each source and each way to count N, as rows of a record file."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from typing import Any

import torch

from harness.oracle.scaling_law.intervals import Interval, frontier_intervals, law_intervals
from harness.oracle.scaling_law.iso_flop import COEFFICIENTS, Frontier, fit_frontier
from harness.oracle.scaling_law.law import NAMES, Law, compute
from harness.oracle.scaling_law.parametric_fit import Points, fit_law

COUNTS = {"all": "parameters", "non-embedding": "non_embedding"}  # the column of N, by how it counts
FEWEST_RUNS = len(NAMES) + 1
SAME_BUDGET = 1.05  # runs of a table without budgets share one if their 6·N·D are within this of its lowest
Rows = Sequence[Mapping[str, Any]]


def fit_rows(
    runs: Rows, *, entropies: Mapping[str, Mapping[str, float | None]] | None = None
) -> Iterator[dict[str, Any]]:
    """Yield the fits of every source: for each count of N a parametric one, and one of the iso-FLOP curves.

    `runs` are rows with source, budget, parameters, tokens and loss; those without a loss are left out. A count that
    not all runs have is left out too. `entropies` has what is known of a source.
    """
    by_source: dict[str, list[Mapping[str, Any]]] = {}
    for run in runs:
        if usable(run):
            by_source.setdefault(str(run["source"]), []).append(run)
    for source, own in by_source.items():
        for count, column in COUNTS.items():
            if all(run.get(column) for run in own):
                known = dict((entropies or {}).get(source, {}))
                yield {**_parametric(own, column), "source": source, "count": count, **known}
                yield {**_iso_flop(own, column), "source": source, "count": count}


def usable(run: Mapping[str, Any]) -> bool:
    """Return True if a run has a loss to fit."""
    loss = run.get("loss")
    return isinstance(loss, int | float) and math.isfinite(loss) and loss > 0


def _parametric(runs: Rows, column: str) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": "fit", "approach": "parametric", "runs": len(runs)}
    if len(runs) < FEWEST_RUNS:
        return {**row, "missing": f"{len(runs)} runs; a law of {len(NAMES)} constants needs at least {FEWEST_RUNS}"}
    N, D, L = (_column(runs, name) for name in (column, "tokens", "loss"))
    points = Points.of(N, D, L)
    law = fit_law(points)
    off = law.loss(N, D).log() - points.log_loss
    return {
        **row,
        "values": as_rows(law_intervals(points, law)),
        "scatter": float((off.square().sum() / (len(runs) - len(NAMES))).sqrt()),
        "seed_scatter": seed_scatter(runs),
        "widest_error": float(off.abs().max()),
    }


def _iso_flop(runs: Rows, column: str) -> dict[str, Any]:
    row: dict[str, Any] = {"kind": "fit", "approach": "iso-flop", "runs": len(runs)}
    C, N, L = budgets_of(runs), _column(runs, column), _column(runs, "loss")
    frontier = fit_frontier(C, N, L)
    if frontier is None:
        return {**row, "missing": f"two budgets of {COEFFICIENTS} or more sizes, whose parabolas open upwards"}
    outside = [parabola.flops for parabola in frontier.parabolas if not parabola.bracketed]
    return {
        **row,
        "values": as_rows(frontier_intervals(C, N, L, frontier)),
        "log_scale": frontier.log_scale,
        "parabolas": parabola_rows(frontier),
        "not_bracketed": outside,
    }


def parabola_rows(frontier: Frontier) -> list[dict[str, float]]:
    """Return the parabolas of a frontier as rows."""
    return [
        {
            "flops": one.flops, "parameters": one.parameters, "tokens": one.tokens, "lowest": one.lowest,
            "curvature": one.curvature, "low": one.low, "high": one.high,
        }
        for one in frontier.parabolas
    ]  # fmt: skip


def as_rows(values: Mapping[str, Interval]) -> dict[str, list[float]]:
    """Return each value with the ends of its interval, [value, low, high]."""
    return {name: [value.value, value.low, value.high] for name, value in values.items()}


def law_of(row: Mapping[str, Any]) -> Law:
    """Return the law of a parametric row."""
    return Law(**{name: float(row["values"][name][0]) for name in NAMES})


def budgets_of(runs: Rows) -> torch.Tensor:
    """Return the budget of each run, float64: the stated one, or the mean of the 6·N·D that are about equal."""
    if all(run.get("budget") for run in runs):
        return _column(runs, "budget")
    flops = [float(run.get("flops") or compute(run["parameters"], run["tokens"])) for run in runs]
    order = sorted(range(len(runs)), key=flops.__getitem__)
    groups: list[list[int]] = []
    for index in order:
        if groups and flops[index] <= SAME_BUDGET * flops[groups[-1][0]]:
            groups[-1].append(index)
        else:
            groups.append([index])
    found = torch.zeros(len(runs), dtype=torch.float64)
    for group in groups:
        found[group] = sum(flops[index] for index in group) / len(group)
    return found


def seed_scatter(runs: Rows) -> float | None:
    """Return the standard deviation of log L between seeds of the same cell, pooled; None without a second seed."""

    def cell(run: Mapping[str, Any]) -> tuple[float, float]:
        return float(run["parameters"]), float(run["tokens"])

    total, free = 0.0, 0
    for _, group in groupby(sorted(runs, key=cell), key=cell):
        logs = torch.tensor([math.log(run["loss"]) for run in group], dtype=torch.float64)
        total += float(((logs - logs.mean()) ** 2).sum())
        free += len(logs) - 1
    return math.sqrt(total / free) if free else None


def _column(runs: Rows, name: str) -> torch.Tensor:
    return torch.tensor([float(run[name]) for run in runs], dtype=torch.float64)
