"""Intervals cover the truth as often as they say, by simulation."""

import dataclasses
import math
import statistics

import pytest
import torch

from harness.oracle.scaling_law.intervals import (
    frontier_intervals,
    law_intervals,
    scatter,
    student_ratio,
)
from harness.oracle.scaling_law.iso_flop import fit_frontier
from harness.oracle.scaling_law.parametric_fit import fit_law
from harness.tests.oracle.scaling_law.sweeps_of_a_law import LAW, points, sweep

SIMULATIONS = 24
# Of 24 intervals of 95% that are right, 19 or fewer cover the truth with a probability of 0.6%; of intervals that are
# half as wide (67%), 20 or more do with 6%. The seeds are fixed, so the test always says the same.
FEWEST = 20


def test_intervals_of_95_percent_cover_the_truth_that_often_and_are_as_wide_as_the_fits_scatter():
    truth = {**dataclasses.asdict(LAW), "size_exponent": LAW.size_exponent}
    truth["minima"] = fit_frontier(*sweep()).size_exponent
    found = {name: [] for name in ("E", "alpha", "beta", "size_exponent", "minima")}
    for seed in range(SIMULATIONS):
        C, N, L = sweep(noise=0.003, seed=100 + seed)
        table = points(C, N, L)
        of_law = law_intervals(table, fit_law(table), resamples=60, seed=seed)
        minima = frontier_intervals(C, N, L, fit_frontier(C, N, L), resamples=60, seed=seed)
        for name, intervals in found.items():
            intervals.append(minima["size_exponent"] if name == "minima" else of_law[name])
    covered = {name: sum(one.covers(truth[name]) for one in intervals) for name, intervals in found.items()}
    assert {name: count for name, count in covered.items() if count < FEWEST} == {}, covered
    for name in ("size_exponent", "minima"):
        sd = statistics.stdev(one.value for one in found[name])
        half = statistics.fmean((one.high - one.low) / 2 for one in found[name])
        assert 0.7 < half / (1.96 * sd) < 1.5  # the standard deviation of 24 values is known to 15%


def test_the_scatter_is_the_noise_of_the_runs_and_wider_with_few_degrees_of_freedom():
    residuals = 0.01 * torch.randn(4000, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert scatter(residuals, 5) == pytest.approx(0.01, rel=0.05)
    assert scatter(torch.tensor([1.0, -1.0, 1.0, -1.0]), 0) == pytest.approx(1.0 * student_ratio(4))
    assert math.isnan(scatter(torch.ones(5), 5))


@pytest.mark.parametrize(("free", "t"), [(5, 2.571), (10, 2.228), (25, 2.060), (100, 1.984)])
def test_student_s_t_is_that_of_the_tables(free, t):
    assert student_ratio(free) * 1.959964 == pytest.approx(t, rel=0.005)


def test_a_sweep_with_no_run_to_spare_has_no_interval():
    C, N, L = sweep(seeds=1)
    few = torch.tensor([0, 1, 2, 5, 6, 7])
    frontier = fit_frontier(C[few], N[few], L[few])
    found = frontier_intervals(C[few], N[few], L[few], frontier, resamples=10)
    assert math.isnan(found["size_exponent"].low)
    assert dataclasses.astuple(found["size_exponent"])[0] == frontier.size_exponent
