"""The plot of speculative decoding: measured speed-ups beside their closed forms, and where it does not pay."""

from harness.report.benchmarks.speculation import plots, series_of
from harness.report.run_records import RunRecords
from harness.tests.report.drawn_text import texts
from harness.tests.report.sample_benchmark import comparison
from harness.tests.report.sample_run import run

GOOD = {1: 1.55, 2: 1.9, 4: 2.2, 8: 2.1}
POOR = {1: 0.95, 2: 0.8, 4: 0.6, 8: 0.4}


def speculated():
    """Return two comparisons over the lookahead: a good draft and a poor one."""
    rows = []
    for metric, alpha, ups in (("good draft", 0.95, GOOD), ("poor draft", 0.1, POOR)):
        for lookahead, up in ups.items():
            row = comparison(
                "speculation", metric, {"alone": 1.0, "draft-model": 1 / up}, axis="lookahead", point=lookahead
            )
            row["arms"][1]["extras"] = {
                "acceptance_share": alpha,
                "tokens_per_target_call": 1.1 if alpha < 0.5 else 1 + 0.9 * lookahead**0.8,
                "tokens_per_target_call_closed_form": (1 - alpha ** (lookahead + 1)) / (1 - alpha),
                "cost_ratio": 0.3,
                "verification_ratio": 1.2,
                "speed_up_closed_form": up * 1.3,
                "speed_up_with_verification": up * 1.05,
            }
            rows.append(row)
    return rows


def test_the_headline_has_the_best_speed_up_and_where_it_does_not_pay():
    (plot,) = plots(RunRecords.of(run("bench", speculated())))
    assert plot.headline.startswith("With 4 drafts a round, of which 95% are accepted, 2.20x the speed of the target")
    assert "; with 8, of which 10% are accepted, 0.40x [" in plot.headline
    assert plot.headline.endswith(": it does not pay there")
    drawn = texts(plot)
    for text in ("target alone", "α = 0.95", "α = 0.10", "closed form", "drafts a round, γ"):
        assert text in drawn


def test_an_unverified_arm_and_a_single_lookahead_are_not_drawn():
    rows = speculated()
    for row in rows[:3]:
        row["arms"][1]["verified"]["verdict"] = "fail"
    assert [series.metric for series in series_of(rows)] == ["poor draft"]
    assert plots(RunRecords.of(run("bench", rows[:4]))) == []


def test_series_are_ordered_by_acceptance():
    assert [series.label for series in series_of(speculated()[::-1])] == ["α = 0.95", "α = 0.10"]
