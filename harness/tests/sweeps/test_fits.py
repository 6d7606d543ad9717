"""What is fitted: which runs, and which of them share a budget."""

import math

import pytest

from harness.sweeps.fits import budgets_of, usable


def runs(*flops):
    return [{"parameters": 1e6, "tokens": each / 6e6} for each in flops]


def test_runs_whose_flops_are_about_equal_share_a_budget_in_any_order():
    assert budgets_of(runs(1.02e12, 5e12, 1e12, 5.1e12)).tolist() == pytest.approx([1.01e12, 5.05e12, 1.01e12, 5.05e12])


def test_a_chain_of_close_budgets_is_not_one():
    """Each was compared with the one before it, so that budgets from 1 to 2 were one of 1.5."""
    found = budgets_of(runs(*(1e12 * 1.04**number for number in range(18))))
    assert len(found.unique()) == 9
    assert float(found.max() / found.min()) > 1.8


def test_a_stated_budget_is_taken_as_it_is():
    assert budgets_of([{**run, "budget": 3.0} for run in runs(1e12, 5e12)]).tolist() == [3.0, 3.0]


@pytest.mark.parametrize(
    ("loss", "expected"), [(2.5, True), (3, True), (0.0, False), (-1.0, False), (None, False), ("2.5", False),
                           (math.nan, False), (math.inf, False)]
)  # fmt: skip
def test_a_loss_that_has_no_logarithm_is_not_fitted(loss, expected):
    assert usable({"loss": loss}) is expected


def test_a_run_without_a_loss_is_not_fitted():
    assert not usable({})
