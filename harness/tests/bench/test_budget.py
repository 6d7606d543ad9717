"""The budget of a run: its seconds are shared among the comparisons, and what some do not need goes to others."""

import argparse

import pytest

from benchmarks.budget import MOST_SHARES, RESOLVE_SECONDS, Budget, effect_to_resolve


def test_a_budget_is_shared_by_weight_and_what_is_left_is_passed_on():
    budget = Budget(100, [1, 1, 2])
    assert budget.allot(1).seconds == pytest.approx(25)
    budget.spend(10)
    assert budget.allot(1).seconds == pytest.approx(30)
    budget.spend(100)
    assert budget.allot(2) == (0.0, 0.0)


def test_a_point_may_take_several_shares_and_never_more_than_half_of_what_is_left():
    assert Budget(100, [1] * 20).allot(1) == (5.0, MOST_SHARES * 5.0)
    assert Budget(100, [1] * 3).allot(1).most == pytest.approx(50)
    assert Budget(100, [1]).allot(1) == (100.0, 100.0)


def test_with_resolve_a_point_takes_what_it_needs_within_a_budget_that_was_given():
    assert Budget(100, [1] * 4, resolve=True).allot(1) == (25.0, RESOLVE_SECONDS)
    budget = Budget(100, [1] * 4, resolve=True, given=True)
    assert budget.allot(1).most == 100.0
    budget.spend(90)
    assert budget.allot(1).most == 10.0


@pytest.mark.parametrize(("text", "effect"), [("5%", 0.05), ("2.5", 0.025), (" 10 % ", 0.10), ("100%", 1.0)])
def test_an_effect_is_read_as_a_percentage(text, effect):
    assert effect_to_resolve(text) == pytest.approx(effect)


@pytest.mark.parametrize("text", ["2%", "0", "-5%", "nan", "inf", "101%", "5 percent", ""])
def test_an_effect_that_one_process_cannot_show_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="expected a percentage above 2%"):
        effect_to_resolve(text)
