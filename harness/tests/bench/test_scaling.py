"""Exponents of costs, compared with laws of known exponent under noise of known size."""

import math
import random

import pytest

from harness.bench.scaling import Exponent, break_even, describe_exponent, expected_exponent, exponent, exponent_verdict

SIZES = (128, 256, 512, 1024)


def noisy(law, rng, *, noise, rounds=12, sizes=SIZES):
    return {x: [law(x) * math.exp(rng.gauss(0, noise)) for _ in range(rounds)] for x in sizes}


def test_a_power_law_has_its_exponent_without_uncertainty():
    found = exponent({x: [3.0 * x**2] for x in SIZES})
    assert (found.value, found.low, found.high) == pytest.approx((2, 2, 2))
    assert found.points == 4


@pytest.mark.parametrize("sizes", [SIZES, SIZES[:2]])
def test_the_interval_covers_the_exponent_in_nine_runs_of_ten(sizes):
    """Two sizes have only the noise of their rounds; more sizes have their scatter as well."""
    rng = random.Random(0)
    runs = [exponent(noisy(lambda x: x**1.5, rng, noise=0.05, sizes=sizes)) for _ in range(300)]
    assert sum(run.low <= 1.5 <= run.high for run in runs) / 300 >= 0.9
    assert sum(run.half_width for run in runs) / 300 < 0.1, "and is narrow enough to be of use"


def test_a_machine_that_was_slower_at_one_size_widens_the_interval():
    """Rounds of one size agree with each other, but the sizes do not lie on the law."""
    rng = random.Random(1)
    runs = []
    for _ in range(300):
        points = noisy(lambda x: x, rng, noise=0.005)
        points = {x: [value * slow for value in values] for x, values in points.items() for slow in [rng.gauss(1, 0.1)]}
        runs.append(exponent(points))
    assert sum(run.low <= 1 <= run.high for run in runs) / 300 >= 0.9


def test_a_curve_that_is_no_power_law_has_a_wide_interval():
    found = exponent({x: [x**2 + 500 * x] for x in SIZES})
    assert 1.2 < found.value < 1.8
    assert found.half_width > 0.1


def test_a_closed_form_is_fitted_at_the_same_sizes():
    def attention_bytes(T):
        return 4 * (2 * 12 * T**2 + 12 * T * 64)

    expected = expected_exponent({x: attention_bytes(x) for x in SIZES})
    found = exponent({x: [attention_bytes(x)] for x in SIZES})
    assert 1.9 < expected < 2
    assert found.value == pytest.approx(expected)
    assert exponent_verdict(found, expected) == "pass"
    assert exponent_verdict(found, 1.0) == "fail"


@pytest.mark.parametrize(
    ("low", "high", "expected", "verdict"),
    [
        (1.9, 2.1, 2.0, "pass"),
        (1.9, 2.1, 2.104, "pass"),  # exponents are printed with two digits
        (1.9, 2.1, 1.0, "fail"),
        (1.0, 3.0, 2.0, "unresolved"),
        (2.0, 3.0, 1.0, "fail"),  # wide, but it excludes the expected exponent
        (-math.inf, math.inf, 2.0, "unresolved"),
    ],
)
def test_the_verdict_on_an_exponent_follows_from_its_interval(low, high, expected, verdict):
    assert exponent_verdict(Exponent((low + high) / 2, low, high, 4), expected) == verdict


def test_two_exact_counts_fit_any_law():
    found = exponent({1: [1.0], 2: [4.0]})
    assert found.value == pytest.approx(2)
    assert exponent_verdict(found, 2.0) == "unresolved"
    assert describe_exponent(found) == "T^2.00 (from 2 sizes: no interval)"


def test_an_exponent_is_described_with_its_interval():
    assert describe_exponent(Exponent(1.98, 1.96, 2.0, 4)) == "T^1.98 [1.96, 2.00]"
    assert describe_exponent(Exponent(1.0, 0.9, 1.1, 4), axis="B") == "B^1.00 [0.90, 1.10]"


@pytest.mark.parametrize("points", [{}, {1: [1.0]}, {1: [1.0], 2: []}, {1: [1.0], 2: [0.0]}, {0: [1.0], 2: [1.0]}])
def test_points_without_an_exponent_are_an_error(points):
    with pytest.raises(ValueError, match="size"):
        exponent(points)


@pytest.mark.parametrize(
    ("paid", "eager", "compiled", "calls"),
    [(10, 1.0, 0.5, 20), (10, 1.0, 0.7, 34), (10, 1.0, 1.0, None), (10, 1, 2, None)],
)
def test_compiling_pays_off_after_the_calls_that_save_its_cost(paid, eager, compiled, calls):
    assert break_even(paid, eager, compiled) == calls
