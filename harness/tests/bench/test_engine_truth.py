"""The comparing engine itself, run under noise whose truth is known: how often it is wrong, and what it finds."""

import functools
import itertools
import math
import random

import pytest

from harness.bench.comparison import Arm, Comparison, Verification, Work, measure
from harness.bench.statistics import median, paired_ratio, share_interval
from harness.tests.bench.noise_streams import STREAMS, quiet, recorded

RUNS = 200


def simulate(stream, *, effect=1.0, seed=0, seconds=20.0):
    """The real engine, over two arms whose calls take what the stream says; the second's `effect` times as long."""
    noise, now = stream(random.Random(seed)), 0.0

    def arm(name, factor):
        def call():
            nonlocal now
            now += factor * next(noise)

        return Arm(name, lambda: Work(call=call, answer=lambda: 42, tokens=1))

    arms = arm("control", 1.0), arm("arm", effect)
    comparison = Comparison("toy", "A toy", "forward", "control", arms, lambda name, work: Verification("pass", ""))
    return measure(comparison, seconds=seconds, seed=seed, clock=lambda: now)


@functools.cache
def ratios(name, effect=1.0):
    return [simulate(STREAMS[name], effect=effect, seed=seed).ratios["arm"] for seed in range(RUNS)]


def flagged(runs):
    return sum(run.verdict in ("FASTER", "SLOWER") for run in runs)


@pytest.mark.parametrize("name", STREAMS)
def test_the_true_ratio_lies_within_the_interval_in_nine_runs_of_ten(name):
    covered = sum(run.low <= effect <= run.high for effect in (1.0, 1.05) for run in ratios(name, effect))
    assert covered / (2 * RUNS) >= 0.90, f"{covered} of {2 * RUNS}"


@pytest.mark.parametrize("name", STREAMS)
def test_identical_arms_are_told_apart_in_no_more_than_one_run_of_twenty(name):
    found = flagged(ratios(name))
    low, high = share_interval(found, RUNS)
    assert low <= 0.05, f"{found} of {RUNS}, so {low:.1%} to {high:.1%}"


@pytest.mark.parametrize("name", STREAMS)
def test_identical_arms_are_significant_in_no_more_than_one_run_of_twenty(name):
    assert share_interval(sum(run.p < 0.05 for run in ratios(name)), RUNS)[0] <= 0.05


@pytest.mark.parametrize("name", ["quiet", "recorded"])
def test_the_place_in_memory_raises_no_false_alarm(name):
    """Two builds of one arm differ by 1% for as long as a process lasts, and no number of rounds will tell."""
    rng = random.Random(0)
    runs = [simulate(STREAMS[name], effect=math.exp(rng.gauss(0, 0.01)), seed=s).ratios["arm"] for s in range(RUNS)]
    assert share_interval(flagged(runs), RUNS)[0] <= 0.05
    assert share_interval(sum(run.p < 0.05 for run in runs), RUNS)[0] <= 0.05


@pytest.mark.parametrize("name", STREAMS)
def test_a_slowdown_of_5_percent_is_found_in_nine_runs_of_ten(name):
    """Of the recorded calls, a third of which waited for others' work, 88% of 200 runs find it: 83% to 92%."""
    found = sum(run.verdict == "SLOWER" for run in ratios(name, 1.05))
    low, high = share_interval(found, RUNS)
    assert high >= 0.90, f"{found} of {RUNS}, so {low:.1%} to {high:.1%}"


@pytest.mark.parametrize("name", STREAMS)
def test_a_slowdown_is_found_at_its_size(name):
    assert median([run.ratio for run in ratios(name, 1.05)]) == pytest.approx(1.05, abs=0.003)


def test_stopping_at_a_narrow_interval_raises_no_false_alarms():
    """Looking is free as long as it is not for significance: that would stop at each chance difference."""
    runs = [simulate(quiet, seed=seed) for seed in range(RUNS)]
    assert {run.stopped for run in runs} == {"interval"}
    assert len({run.ratios["arm"].rounds for run in runs}) >= 2, "else nobody looked twice"
    excluded = sum(not run.ratios["arm"].low <= 1 <= run.ratios["arm"].high for run in runs)
    assert share_interval(excluded, RUNS)[0] <= 0.05


def test_the_smallest_resolvable_change_is_one_that_is_found_four_times_in_five():
    smallest = median([run.smallest_resolvable for run in ratios("autocorrelated")])
    found = sum(run.verdict == "SLOWER" for run in ratios("autocorrelated", 1 + smallest))
    assert 0.7 <= found / RUNS <= 0.9


def test_one_arm_after_the_other_is_wrong_in_one_run_of_five():
    """What taking turns is for: the same statistic over the same recorded calls, all of one arm's first."""
    block, rounds, wrong = 8, 24, 0
    for seed in range(RUNS):
        calls = recorded(random.Random(seed))
        blocks = [min(itertools.islice(calls, block)) for _ in range(2 * rounds)]
        ratio = paired_ratio(blocks[:rounds], blocks[rounds:])
        wrong += not ratio.low <= 1 <= ratio.high
    assert wrong / RUNS >= 0.2
