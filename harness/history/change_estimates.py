"""The change of an arm between runs, estimated with its error: from several runs a side, or from one."""

from __future__ import annotations

import math
from collections.abc import Sequence

from harness.bench.statistics import (
    CONFIDENCE,
    POWER,
    Estimate,
    Ratio,
    interval_verdict,
    student_quantile,
    two_sided_p,
)
from harness.core.record_files import Row
from harness.history.benchmark_runs import BenchmarkRun, ceiling_seconds, common_ceilings, paired_log_ratio

# A run's place in memory and the order in which it builds its arms add 0.8% to a ratio, which the scatter of its rounds
# does not show. Measured on an A/A stream. This is the least that is assumed; only several runs a side replace it.
BETWEEN_RUNS = 0.008
MANY = 10_000  # degrees of freedom from which Student's t is the normal; its closed form would only sum longer


def run_to_run_estimate(before: Sequence[BenchmarkRun], after: Sequence[BenchmarkRun]) -> Estimate | None:
    """Return by how much two single runs differ besides the noise of their rounds; None if a side has several runs.

    The ceilings do the same work in every run and do not depend on the subject. A change of their ratios to one another
    comes from the machine, mostly from other work on it, and the change of an arm must exceed it. `centre` is the root
    mean square of those changes, with BETWEEN_RUNS of both runs added in squares. `freedom` depends on the number of
    comparisons that the changes were measured in.
    """
    if len(before) + len(after) > 2:
        return None
    pairs = {key._replace(arm=""): (result.comparison, after[0].arms[key].comparison)
             for key, result in before[0].arms.items() if key in after[0].arms}  # fmt: skip
    found = [changes for pair in pairs.values() if (changes := _ceiling_changes(*pair))]
    squares = [change**2 for changes in found for change in changes]
    least = 2 * BETWEEN_RUNS**2
    if not any(squares):
        return Estimate(math.sqrt(least), 0.0, MANY)
    seen = math.fsum(squares) / len(squares)
    freedom = len(found) * ((least + seen) / seen) ** 2
    return Estimate(math.sqrt(least + seen), 0.0, min(int(freedom), MANY))


def _ceiling_changes(before: Row, after: Row) -> list[float]:
    """Return the change, from one run to the other, of the log-ratio of each ceiling to the first of them."""
    first, *others = common_ceilings([before, after]) or [""]
    a, b = (
        {name: paired_log_ratio(ceiling_seconds(row)[name], ceiling_seconds(row)[first]) for name in others}
        for row in (before, after)
    )
    return [y.centre - x.centre for x, y in zip(a.values(), b.values(), strict=True) if x and y]


def change_of_several_runs(before: Sequence[Estimate], after: Sequence[Estimate]) -> Estimate:
    """Return the difference of the sides' means: Student's two-sample estimate, the variance pooled over runs.

    A side with a single run is assumed to have the variance of the other side. Runs that scatter less than the noise of
    their own rounds do so by chance: then that noise is the error.
    """
    sides = [[run.centre for run in side] for side in (before, after)]
    freedom = len(before) + len(after) - 2
    squares = math.fsum((centre - mean(side)) ** 2 for side in sides for centre in side)
    scatter = math.sqrt(squares / freedom * (1 / len(before) + 1 / len(after)))
    rounds = _added_in_squares([(run.error / len(side), run.freedom) for side in (before, after) for run in side])
    error, freedom = max((scatter, freedom), rounds)
    return Estimate(mean(sides[1]) - mean(sides[0]), error, freedom)


def change_of_two_runs(before: Estimate, after: Estimate, run_to_run: Estimate) -> Estimate:
    """Return the difference of two runs: errors added in squares, Welch-Satterthwaite degrees of freedom."""
    error, freedom = _added_in_squares(
        [(before.error, before.freedom), (after.error, after.freedom), (run_to_run.centre, run_to_run.freedom)]
    )
    return Estimate(after.centre - before.centre, error, freedom)


def _added_in_squares(errors: Sequence[tuple[float, int]]) -> tuple[float, int]:
    """Return the error of a sum, from the errors of its terms and their degrees of freedom."""
    variance = math.fsum(error**2 for error, _ in errors)
    if not variance:
        return 0.0, MANY
    freedom = variance**2 / math.fsum(error**4 / freedom for error, freedom in errors)
    return math.sqrt(variance), max(1, min(int(freedom), MANY))


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean."""
    return math.fsum(values) / len(values)


def ratio_of_change(estimate: Estimate, rounds: int) -> Ratio:
    """Return the estimate, a difference of logarithms, as a ratio with its interval and verdict."""
    centre, error, freedom = estimate
    reach = student_quantile((1 + CONFIDENCE) / 2, freedom)
    low, high = math.exp(centre - reach * error), math.exp(centre + reach * error)
    return Ratio(
        ratio=math.exp(centre),
        low=low,
        high=high,
        rounds=rounds,
        verdict=interval_verdict(low, high),
        smallest_resolvable=math.expm1((reach + student_quantile(POWER, freedom)) * error),
        p=two_sided_p(centre, error, freedom),
    )


def probability_at_factor(estimate: Estimate, factor: float) -> float:
    """Return the one-sided p of an estimate this high or higher if the true ratio is `factor`."""
    distance = estimate.centre - math.log(factor)
    p = two_sided_p(distance, estimate.error, estimate.freedom) / 2
    return p if distance > 0 else 1 - p
