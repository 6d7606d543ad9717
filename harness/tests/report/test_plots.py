"""Headlines and drawing of the plots."""

import re
from dataclasses import replace

import pytest

from harness.report import page
from harness.report.benchmarks import roofline
from harness.report.benchmarks.ceilings import ceilings_of
from harness.report.benchmarks.roofline_drawing import fastest_and_slowest_read
from harness.report.page import plots
from harness.report.plot import COLOURS, GREY
from harness.report.run_records import RunRecords
from harness.tests.report.drawn_text import assert_no_word_overlaps, texts
from harness.tests.report.sample_benchmark import (
    attention,
    bench_rows,
    comparison,
    compiling,
    cuda,
    decode,
    expected_metric_rows,
    peers,
)
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import noise_check, verify_rows

ALL = [
    *plots(RunRecords.of(run("verify", verify_rows(wrong=True))), RunRecords.of(run("bench", bench_rows()))),
    *plots(None, RunRecords.of(run("bench", cuda()))),
]


@pytest.mark.parametrize("plot", ALL, ids=lambda plot: plot.name)
def test_no_word_of_a_figure_overlaps_another_or_leaves_the_figure(plot):
    assert_no_word_overlaps(plot)


def test_headlines_state_the_measured_ratio_with_its_interval():
    rows = [
        comparison("attention", "forward", {"naive": 1.0 * n, "flash": 2.0 * n}, axis="tokens", point=n) for n in (1, 2)
    ]
    assert [plot.headline for plot in plots(None, RunRecords.of(run("bench", rows)))] == [
        "At 2 tokens, against naive: flash 2.00x slower [1.95, 2.05]"
    ]
    bug = noise_check("p", [f"block {n}" for n in range(4)], compare="blocks", wrong_from=2, scale=1.0)
    (plot,) = plots(RunRecords.of(run("verify", [bug])), None)
    assert plot.headline == "2 of 4 components differ by more than rounding; the first is block 2, by 9e-4 in float64"


def test_a_headline_says_once_what_is_true_of_every_metric():
    rows = [comparison("peers", metric, {"hf": 2.0, "subject": 2.001}) for metric in ("forward", "decode")]
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    assert plot.headline == "Against hf: subject 1.00x the time, inconclusive in all 2 metrics"


def test_a_forest_plot_tells_a_difference_the_same_and_an_inconclusive_ratio_apart():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0, "fp16": 2.01, "int8": 2.02})]
    for ratio, verdict in zip(rows[0]["ratios"], ("FASTER", "SAME", "UNRESOLVED"), strict=True):
        ratio["verdict"] = verdict
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    marks = [line for line in plot.render().axes[0].lines if line.get_marker() == "o"]
    assert [mark.get_markerfacecolor() for mark in marks] == [COLOURS[0], GREY, "white"]


def test_the_control_of_a_curve_is_called_that_under_the_pointer():
    rows = [
        comparison("attention", "forward", {"naive": 1.0 * n, "flash": 2.0 * n}, axis="tokens", point=n) for n in (1, 2)
    ]
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    named = " ".join(str(line.get_gid()) for line in plot.render().axes[0].lines)
    assert re.search(r"naive at 2 tokens: 2\.\d+ [^\"]* s, the control\"", named), named


def test_a_headline_begins_with_the_subject_and_not_with_another_peer():
    rows = [comparison("peers", "forward", {"hf": 2.0, "nano": 1.9, "subject": 1.0})]
    rows[0]["arms"][1]["peer"] = True
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    assert plot.headline.startswith("Against hf: subject 2.00x faster")


@pytest.mark.parametrize("slowest", [1.1, 1.2, 1.38, 1.6, 2.2])
def test_the_ticks_of_small_ratios_do_not_overlap_beside_long_columns(slowest):
    arms = {"one-process": 0.529, "ddp": 0.61, "fsdp": 0.529 * slowest, "tp": 0.6163}
    rows = [comparison("parallel", "step", arms, twin=True, point=256, axis="tokens")]
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    assert_no_word_overlaps(plot)


def test_the_parity_figure_shows_the_check_that_found_the_bug():
    fine = noise_check("large", [f"block {n}" for n in range(12)], compare="blocks", scale=1.0)
    bug = noise_check("small", [f"block {n}" for n in range(4)], compare="blocks", wrong_from=2, scale=1.0)
    (plot,) = plots(RunRecords.of(run("verify", [fine, bug])), None)
    assert "2 of 4 components differ" in plot.headline


def test_an_axis_is_shown_in_words():
    rows = [comparison("generation", "generate", {"a": 1.0, "b": 2.0}, axis="new_tokens", point=n) for n in (8, 16)]
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    assert plot.headline == "For 16 new tokens, against a: b 2.00x slower [1.97, 2.03]"
    assert "new tokens" in texts(plot)


def test_the_roofline_has_every_verified_arm_but_twins():
    rows = [*compiling(), *decode()]
    found = roofline.dots_of(rows)
    assert [dot.label for dot in found[:2]] == ["eager, forward", "compiled, forward"]  # not the one that failed
    assert len(found) == 2 + 5 * 2
    assert found[0].rate == pytest.approx(2 * 124_439_808 * 512 / 2.02)
    assert found[0].intensity == pytest.approx(512 / 2)


def test_what_was_measured_above_its_ceiling_is_not_called_the_nearest_to_it():
    dots = roofline.dots_of([*compiling(), *decode()])
    above = [replace(dots[0], fraction=1.11), replace(dots[1], fraction=0.5)]
    assert "nearest to its ceiling: compiled, forward, at 50%" in roofline.headline(above)
    assert "nearest" not in roofline.headline(above[:1])


def test_of_the_shapes_of_a_product_the_roofline_draws_the_fastest():
    (row,) = compiling()
    row["ceilings"] += [{**row["ceilings"][0], "name": "gemm float32 head", "rate": 1e9}]
    plot = plots(None, RunRecords.of(run("bench", [row])))[0]
    assert [text for text in texts(plot) if "float32" in text] == ["products in float32  144 GFLOP/s"]
    assert "| gemm float32 head | compute | 1 GFLOP/s |" in page(None, run("bench", [row]))


def test_the_roofline_has_the_reads_that_are_ceilings_and_not_the_copy_that_bounds_nothing():
    (row,) = compiling()
    read = next(each for each in row["ceilings"] if each["name"] == "read")
    row["ceilings"] += [{**read, "name": f"read {mib} MiB", "rate": rate} for mib, rate in ((72, 50e9), (448, 18e9))]
    assert [each.name for each in fastest_and_slowest_read(ceilings_of([row]))] == ["read 72 MiB", "read 448 MiB"]
    row["ceilings"] = [each for each in row["ceilings"] if not each["name"].startswith("read")]
    assert [each.name for each in fastest_and_slowest_read(ceilings_of([row]))] == ["copy"], "no other is known"


def test_each_machine_has_a_roofline_of_its_own():
    records = run("bench", [*compiling(), *cuda()])
    names = [plot.name for plot in plots(None, RunRecords.of(records))]
    assert names[:2] == ["roofline-cpu-2-threads", "roofline-cuda-2-threads"]
    records = run("bench", [*compiling(), *peers()])  # the peers were measured without ceilings
    assert plots(None, RunRecords.of(records))[0].name == "roofline"


def test_exponents_are_those_that_the_run_fitted_and_none_are_made_up():
    found = {
        plot.name: plot for plot in plots(None, RunRecords.of(run("bench", [*attention(), *expected_metric_rows()])))
    }
    assert found["attention-forward"].headline.endswith("Memory grows as naive T^1.98, flash T^1.00")
    words = texts(found["attention-forward"])
    assert "naive\nT^1.94 [1.91, 1.98]" in words
    assert "naive\nT^1.98 [1.96, 2.00]" in words
    for name, plot in {
        "attention-layer-forward": found["attention-layer-forward"],
        "attention-forward": plots(None, RunRecords.of(run("bench", attention())))[1],
    }.items():
        assert plot.name == name
        assert not [text for text in [plot.headline, *texts(plot)] if "^" in text]


def test_an_exponent_whose_interval_is_wide_is_drawn_nowhere():
    rows = [{**row, "verdict": "unresolved"} if row["arm"] == "flash" else row for row in expected_metric_rows()]
    plot = plots(None, RunRecords.of(run("bench", [*attention(), *rows])))[1]
    assert plot.headline.endswith("Memory grows as naive T^1.98")
    assert "flash\nT^1.00 [0.99, 1.01]" not in texts(plot)
    assert "naive\nT^1.98 [1.96, 2.00]" in texts(plot)


def test_decode_over_the_context_is_a_figure_with_what_memory_allows():
    (row, plot) = plots(None, RunRecords.of(run("bench", decode())))
    assert row.name == "roofline"
    assert plot.name == "generation-decode-latency"
    assert plot.headline == (
        "Decode with a context from 64 to 1,000 tokens: static-cache 26.9 ms to 29.9 ms; cached 29.2 ms to 34 ms; "
        "static-cache takes 1.11x the time that moving its bytes takes"
    )
    assert "its bytes at 21.3 GB/s" in texts(plot)


def test_decode_without_a_bandwidth_or_far_apart_is_drawn_all_the_same():
    rows = decode()
    for row in rows:
        row["ceilings"] = []
        row["arms"][0]["median_seconds"] *= row["point"]
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    assert "bytes" not in plot.headline + plot.description
    assert texts(plot)


def test_an_exponent_without_a_bound_has_no_interval():
    (row,) = [row for row in expected_metric_rows() if row["arm"] == "flash" and "memory" in row["what"]]
    row |= {"low": float("-inf"), "high": float("inf")}
    records = run("bench", [*attention(), row])
    assert "| exponent of memory over tokens | 1.00 | 1 by closed form |" in page(None, records)
    assert "flash\nT^1.00" in texts(plots(None, RunRecords.of(records))[1])
