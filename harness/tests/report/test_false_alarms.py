"""The false alarms of a benchmark run, and the warning above too many."""

import pytest

from harness.report import page
from harness.report.benchmarks.false_alarms import upper_bound
from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.sample_benchmark import bench_footer, bench_rows, comparison
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import verify_rows


def twins(flagged, pairs=12):
    rows = [
        comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0}, twin=True, point=n, axis="tokens")
        for n in range(1, pairs + 1)
    ]
    for row in rows:
        row["ratios"][-1]["verdict"] = "UNRESOLVED"
    for row in rows[:flagged]:
        row["ratios"][-1]["verdict"] = "SLOWER"
    return rows


def test_the_first_page_says_how_often_identical_arms_were_called_different():
    rows = twins(0)
    for ending in (bench_footer(rows), {}):  # older runs did not count
        text = page(None, run("bench", rows, ending=ending))
        assert (
            "- Identical arms: 12 pairs, 0 called different (0%, at most 22% with 95% confidence)."
            in text.split("## ")[0]
        )
        assert "NOT EVIDENCE" not in text


def test_a_run_above_a_tenth_of_false_alarms_is_stamped_on_the_page_and_on_every_figure_of_it():
    rows = twins(2)
    for ending in (bench_footer(rows), {}):
        records = run("verify", verify_rows()), run("bench", rows, ending=ending)
        head = page(*records).split("## ")[0]
        assert "**NOT EVIDENCE: 2 of 12 pairs of identical arms were called different. Above 10%" in head
        stamped = [plot.title.startswith("NOT EVIDENCE: ") for plot in plots(*map(RunRecords.of, records))]
        assert sum(stamped) == 1
        assert len(stamped) == 3  # the figures of the verification keep their titles


def test_a_tenth_of_false_alarms_is_not_above_a_tenth():
    assert "NOT EVIDENCE" not in page(None, run("bench", twins(1, pairs=10)))
    assert "NOT EVIDENCE" in page(None, run("bench", twins(1, pairs=9)))


def test_a_run_that_calls_itself_no_evidence_is_none():
    counted = {"false_alarms": {"pairs": 12, "flagged": 0, "share": 0.0, "evidence": False}}
    assert "**NOT EVIDENCE: 0 of 12 pairs" in page(None, run("bench", twins(0), ending=counted))


def test_the_scatter_of_identical_arms_is_given_with_their_count():
    counted = {"pairs": 20, "flagged": 1, "evidence": True, "by_their_rounds": 3, "scatter": 0.041}
    text = page(None, run("bench", bench_rows(), ending={"false_alarms": counted}))
    assert "NOT EVIDENCE" not in text
    assert (
        "20 pairs, 1 called different (5%, at most 22% with 95% confidence); 3 by the noise of their rounds alone. "
        in text
    )
    assert "They scatter by 4.1% (one sigma) beyond that noise" in text


def test_a_run_without_identical_arms_does_not_know_its_false_alarms():
    text = page(None, run("bench", [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]))
    assert "none were timed against each other, so this run's false alarms are not known" in text
    assert "NOT EVIDENCE" not in text
    counted = {"false_alarms": {"pairs": 0, "flagged": 0, "share": None, "evidence": False}}
    text = page(None, run("bench", [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})], ending=counted))
    assert "**NOT EVIDENCE: no identical arms were timed against each other, so nothing says" in text


@pytest.mark.parametrize(
    ("flagged", "pairs", "bound"), [(0, 12, 0.2209), (1, 20, 0.2161), (5, 40, 0.2450), (3, 3, 1.0)]
)
def test_the_bound_on_false_alarms_is_clopper_and_pearson_s(flagged, pairs, bound):
    assert upper_bound(flagged, pairs) == pytest.approx(bound, abs=5e-4)
