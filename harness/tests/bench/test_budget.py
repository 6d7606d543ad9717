"""The budget of a run: its seconds are shared among the comparisons."""

import pytest

from benchmarks.budget import Budget


def test_a_budget_is_shared_by_weight_and_what_is_left_is_passed_on():
    budget = Budget(100, [1, 1, 2])
    assert budget.allot(1) == pytest.approx(25)
    budget.spend(10)
    assert budget.allot(1) == pytest.approx(30)
    budget.spend(100)
    assert budget.allot(2) == 0.0
