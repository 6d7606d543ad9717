"""The plot of serving over the rate of requests."""

from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.drawn_text import assert_no_word_overlaps, texts
from harness.tests.report.sample_benchmark import comparison
from harness.tests.report.sample_run import run

FIGURES = ("first_token_p50_seconds", "first_token_p99_seconds", "served_tokens_per_second", "occupancy_share")


def serving_rows(**changed):
    rows = []
    for rate, static, continuous in (
        (30, (0.11, 0.42, 4.1, 0.16), (0.10, 0.21, 4.2, 0.17)),
        (120, (0.63, 2.4, 13.0, 0.33), (0.13, 0.34, 15.1, 0.41)),
        (480, (2.2, 5.9, 18.0, 0.41), (0.31, 1.6, 30.2, 0.78)),
    ):
        row = comparison("batching", "arrivals", {"static": 6.0, "continuous": 4.0}, axis="rate", point=rate)
        for arm, values in zip(row["arms"], (static, continuous), strict=True):
            arm["extras"] = dict(zip(FIGURES, values, strict=True))
            arm["verified"] |= changed.get(arm["arm"], {})
        rows.append(row)
    return rows


def test_the_headline_has_both_waiting_times_at_the_highest_rate_and_the_throughput():
    (plot,) = [plot for plot in plots(None, RunRecords.of(run("bench", serving_rows()))) if "arrivals" in plot.name]
    assert plot.headline == (
        "Continuous against static at 480 requests a minute: half of the users wait 310 ms for the first token instead "
        "of 2.2 s, 99% at most 1.6 s instead of 5.9 s, 1.68x the tokens a second"
    )
    assert_no_word_overlaps(plot)
    assert {"continuous p50", "static p99", "continuous, 78% full"} <= set(texts(plot))


def test_an_arm_that_is_not_verified_is_not_drawn():
    rows = serving_rows(continuous={"verdict": "fail", "message": "a token is not the likeliest"})
    for plot in plots(None, RunRecords.of(run("bench", rows))):
        assert not any("continuous" in text for text in texts(plot))
