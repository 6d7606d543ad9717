"""Intervals and verdicts, against published quantiles and against simulated noise whose truth is known."""

import math
import random

import pytest

from harness.statistics import (
    EQUIVALENCE,
    Ratio,
    describe_ratio,
    describe_seconds,
    judge,
    median,
    paired_ratio,
    spread,
    student_quantile,
    trimmed_mean,
)


@pytest.mark.parametrize(
    ("probability", "freedom", "published"),
    [
        (0.975, 1, 12.706),
        (0.975, 2, 4.303),
        (0.975, 7, 2.365),
        (0.975, 30, 2.042),
        (0.995, 7, 3.499),
        (0.8, 5, 0.920),
    ],
)
def test_students_quantiles_are_those_of_the_tables(probability, freedom, published):
    assert student_quantile(probability, freedom) == pytest.approx(published, abs=5e-4)


def test_trimming_nothing_gives_the_ordinary_mean_and_error():
    mean, error, freedom = trimmed_mean([1.0, 2.0, 3.0, 6.0])
    assert (mean, freedom) == (3.0, 3)
    assert error == pytest.approx(math.sqrt(14 / 3 / 4))


def test_the_trimmed_mean_and_its_error_are_yuens():
    # Two are cut at each end, leaving 3 to 8; winsorized 3 3 3 4 5 6 7 8 8 8 has squares 42.5, over h(h-1) = 30.
    mean, error, freedom = trimmed_mean([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000])
    assert (mean, freedom) == (5.5, 5)
    assert error == pytest.approx(math.sqrt(42.5 / 30))


def stream(dice, rounds, effect=1.0):
    """Two arms on a shared machine: slow drift, heavy-tailed noise, and bursts that double a time."""
    drift, a, b = 1.0, [], []
    for _ in range(rounds):
        drift *= math.exp(dice.gauss(0, 0.05))
        for arm, factor in ((a, 1.0), (b, effect)):
            burst = 2.0 if dice.random() < 0.05 else 1.0
            arm.append(drift * factor * burst * math.exp(abs(dice.gauss(0, 0.03))))
    return b, a


@pytest.mark.parametrize("rounds", [4, 5, 12, 48])
def test_identical_arms_are_called_different_in_at_most_one_run_of_fourteen(rounds):
    dice = random.Random(rounds)
    runs = [paired_ratio(*stream(dice, rounds)) for _ in range(1000)]
    assert sum(not run.low <= 1 <= run.high for run in runs) / 1000 <= 1 / 14
    assert sum(run.verdict in ("FASTER", "SLOWER") for run in runs) / 1000 <= 1 / 14


def test_a_real_slowdown_is_found_at_its_size():
    dice = random.Random(1)
    runs = [paired_ratio(*stream(dice, 48, effect=1.10)) for _ in range(200)]
    assert sum(run.verdict == "SLOWER" for run in runs) >= 190
    assert median([run.ratio for run in runs]) == pytest.approx(1.10, abs=0.01)


def test_the_smallest_resolvable_change_is_found_four_times_in_five():
    dice = random.Random(2)
    quiet = [paired_ratio(*stream(dice, 24)) for _ in range(200)]
    effect = 1 + median([run.smallest_resolvable for run in quiet])
    flagged = [paired_ratio(*stream(dice, 24, effect=effect)).low > 1 for _ in range(400)]
    assert 0.7 <= sum(flagged) / 400 <= 0.9


def test_one_burst_does_not_move_the_ratio():
    calm = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.0, 1.01, 0.99]
    burst = [*calm[:-1], 9.0]
    assert paired_ratio(burst, calm).ratio == pytest.approx(1, abs=0.01)


def test_noise_free_rounds_have_an_interval_of_no_width():
    ratio = paired_ratio([2.0] * 6, [1.0] * 6)
    assert (ratio.ratio, ratio.low, ratio.high, ratio.verdict) == (2.0, 2.0, 2.0, "SLOWER")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.80, 0.90, "FASTER"),
        (1.10, 1.20, "SLOWER"),
        (0.995, 1.005, "SAME"),
        (1.001, 1.010, "SAME"),  # resolved, and too small to matter: one process cannot vouch for it
        (0.90, 1.10, "UNRESOLVED"),
        (0.99, 1.05, "UNRESOLVED"),
        (1.01, 1.05, "SLOWER"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, verdict):
    assert judge(low, high) == verdict


def test_equivalence_is_the_same_both_ways():
    assert judge(1 / (1 + EQUIVALENCE), 1 + EQUIVALENCE) == "SAME"


def test_too_few_or_unpaired_rounds_are_an_error():
    with pytest.raises(ValueError, match="at least 4"):
        paired_ratio([1.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="round by round"):
        paired_ratio([1.0] * 5, [1.0] * 4)


def test_the_spread_ignores_bursts():
    assert spread([1.0, 1.1, 0.9, 1.0, 50.0]) == pytest.approx(1.4826 * 0.1)


@pytest.mark.parametrize(
    ("seconds", "told"),
    [
        ((1.4271, 0.0261), "1.427 ± 0.026 s"),
        ((0.04567, 0.0012), "45.7 ± 1.2 ms"),
        ((3.1e-5, 2e-6), "31.0 ± 2.0 µs"),
    ],
)
def test_seconds_are_told_with_their_spread(seconds, told):
    assert describe_seconds(*seconds) == told


@pytest.mark.parametrize(
    ("ratio", "told"),
    [
        (Ratio(1.31, 1.28, 1.34, 24, "SLOWER", 0.03), "1.31x slower [1.28, 1.34]"),
        (Ratio(0.5, 0.4, 0.625, 24, "FASTER", 0.03), "2.00x faster [1.60, 2.50]"),
        (Ratio(1.0, 0.995, 1.01, 24, "SAME", 0.01), "same within 1.0% [0.995, 1.010]"),
        (
            Ratio(1.0, 0.9, 1.1, 5, "UNRESOLVED", 0.15),
            "not resolved [0.90, 1.10] in 5 rounds, which would have shown a change of 15%",
        ),
    ],
)
def test_ratios_are_told_in_words(ratio, told):
    assert describe_ratio(ratio) == told
