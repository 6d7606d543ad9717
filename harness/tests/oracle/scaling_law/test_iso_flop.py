"""Iso-FLOP curves: exact on parabolas, and right on a law."""

import math

import pytest
import torch

from harness.oracle.scaling_law.iso_flop import fit_frontier, fit_frontiers, fit_parabolas
from harness.tests.oracle.scaling_law.sweeps_of_a_law import BUDGETS, LAW, sweep


def test_a_parabola_in_log_n_is_found_exactly_with_sizes_on_one_side_mostly():
    N = torch.exp(torch.tensor([7.0, 8.0, 9.5, 11.0, 11.2], dtype=torch.float64))
    C = torch.full((5,), 1e12, dtype=torch.float64)
    ((found,),) = fit_parabolas(C, N, (3.0 + 0.02 * (N.log() - 10.0) ** 2)[None])
    assert (found.middle, found.lowest, found.curvature) == pytest.approx((10.0, 3.0, 0.02), rel=1e-9)
    assert found.bracketed
    assert found.tokens == pytest.approx(1e12 / (6 * math.exp(10.0)))


def test_the_exponents_of_a_law_are_found_from_sizes_around_the_best():
    frontier = fit_frontier(*sweep(ratio=1.5))
    assert frontier.size_exponent == pytest.approx(LAW.size_exponent, abs=1e-3)
    assert frontier.data_exponent == pytest.approx(LAW.data_exponent, abs=1e-3)
    middle = BUDGETS[1]
    assert frontier.optimal_parameters(middle) == pytest.approx(LAW.optimal_parameters(middle), rel=0.02)


def test_a_minimum_beyond_the_sizes_is_said_to_be_beyond_them():
    N = torch.exp(torch.tensor([7.0, 8.0, 9.0], dtype=torch.float64))
    C = torch.full((3,), 1e12, dtype=torch.float64)
    ((found,),) = fit_parabolas(C, N, (3.0 + 0.02 * (N.log() - 10.0) ** 2)[None])
    assert found.middle == pytest.approx(10.0)
    assert not found.bracketed


def test_two_sizes_or_one_budget_or_a_hill_are_no_frontier():
    C, N, L = sweep()
    assert fit_frontier(C[:10], N[:10], L[:10]) is None
    two = torch.tensor([i for i in range(len(N)) if i % 10 < 4])
    assert fit_frontier(C[two], N[two], L[two]) is None
    assert fit_frontier(C, N, 10 - L) is None


def test_several_tables_have_the_frontiers_that_each_has_alone():
    C, N, L = sweep()
    _, _, other = sweep(noise=0.01, seed=1)
    both = fit_frontiers(C, N, torch.stack([L, other]))
    alone = [fit_frontier(C, N, L), fit_frontier(C, N, other)]
    assert [one.size_exponent for one in both] == pytest.approx([one.size_exponent for one in alone])
