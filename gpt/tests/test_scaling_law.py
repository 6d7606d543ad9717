"""The scaling law: closed forms against a search, fits against laws that are known."""

import math

import pytest
import torch

from gpt import ScalingLaw, fit_iso_flops, fit_scaling_law, optimal_sizes, read_runs, training_flops
from gpt.errors import ScalingError

CHINCHILLA = ScalingLaw(E=1.69, A=406.4, B=410.7, alpha=0.34, beta=0.28)  # Hoffmann et al. 2022, equation 10


def runs(law, *, around=2.0):
    cells = [(C, optimal_sizes(C, law)[0] * around**k) for C in (1e18, 1e19, 1e20, 1e21) for k in range(-3, 3)]
    C, N = torch.tensor(cells, dtype=torch.float64).T
    return C, N, C / (6 * N), law.loss(N, C / (6 * N))


@pytest.mark.parametrize("law", [CHINCHILLA, ScalingLaw(E=2.5, A=3000.0, B=120.0, alpha=0.5, beta=0.21)])
def test_the_fit_recovers_the_law_that_made_the_losses(law):
    _, N, D, L = runs(law)
    found = fit_scaling_law(N, D, L)
    for name in ("E", "A", "B", "alpha", "beta"):
        assert getattr(found, name) == pytest.approx(getattr(law, name), rel=1e-5)


def test_a_run_that_broke_moves_the_law_less_than_one_percent():
    _, N, D, L = runs(CHINCHILLA)
    L[7] *= 2
    assert pytest.approx(CHINCHILLA.E, rel=0.01) == fit_scaling_law(N, D, L).E


def test_the_best_sizes_are_those_of_a_search_along_the_budget():
    for C in (1e19, 5.76e23):
        N = torch.exp(torch.linspace(math.log(1e6), math.log(1e13), 100_001, dtype=torch.float64))
        best = float(N[CHINCHILLA.loss(N, C / (6 * N)).argmin()])
        found, tokens = optimal_sizes(C, CHINCHILLA)
        assert found == pytest.approx(best, rel=2e-4)
        assert training_flops(found, tokens) == pytest.approx(C)


def test_iso_flop_curves_have_the_exponent_of_the_law():
    C, N, _, L = runs(CHINCHILLA, around=1.3)
    assert fit_iso_flops(C, N, L) == pytest.approx(0.28 / 0.62, abs=1e-3)


def test_runs_in_progress_are_not_read(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("loss,parameters,tokens,horizon\n4.0,10,50,100\n3.5,10,100,100\n3.4,20,60,200\n")
    assert read_runs(path) == ([10.0], [100.0], [3.5])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda C, N, D, L: (N[:5], D[:5], L[:5]), "5, 5 and 5 values; expected at least 6"),
        (lambda C, N, D, L: (N, D[:-1], L), "expected at least 6 of each"),
        (lambda C, N, D, L: (N, D, L * math.nan), "L has the shape .* expected one row of positive, finite numbers"),
        (lambda C, N, D, L: (-N, D, L), "N has the shape"),
        (lambda C, N, D, L: (N, D, L.reshape(2, -1)), "L has the shape"),
    ],
)
def test_what_has_no_law_is_an_error(change, message):
    with pytest.raises(ScalingError, match=message):
        fit_scaling_law(*change(*runs(CHINCHILLA)))


def test_curves_without_a_minimum_have_no_exponent():
    C, N, _, L = runs(CHINCHILLA)
    with pytest.raises(ScalingError, match="0 budgets have a minimum"):
        fit_iso_flops(C, N, 10 - L)
