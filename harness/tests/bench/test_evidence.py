"""The evidence of a run: identical arms, the spread between them, and all ratios judged together."""

import dataclasses
import math
import random

import pytest

from benchmarks.evidence import Evidence
from harness.bench.statistics import paired_ratio


def simulated_run(placement, *, effect=1.0, pairs=20, seed=0):
    """Return the evidence of a run whose arms differ by a sigma of `placement` in memory, in all rounds."""
    rng, rows = random.Random(seed), []
    for number in range(pairs):
        times = {}
        for arm, factor in (("control", 1.0), ("other", effect), ("control-again", 1.0)):
            slower = factor * math.exp(rng.gauss(0, placement / math.sqrt(2)))
            times[arm] = [slower * math.exp(rng.gauss(0, 0.01)) for _ in range(8)]
        ratios = [
            {"arm": arm, "against": "control", **dataclasses.asdict(paired_ratio(times[arm], times["control"]))}
            for arm in ("other", "control-again")
        ]
        arms = [{"arm": arm, "seconds": seconds} for arm, seconds in times.items()]
        rows.append({
            "comparison": f"c{number}", "metric": "forward", "axis": None, "point": None,
            "arms": arms, "ratios": ratios,
        })  # fmt: skip
    return Evidence(list(rows))


def significant(run):
    adjusted = {(row["comparison"], row["arm"]): row["adjusted"] for row in run.adjusted()}
    return sum(value <= 0.05 for (_, arm), value in adjusted.items() if arm == "other")


def test_a_difference_counts_only_if_it_exceeds_the_spread_between_identical_arms():
    alarms = simulated_run(0.06).false_alarms()
    assert alarms["by_their_rounds"] > 0.3 * alarms["pairs"], "by their own rounds alone many would be different"
    assert alarms["flagged"] <= 0.1 * alarms["pairs"]
    assert alarms["evidence"]
    assert alarms["scatter"] == pytest.approx(0.06, rel=0.4)
    assert significant(simulated_run(0.06)) == 0
    assert significant(simulated_run(0.06, effect=2.0)) == 20, "a difference far beyond the spread is significant"


def test_on_a_quiet_machine_no_difference_is_lost():
    alarms = simulated_run(0.005).false_alarms()
    assert (alarms["by_their_rounds"], alarms["flagged"], alarms["scatter"]) == (0, 0, None)
    assert significant(simulated_run(0.005, effect=1.06)) == 20


def test_one_comparison_on_a_quiet_machine_finds_what_many_would_find():
    assert significant(simulated_run(0.005, effect=1.1, pairs=1)) == 1


def test_a_pair_that_differs_while_the_others_agree_is_a_false_alarm():
    run = simulated_run(0.005)
    row = run.rows[3]
    row["arms"][2]["seconds"] = [1.2 * seconds for seconds in row["arms"][2]["seconds"]]
    assert run.false_alarms()["flagged"] == 1


def test_the_last_lines_of_a_run_report_the_spread_and_the_lost_differences():
    lines = [line for line, _ in simulated_run(0.06, effect=1.08).summary()]
    assert any("(one sigma) beyond the noise of their rounds" in line for line in lines)
    assert any(
        "differences are not significant when all ratios of the run are judged together" in line for line in lines
    )
