"""The closed forms of a scaling law, against searches."""

import math

import pytest
import torch

from harness.oracle.scaling_law.law import BESIROGLU, HOFFMANN, Law, compute


@pytest.mark.parametrize("law", [HOFFMANN, BESIROGLU, Law(2.0, 50.0, 900.0, 0.3, 0.5)])
def test_the_best_size_is_where_a_search_along_the_budget_finds_the_lowest_loss(law):
    for budget in (1e18, 1e23):
        N = torch.exp(torch.linspace(math.log(1e5), math.log(1e14), 200_001, dtype=torch.float64))
        loss = law.loss(N, budget / (6 * N))
        found = float(N[loss.argmin()])
        assert law.optimal_parameters(budget) == pytest.approx(found, rel=2e-4)  # the step of the search is 1e-4
        assert law.optimal_loss(budget) == pytest.approx(float(loss.min()), rel=1e-9)
        assert compute(law.optimal_parameters(budget), law.optimal_tokens(budget)) == pytest.approx(budget)


def test_the_exponents_are_the_slopes_of_the_best_sizes_and_of_the_loss_above_e():
    law, low, high = BESIROGLU, 1e20, 1e21
    assert math.log10(law.optimal_parameters(high) / law.optimal_parameters(low)) == pytest.approx(law.size_exponent)
    assert math.log10(law.optimal_tokens(high) / law.optimal_tokens(low)) == pytest.approx(law.data_exponent)
    above = (law.optimal_loss(low) - law.E) / (law.optimal_loss(high) - law.E)
    assert math.log10(above) == pytest.approx(law.loss_exponent)


def test_chinchilla_s_published_law_gives_the_published_exponents_and_more_tokens_than_gopher_s():
    assert HOFFMANN.size_exponent == pytest.approx(0.4516, abs=1e-4)  # 0.46 in the paper's table 2
    gopher = compute(280e9, 300e9)
    assert HOFFMANN.optimal_parameters(gopher) < 70e9 < 280e9
