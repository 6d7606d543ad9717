"""Intervals and verdicts, compared with published quantiles and with simulated noise of known true ratios."""

import itertools
import math
import random

import pytest

from harness.bench.statistics import (
    EQUIVALENCE,
    PLACED,
    QUIET,
    Ratio,
    deciding_half_width,
    describe_ratio,
    describe_seconds,
    holm,
    interval_verdict,
    log_ratio,
    median,
    p_value,
    paired_ratio,
    quiet_rounds,
    scatter,
    spread,
    student_quantile,
    trimmed_mean,
    two_sided_p,
    warmed_up,
    wilson_interval,
)
from harness.tests.bench.noise_streams import STREAMS, quiet


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


@pytest.mark.parametrize(("t", "freedom", "published"), [(12.706, 1, 0.05), (2.365, 7, 0.05), (2.750, 30, 0.01)])
def test_p_values_are_those_of_the_tables(t, freedom, published):
    assert two_sided_p(t, 1.0, freedom) == two_sided_p(-2 * t, 2.0, freedom) == pytest.approx(published, rel=1e-3)


def test_without_noise_p_is_all_or_nothing():
    assert two_sided_p(0.0, 0.0, 5) == 1
    assert two_sided_p(0.1, 0.0, 5) == 0


def test_holms_adjusted_values_are_those_of_the_worked_example():
    # By hand: 4 x 0.005, 3 x 0.01, then 2 x 0.03, and 0.04 is raised to the 0.06 before it.
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.5, 0.9]) == [1.0, 1.0]
    assert holm([]) == []


def test_holm_limits_a_family_of_true_nulls_to_one_false_alarm_in_twenty():
    # Three standard errors of 2000 families at 5% are 1.5%.
    rng = random.Random(0)
    families = [holm([rng.random() for _ in range(20)]) for _ in range(2000)]
    assert sum(min(family) <= 0.05 for family in families) / 2000 == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize(
    ("found", "trials", "low", "high"), [(0, 20, 0.0, 0.161), (1, 20, 0.009, 0.236), (20, 20, 0.839, 1.0)]
)
def test_the_interval_of_a_share_is_wilsons(found, trials, low, high):
    assert wilson_interval(found, trials) == pytest.approx((low, high), abs=5e-4)


def test_trimming_nothing_gives_the_ordinary_mean_and_error():
    mean, error, freedom = trimmed_mean([1.0, 2.0, 3.0, 6.0])
    assert (mean, freedom) == (3.0, 3)
    assert error == pytest.approx(math.sqrt(14 / 3 / 4))


def test_the_trimmed_mean_and_its_error_are_yuens():
    # Two are cut at each end, leaving 3 to 8; winsorized 3 3 3 4 5 6 7 8 8 8 has squares 42.5, over h(h-1) = 30.
    mean, error, freedom = trimmed_mean([1, 2, 3, 4, 5, 6, 7, 8, 9, 1000])
    assert (mean, freedom) == (5.5, 5)
    assert error == pytest.approx(math.sqrt(42.5 / 30))


def stream(rng, rounds, effect=1.0):
    """Return the times of two arms on a shared machine: slow drift, heavy-tailed noise, bursts that double a time."""
    drift, a, b = 1.0, [], []
    for _ in range(rounds):
        drift *= math.exp(rng.gauss(0, 0.05))
        for arm, factor in ((a, 1.0), (b, effect)):
            burst = 2.0 if rng.random() < 0.05 else 1.0
            arm.append(drift * factor * burst * math.exp(abs(rng.gauss(0, 0.03))))
    return b, a


@pytest.mark.parametrize("rounds", [4, 5, 12, 48])
def test_identical_arms_are_called_different_in_at_most_one_run_of_fourteen(rounds):
    rng = random.Random(rounds)
    runs = [paired_ratio(*stream(rng, rounds)) for _ in range(1000)]
    assert sum(not run.low <= 1 <= run.high for run in runs) / 1000 <= 1 / 14
    assert sum(run.verdict in ("FASTER", "SLOWER") for run in runs) / 1000 <= 1 / 14


def test_a_real_slowdown_is_found_at_its_size():
    rng = random.Random(1)
    runs = [paired_ratio(*stream(rng, 48, effect=1.10)) for _ in range(200)]
    assert sum(run.verdict == "SLOWER" for run in runs) >= 190
    assert median([run.ratio for run in runs]) == pytest.approx(1.10, abs=0.01)


def test_the_smallest_resolvable_change_is_found_four_times_in_five():
    rng = random.Random(2)
    quiet = [paired_ratio(*stream(rng, 24)) for _ in range(200)]
    effect = 1 + median([run.smallest_resolvable for run in quiet])
    flagged = [paired_ratio(*stream(rng, 24, effect=effect)).verdict == "SLOWER" for _ in range(400)]
    assert 0.7 <= sum(flagged) / 400 <= 0.9


def test_one_burst_does_not_move_the_ratio():
    calm = [1.0, 1.01, 0.99, 1.0, 1.02, 0.98, 1.0, 1.0, 1.01, 0.99]
    burst = [*calm[:-1], 9.0]
    assert paired_ratio(burst, calm).ratio == pytest.approx(1, abs=0.01)


def test_rounds_are_left_out_for_what_both_arms_took_and_never_for_one():
    calm, busy = (1.0, 1.0), (1.2, 1.2)
    assert quiet_rounds([calm] * 9 + [busy]) == [calm] * 9
    assert quiet_rounds([calm] * 8 + [(1.5, 0.5), (0.5, 1.5)]) == [calm] * 8 + [(1.5, 0.5), (0.5, 1.5)]
    assert len(quiet_rounds([calm, busy, busy, busy])) == 4, "an interval needs four"


def test_rounds_that_one_busy_phase_covers_do_not_widen_the_interval():
    rng = random.Random(3)
    calm = [(rng.gauss(1, 0.002), rng.gauss(1, 0.002)) for _ in range(16)]
    busy = [(rng.uniform(1, 4), rng.uniform(1, 4)) for _ in range(8)]
    ratio = paired_ratio(*zip(*calm, *busy, strict=True))
    assert ratio.half_width < 0.01
    assert ratio.rounds == 24


def calls_until_settled(series, limit=20):
    """Return after how many calls the engine would stop warming up, and what `warmed_up` returned then."""
    for calls in range(1, limit + 1):
        if (settled := warmed_up(series[:calls])) is not None:
            return calls, settled
    return None


def test_settling_counts_the_calls_that_were_slow():
    assert warmed_up([1.0] * 8) == 0
    assert warmed_up([10.0] + [1.0] * 8) == 1
    assert warmed_up([10.0, 3.0, 1.5, 1.2] + [1.0] * 8) == 4


def test_what_settled_is_at_least_eight_calls_and_as_many_as_were_slow():
    assert warmed_up([1.0] * 7) is None
    assert warmed_up([10.0] + [1.0] * 7) is None
    assert warmed_up([1.2] * 12 + [1.0] * 11) is None
    assert warmed_up([1.2] * 12 + [1.0] * 12) == 12


def test_a_steady_fall_is_not_settled_and_a_rise_is():
    assert warmed_up([1.02**-n for n in range(20)]) is None
    assert warmed_up([1.02**n for n in range(20)]) == 0


@pytest.mark.parametrize("outlier", [0.2, 5.0])
@pytest.mark.parametrize("place", range(1, 10))
def test_one_outlier_does_not_unsettle(outlier, place):
    series = [1.0] * 10
    series[place] = outlier
    assert warmed_up(series) == 0


@pytest.mark.parametrize("name", STREAMS)
def test_identical_calls_are_reported_as_cold_in_less_than_one_run_of_twenty(name):
    runs = [list(itertools.islice(STREAMS[name](random.Random(seed)), 20)) for seed in range(300)]
    assert sum(calls_until_settled(run) is None for run in runs) / 300 < 0.05


@pytest.mark.parametrize("slow", [1.2, 1.5, 10.0])
@pytest.mark.parametrize("name", ["quiet", "with_bursts", "in_phases", "recorded"])
def test_a_slow_start_is_seen_in_four_runs_of_five(name, slow):
    seen = 0
    for seed in range(200):
        series = list(itertools.islice(STREAMS[name](random.Random(seed)), 20))
        series[:4] = [slow * seconds for seconds in series[:4]]
        settled = calls_until_settled(series)
        seen += settled is None or settled[1] >= 3
    assert seen / 200 >= 0.8


def test_calls_that_get_2_percent_faster_each_time_seldom_settle():
    cold = 0
    for seed in range(200):
        series = [0.98**n * seconds for n, seconds in enumerate(itertools.islice(quiet(random.Random(seed)), 20))]
        cold += calls_until_settled(series) is None
    assert cold / 200 >= 0.8


def test_without_noise_the_effect_of_placement_in_memory_remains():
    two_percent, ten_percent = paired_ratio([1.02] * 6, [1.0] * 6), paired_ratio([1.1] * 6, [1.0] * 6)
    assert two_percent.p == pytest.approx(0.05, abs=1e-3)
    assert two_percent.smallest_resolvable == pytest.approx(PLACED)
    assert (two_percent.verdict, ten_percent.verdict) == ("SAME", "SLOWER")
    assert ten_percent.p < 1e-6


def test_noise_free_rounds_have_an_interval_of_no_width():
    ratio = paired_ratio([2.0] * 6, [1.0] * 6)
    assert (ratio.ratio, ratio.low, ratio.high, ratio.verdict) == (2.0, 2.0, 2.0, "SLOWER")


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.80, 0.90, "FASTER"),
        (1.10, 1.20, "SLOWER"),
        (0.995, 1.005, "SAME"),
        (1.001, 1.010, "SAME"),  # excludes 1, but too small to matter: one process cannot establish it
        (0.90, 1.10, "UNRESOLVED"),
        (0.99, 1.06, "UNRESOLVED"),
        (1.01, 1.05, "SLOWER"),
        (1.025, 1.035, "SLOWER"),  # within 5%, and certainly slower
        (0.96, 1.04, "SAME"),
        (1.005, 1.03, "SAME"),  # excludes 1, by no more than another placement in memory would
        (1.005, 1.06, "UNRESOLVED"),
    ],
)
def test_the_verdict_follows_from_the_interval(low, high, verdict):
    assert interval_verdict(low, high) == verdict


@pytest.mark.parametrize("effect", [0.03, 0.05, 0.10, 0.5])
def test_an_interval_as_narrow_as_it_has_to_be_always_decides(effect):
    reach = deciding_half_width(effect)
    centres = [n / 1000 * effect for n in range(-3000, 3001, 7)]
    found = {interval_verdict(math.exp(c - reach), math.exp(c + reach), effect) for c in centres}
    assert found == {"FASTER", "SAME", "SLOWER"}
    wider = {interval_verdict(math.exp(c - 1.1 * reach), math.exp(c + 1.1 * reach), effect) for c in centres}
    assert "UNRESOLVED" in wider


def test_no_effect_below_that_of_the_placement_can_be_decided():
    with pytest.raises(ValueError, match="no difference below 2%"):
        deciding_half_width(PLACED)


def test_equivalence_is_the_same_both_ways():
    assert interval_verdict(1 / (1 + EQUIVALENCE), 1 + EQUIVALENCE) == "SAME"


def test_too_few_or_unpaired_rounds_are_an_error():
    with pytest.raises(ValueError, match="at least 4"):
        paired_ratio([1.0] * 3, [1.0] * 3)
    with pytest.raises(ValueError, match="round by round"):
        paired_ratio([1.0] * 5, [1.0] * 4)


def test_the_spread_ignores_bursts():
    assert spread([1.0, 1.1, 0.9, 1.0, 50.0]) == pytest.approx(1.4826 * 0.1)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        ((1.4271, 0.0261), "1.427 ± 0.026 s"),
        ((0.04567, 0.0012), "45.7 ± 1.2 ms"),
        ((3.1e-5, 2e-6), "31.0 ± 2.0 µs"),
    ],
)
def test_seconds_are_described_with_their_spread(seconds, text):
    assert describe_seconds(*seconds) == text


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (Ratio(1.31, 1.28, 1.34, 24, "SLOWER", 0.03, 0.0), "1.31x slower [1.28, 1.34]"),
        (Ratio(0.5, 0.4, 0.625, 24, "FASTER", 0.03, 0.0), "2.00x faster [1.60, 2.50]"),
        (Ratio(1.0, 0.995, 1.01, 24, "SAME", 0.01, 1.0), "same within 1.0% [0.995, 1.010]"),
        (
            Ratio(1.0, 0.9, 1.1, 5, "UNRESOLVED", 0.15, 1.0),
            "1.00x slower [0.90, 1.10], inconclusive: 5 rounds would have shown a change of 15%",
        ),
        (
            Ratio(0.5, 0.1, 2.5, 4, "UNRESOLVED", 3.0, 1.0),
            "2.00x faster [0.40, 10.00], inconclusive after 4 rounds",
        ),
    ],
)
def test_ratios_are_described_with_their_interval(ratio, text):
    assert describe_ratio(ratio) == text


# The spread between identical arms.


def builds(rng, *, placement, noise, rounds=8, effect=1.0):
    """Return the estimate of a pair of builds whose placement in memory differs by a sigma of `placement`."""
    lies = effect * math.exp(rng.gauss(0, placement))
    times = [[factor * math.exp(rng.gauss(0, noise)) for _ in range(rounds)] for factor in (lies, 1.0)]
    return log_ratio(*times)


@pytest.mark.parametrize("placement", [0.03, 0.06])
def test_the_scatter_of_identical_arms_is_found(placement):
    rng = random.Random(0)
    found = [scatter([builds(rng, placement=placement, noise=0.02) for _ in range(20)]).sigma for _ in range(200)]
    assert math.sqrt(sum(value**2 for value in found) / 200) == pytest.approx(placement, rel=0.1)


def test_the_scatter_is_at_least_that_of_a_quiet_machine():
    rng = random.Random(0)
    assert scatter([]) == QUIET
    assert scatter([builds(rng, placement=0.0, noise=0.01) for _ in range(20)]) == QUIET


@pytest.mark.parametrize("placement", [0.01, 0.05])
def test_the_spread_between_identical_arms_limits_false_alarms_and_large_differences_are_found(placement):
    rng = random.Random(0)
    alarms = found = 0
    for _ in range(300):
        twins = [builds(rng, placement=placement, noise=0.02) for _ in range(20)]
        sigma = scatter(twins)
        alarms += p_value(builds(rng, placement=placement, noise=0.02), sigma) <= 0.05
        found += p_value(builds(rng, placement=placement, noise=0.02, effect=1.4), sigma) <= 0.05
    assert alarms <= 300 * 0.05 + 3 * math.sqrt(300 * 0.05 * 0.95)
    assert found == 300
