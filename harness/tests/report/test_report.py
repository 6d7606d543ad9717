"""The report: a pure function of records. GPT_HARNESS_UPDATE_GOLDEN=1 writes the golden page anew; read its diff."""

import html
import json
import os
import random
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.run import ComparisonRunner
from harness import cli
from harness.core import record_files
from harness.core.errors import HarnessError
from harness.report import page, tables, wording, write, write_from, write_latest
from harness.report.benchmarks import roofline
from harness.report.benchmarks.comparisons import at_most
from harness.report.files import latest
from harness.report.markdown import code, escape, prose
from harness.report.page import plots
from harness.report.run import Run
from harness.tests.report.sample_records import (
    attention,
    bench_footer,
    bench_rows,
    check,
    comparison,
    compiling,
    cuda,
    decode,
    generation,
    held_rows,
    initialisation,
    noise_check,
    peers,
    precision,
    run,
    verify_rows,
)

GOLDEN = Path(__file__).parent / "golden" / "report.md"
HOSTILE = (
    "x|y `z` <script>alert(1)</script>\n# H1\n\n- **b** [l](http://e) ![i](http://e) [f]: u $\\frac{1}{0}$ ~~s~~ "
    "\x1b[31mred\x1b[0m \u202e &amp; \\| _u_ __v__ ``` \ud800 名前 | end"
)


def test_the_page_of_a_wrong_gpt_is_the_golden_page():
    rows = bench_rows()
    found = page(run("verify", verify_rows(wrong=True)), run("bench", rows, ending=bench_footer(rows)))
    if os.environ.get("GPT_HARNESS_UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


def test_a_passing_run_says_so_and_claims_no_more_than_was_judged():
    text = page(run("verify", verify_rows()), None)
    assert "**All 22 checks that were judged pass; 3 were skipped.**" in text
    assert "## What failed\n\nNothing.\n" in text


def test_a_run_in_which_everything_was_skipped_judged_nothing():
    assert "**Nothing was judged: every check was skipped.**" in page(run("verify", [check(verdict="skip")]), None)


def test_a_failure_tells_found_expected_where_why_and_the_command():
    failed = check("mask", verdict="fail", found="0.3", expected_text="at most 0", where=["block 1", "block 2"])
    text = page(run("verify", [check(), failed]), None)
    assert "**1 of 2 checks fails. First: structure/mask, at block 1.**" in text
    for line in (
        "- **found**: 0.3",
        "- **expected**: at most 0",
        "- **where**: block 1, block 2",
        "- **why**: every boundary has a shape that the paper states",
        "- **again**: `pytest 'verifications/structure.toml::mask'`",
    ):
        assert line in text


def test_a_subject_that_fails_everything_does_not_fill_the_page():
    text = page(run("verify", [check(f"check-{n}", verdict="fail", where=["w"]) for n in range(200)]), None)
    assert text.count("- **why**") == 10
    assert "### And 190 more" in text
    assert "(150 of 190 are only there)" in text


def test_an_error_is_told_apart_from_a_failure():
    text = page(run("verify", [check(verdict="error", message="RuntimeError: no `forward`")]), None)
    assert "**1 of 1 broke before a verdict." in text
    assert "- **error**: RuntimeError: no `forward`" in text
    assert "- **found**" not in text


def test_skips_are_grouped_by_their_reason():
    rows = [check(name, verdict="skip", message="no weights: run `fetch`") for name in ("a", "b")]
    assert "- 2 checks (`structure/a`, `structure/b`): no weights: run `fetch`" in page(run("verify", rows), None)


@pytest.mark.parametrize("footer", [{"footer": False}, {"complete": False}])
def test_a_run_that_died_is_reported_as_interrupted(footer):
    text = page(run("verify", [check(), check("mask", verdict="fail")], **footer), None)
    assert "**Interrupted: 2 checks were recorded. 1 of them did not pass.**" in text
    assert "pytest" in text  # what there is, is shown


def test_an_interrupted_benchmark_says_how_far_it_came():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]
    assert "- Interrupted: 1 comparison was recorded." in page(None, run("bench", rows, footer=False))


@pytest.mark.parametrize("counts", [{"collected": 100, "selected": 88}, {"deselected": 12}])
def test_a_selection_is_called_a_selection(counts):
    text = page(run("verify", [check()], arguments=["verifications/", "-k", "a|b"], **counts), None)
    assert "This was a selection: 12 checks were left out by <code>pytest verifications/ -k a&#124;b</code>." in text


def test_a_missing_section_names_the_command_that_fills_it():
    text = page(run("verify", [check()]), None)
    assert "Nothing was compared yet: `pytest benchmarks/ --benchmark-autosave` does it." in text
    assert "No activations were measured in this run: `pytest verifications/` does it." in text
    text = page(None, run("bench", [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]))
    assert "No verifications ran yet: `pytest verifications/` does it." in text
    assert "`pytest benchmarks/ --benchmark-autosave -k attention` does it." in text


def test_no_plot_is_drawn_from_no_data(tmp_path):
    files = write(tmp_path, run("verify", [check()]), None)
    assert files == [tmp_path / "index.md", tmp_path / "tables" / "checks.csv"]
    assert "![" not in files[0].read_text(encoding="utf-8")


def test_a_measure_that_the_report_does_not_know_is_in_the_table_of_checks(tmp_path):
    row = check(measure="of_tomorrow", value={"a": 1.5, "b": float("nan")}, details={"comparisons": 3, "predicted": []})
    write(tmp_path, run("verify", [row, {"kind": "of tomorrow"}]), None)
    assert "of_tomorrow" in (tmp_path / "tables" / "checks.csv").read_text(encoding="utf-8")


def test_records_of_another_shape_are_no_reason_to_fail(tmp_path):
    bare = {"kind": "record", "measure": "activation_std", "value": {"a": "x", "b": None, "c": 1e-300}}
    odd = {"kind": "comparison", "comparison": None, "arms": [None, {"arm": None}], "ratios": 3}
    write(tmp_path, [{"kind": "header"}, bare, {"kind": "record"}], [{"kind": "header"}, odd])


# Benchmarks


def test_an_unverified_arm_shows_no_time_anywhere(tmp_path):
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.2345})]
    rows[0]["arms"][1]["verified"] = {"verdict": "fail", "message": "logits are off"}
    files = write(tmp_path, None, run("bench", rows))
    assert "- no time for bf16 (fail): logits are off" in files[0].read_text(encoding="utf-8")
    for path in files:
        if path.suffix in {".md", ".csv"}:
            text = path.read_text(encoding="utf-8")
            assert "1.23" not in text
            assert "faster" not in re.sub("shorter is faster", "", text)


def test_a_ratio_to_an_unverified_control_is_not_shown():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]
    rows[0]["arms"][0]["verified"] = {"verdict": "error", "message": "broke"}
    assert "x faster" not in page(None, run("bench", rows))


def test_memory_ledgers_that_disagree_are_printed_side_by_side():
    rows = [comparison("attention", "forward", {"naive": 2.0, "flash": 1.0}, axis="tokens", point=1024)]
    rows[0]["arms"][0]["ledgers"] = {"allocator": 99 * 2**20, "child process": 51 * 2**20}
    rows[0]["arms"][1]["ledgers"] = {"allocator": 100, "closed form": 101}
    text = page(None, run("bench", rows))
    assert "The memory ledgers of 1 of 2 rows differ by more than a tenth, at most 1.94x:" in text
    assert "| forward | 1,024 | naive | 99 MiB | 51 MiB | 1.94x |" in text


def test_titles_state_what_was_measured_and_not_what_was_hoped():
    rows = [
        comparison("attention", "forward", {"naive": 1.0 * n, "flash": 2.0 * n}, axis="tokens", point=n) for n in (1, 2)
    ]
    assert [plot.finding for plot in plots(None, Run.of(run("bench", rows)))] == [
        "At 2 tokens, against naive: flash 2.00x slower"
    ]
    bug = noise_check("p", [f"block {n}" for n in range(4)], compare="blocks", wrong_from=2, scale=1.0)
    (plot,) = plots(Run.of(run("verify", [bug])), None)
    assert plot.finding == "2 of 4 differ by more than rounding; the first is block 2, by 9e-4 in float64"


def test_a_title_says_once_what_holds_for_every_metric():
    rows = [comparison("peers", metric, {"hf": 2.0, "subject": 2.001}) for metric in ("forward", "decode")]
    (plot,) = plots(None, Run.of(run("bench", rows)))
    assert plot.finding == "Against hf: subject not resolved in all 2"


def test_a_difference_that_a_check_wants_is_no_bug_of_the_subject():
    shown = noise_check("fault-is-caught", [f"block {n}" for n in range(4)], compare="blocks", wrong_from=0, scale=1.0)
    shown |= {"verdict": "pass", "expected": {"equals": "different"}}
    assert "| different, as expected |" in page(run("verify", [shown]), None)
    assert plots(Run.of(run("verify", [shown])), None) == []


def test_the_parity_figure_shows_the_check_that_found_the_bug():
    fine = noise_check("large", [f"block {n}" for n in range(12)], compare="blocks", scale=1.0)
    bug = noise_check("small", [f"block {n}" for n in range(4)], compare="blocks", wrong_from=2, scale=1.0)
    (plot,) = plots(Run.of(run("verify", [fine, bug])), None)
    assert "2 of 4 differ" in plot.finding


# How far a run may be trusted


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
        stamped = [plot.title.startswith("NOT EVIDENCE: ") for plot in plots(*map(Run.of, records))]
        assert sum(stamped) == 1
        assert len(stamped) == 3  # the figures of the verification keep their titles


def test_a_tenth_of_false_alarms_is_not_above_a_tenth():
    assert "NOT EVIDENCE" not in page(None, run("bench", twins(1, pairs=10)))
    assert "NOT EVIDENCE" in page(None, run("bench", twins(1, pairs=9)))


def test_the_run_s_own_word_that_it_is_no_evidence_counts():
    told = {"false_alarms": {"pairs": 12, "flagged": 0, "share": 0.0, "evidence": False}}
    assert "**NOT EVIDENCE: 0 of 12 pairs" in page(None, run("bench", twins(0), ending=told))


def test_what_identical_arms_scatter_by_is_told_with_their_count():
    told = {"pairs": 20, "flagged": 1, "evidence": True, "by_their_rounds": 3, "scatter": 0.041}
    text = page(None, run("bench", bench_rows(), ending={"false_alarms": told}))
    assert "NOT EVIDENCE" not in text
    assert "20 pairs, 1 called different (5%, at most 22% with 95% confidence); by the noise of their rounds " in text
    assert "alone it were 3, but they scatter by 4.1% (one sigma) beyond it" in text


def test_a_run_without_identical_arms_does_not_know_its_false_alarms():
    text = page(None, run("bench", [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]))
    assert "none were timed against each other, so this run's false alarms are not known" in text
    assert "NOT EVIDENCE" not in text
    told = {"false_alarms": {"pairs": 0, "flagged": 0, "share": None, "evidence": False}}
    text = page(None, run("bench", [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})], ending=told))
    assert "**NOT EVIDENCE: no identical arms were timed against each other, so nothing says" in text


def test_an_axis_is_told_in_words():
    rows = [comparison("generation", "generate", {"a": 1.0, "b": 2.0}, axis="new_tokens", point=n) for n in (8, 16)]
    (plot,) = plots(None, Run.of(run("bench", rows)))
    assert plot.finding == "At 16 new tokens, against a: b 2.00x slower"
    assert "new tokens" in texts(plot)


@pytest.mark.parametrize(
    ("flagged", "pairs", "bound"), [(0, 12, 0.2209), (1, 20, 0.2161), (5, 40, 0.2450), (3, 3, 1.0)]
)
def test_the_bound_on_false_alarms_is_clopper_and_pearson_s(flagged, pairs, bound):
    assert at_most(flagged, pairs) == pytest.approx(bound, abs=5e-4)


def test_a_difference_that_does_not_survive_the_adjustment_is_marked_and_claimed_nowhere():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.9})]
    rows[0]["ratios"][0] |= {"low": 0.94, "high": 0.96, "verdict": "FASTER"}
    where = {"comparison": "precision", "metric": "forward", "point": None, "arm": "bf16"}
    for adjusted, marked in ((0.049, False), (0.051, True)):
        records = run("bench", rows, ending={"adjusted": [{**where, "p": 0.01, "adjusted": adjusted}]})
        text = page(None, records)
        assert ("| 1.05x faster [1.04, 1.06] † |" in text) == marked
        assert ("† resolved by its own rounds, but not by what the run's identical arms scatter by" in text) == marked
        (plot,) = plots(None, Run.of(records))
        assert plot.finding == f"Against fp32: bf16 {'not resolved' if marked else '1.05x faster'} in forward"


def test_an_arm_that_had_not_warmed_up_and_the_run_s_notes_are_told():
    (row,) = compiling()
    row["arms"][0]["warm"] = {"reached": False, "calls": 50}
    row["notes"] = ["stopped by the `budget` <b>", "eager was not warm: its times still fell after 50 calls"]
    text = page(None, run("bench", [row]))
    assert "- not warm when it was timed, so its time may still have been falling: eager (forward at 512)" in text
    assert "- forward at 512: stopped by the `budget` &lt;b&gt;" in text
    assert "after 50 calls" not in text  # said once


# What the machine allows


def test_every_arm_shows_its_share_of_the_ceiling_and_its_error():
    text = page(None, run("bench", compiling()))
    row = next(line for line in text.splitlines() if "| eager |" in line)
    assert "| 44% of compute [43, 45] | 3.1e-7 | float32 |" in row


def test_an_arm_that_failed_shows_no_share_and_one_that_beats_its_ceiling_is_told():
    (row,) = compiling()
    assert "131%" in page(None, run("bench", [row]))  # in its message
    row["arms"][2]["verified"]["message"] = ""
    assert "131%" not in page(None, run("bench", [row]))
    row["arms"][0]["ceiling"] = row["arms"][2]["ceiling"]
    text = page(None, run("bench", [row]))
    assert "- eager, forward at 512, beats its ceiling (131% of compute [129, 133]): its work or the" in text


def test_the_ceilings_of_a_run_are_told_in_their_units(tmp_path):
    rows = decode()
    for row in rows:
        for ceiling, rate in zip(row["ceilings"], (143e9, 206e9, 21.4e9, 15.2e9, 4.1e-6), strict=True):
            ceiling["rate"] = rate
    write(tmp_path, None, run("bench", rows))
    text = (tmp_path / "index.md").read_text(encoding="utf-8")
    for line in (
        "| gemm bfloat16 | compute | 206 GFLOP/s | ± 0% | 5 |",
        "| read | bandwidth | 21.4 GB/s | ± 0% | 5 |",
        "| launch | launch | 4.1 µs | ± 0% | 5 |",
    ):
        assert line in text
    first = (tmp_path / "tables" / "ceilings.csv").read_text(encoding="utf-8").splitlines()[1]
    assert first.startswith("generation,decode,context,64,124M,cpu,2,gemm float32,compute,143000000000.0,FLOP/s,")


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
    assert "nearest to its ceiling: compiled, forward, at 50%" in roofline.finding(above)
    assert "nearest" not in roofline.finding(above[:1])


def test_of_the_shapes_of_a_product_the_roofline_draws_the_fastest():
    (row,) = compiling()
    row["ceilings"] += [{**row["ceilings"][0], "name": "gemm float32 head", "rate": 1e9}]
    plot = plots(None, Run.of(run("bench", [row])))[0]
    assert [text for text in texts(plot) if text.startswith("gemm float32")] == ["gemm float32  144 GFLOP/s"]
    assert "| gemm float32 head | compute | 1 GFLOP/s |" in page(None, run("bench", [row]))


def test_each_machine_has_a_roofline_of_its_own():
    records = run("bench", [*compiling(), *cuda()])
    names = [plot.name for plot in plots(None, Run.of(records))]
    assert names[:2] == ["roofline-cpu-2-threads", "roofline-cuda-2-threads"]
    records = run("bench", [*compiling(), *peers()])  # the peers were measured without ceilings
    assert plots(None, Run.of(records))[0].name == "roofline"


def test_without_ceilings_there_is_no_roofline_and_no_column_for_them():
    rows = [{key: value for key, value in row.items() if key != "ceilings"} for row in compiling()]
    for arm in rows[0]["arms"]:
        arm["ceiling"] = None
    text = page(None, run("bench", rows))
    assert "roofline" not in text
    assert "| ceiling |" not in text


# What is held against theory


def test_what_was_held_against_theory_is_a_table_and_a_line_of_the_first_page():
    text = page(None, run("bench", [*attention(), *held_rows()]))
    assert "- Held against theory: 2 pass, 1 fail, 1 unresolved ([all of them](#held-against-theory))." in text
    assert (
        "| attention forward | naive | exponent of memory over tokens | 1.98 [1.96, 2.00] | 2 by closed form | pass |"
        in text
    )
    assert "| exponent of time over tokens | 1.94 [1.91, 1.98] | 2 | **fail** |" in text


def test_exponents_are_those_that_the_run_fitted_and_none_are_made_up():
    found = {plot.name: plot for plot in plots(None, Run.of(run("bench", [*attention(), *held_rows()])))}
    assert found["attention-forward"].finding.endswith("Memory grows as naive T^1.98, flash T^1.00")
    words = texts(found["attention-forward"])
    assert "naive\nT^1.94 [1.91, 1.98]" in words
    assert "naive\nT^1.98 [1.96, 2.00]" in words
    for name, plot in {
        "attention-layer-forward": found["attention-layer-forward"],
        "attention-forward": plots(None, Run.of(run("bench", attention())))[1],
    }.items():
        assert plot.name == name
        assert not [text for text in [plot.finding, *texts(plot)] if "^" in text]


def test_no_title_claims_an_exponent_that_is_not_resolved():
    rows = [{**row, "verdict": "unresolved"} if row["arm"] == "flash" else row for row in held_rows()]
    plot = plots(None, Run.of(run("bench", [*attention(), *rows])))[1]
    assert plot.finding.endswith("Memory grows as naive T^1.98")
    assert "flash\nT^1.00 [0.99, 1.01]" in texts(plot)  # beside its line it stands, with its interval


def test_an_exponent_without_a_bound_has_no_interval():
    (row,) = [row for row in held_rows() if row["arm"] == "flash" and "memory" in row["what"]]
    row |= {"low": float("-inf"), "high": float("inf")}
    records = run("bench", [*attention(), row])
    assert "| exponent of memory over tokens | 1.00 | 1 by closed form |" in page(None, records)
    assert "flash\nT^1.00" in texts(plots(None, Run.of(records))[1])


# Decode latency


def test_decode_over_the_context_is_a_figure_with_what_memory_allows():
    (row, plot) = plots(None, Run.of(run("bench", decode())))
    assert row.name == "roofline"
    assert plot.name == "generation-decode-latency"
    assert plot.finding == (
        "Decode from 64 to 1,000 context: static-cache 26.9 ms to 29.9 ms; cached 29.2 ms to 34 ms; "
        "static-cache takes 1.11x what its bytes need"
    )
    assert "its bytes at 21.3 GB/s" in texts(plot)


def test_decode_without_a_bandwidth_or_far_apart_is_drawn_all_the_same():
    rows = decode()
    for row in rows:
        row["ceilings"] = []
        row["arms"][0]["median_seconds"] *= row["point"]
    (plot,) = plots(None, Run.of(run("bench", rows)))
    assert "bytes" not in plot.finding + plot.look
    assert texts(plot)


# Beside its peers


def with_peer(subject, peer, *, control):
    """A run of the subject's `cached` beside `hf-sdpa`, at times of their own in every round."""
    times = {"cached": subject, "hf-sdpa": peer}
    order = [control, *(name for name in times if name != control)]
    row = comparison("generation", "decode", {name: times[name] for name in order}, axis="context", point=16)
    noise = random.Random(0)
    for arm in row["arms"]:
        arm["peer"] = arm["arm"] == "hf-sdpa"
        arm["seconds"] = [times[arm["arm"]] * noise.uniform(1, 1.01) for _ in range(12)]
        arm["ceiling"] = {"name": "read", "regime": "bandwidth", "fraction": 0.68, "low": 0.67, "high": 0.69}
        arm["witness"] = {"operations": 640, "products_seconds": 0.8 * times[arm["arm"]],
                          "kernels": ["aten::addmm x48 (71%)", "aten::mm x1 (20%)", "aten::add x25 (2%)"]}  # fmt: skip
    made = ComparisonRunner(config=None, declared={}, rows={("generation decode", 16): row})
    return run("bench", [row], ending={"beside_peers": made.beside_peers()})


@pytest.mark.parametrize("control", ["cached", "hf-sdpa"])
def test_a_peer_that_is_faster_is_told_with_what_both_did(control):
    text = page(None, with_peer(0.030, 0.024, control=control))
    assert "the subject is faster in 0, behind in 1, and in 0 this run cannot tell" in text
    (row,) = [line for line in text.splitlines() if line.startswith("| generation decode")]
    assert "| hf-sdpa | 1.25x [" in row
    assert "68% of bandwidth, 80% of the time in products, 640 operations" in row
    assert "aten::addmm x48 (71%), aten::mm x1 (20%) |" in row


def test_a_peer_that_is_slower_has_no_row():
    text = page(None, with_peer(0.020, 0.024, control="cached"))
    assert "the subject is faster in 1, behind in 0, and in 0 this run cannot tell" in text
    assert "peer is faster by" not in text


def test_a_run_without_a_peer_has_no_section_of_peers():
    assert "Beside its peers" not in page(None, run("bench", [comparison("attention", "forward", {"a": 2.0})]))


def test_products_that_were_seen_to_take_longer_than_the_call_take_all_of_it():
    row = with_peer(0.030, 0.024, control="cached")[1]
    row["arms"][0]["witness"]["products_seconds"] = 0.050
    assert [round(arm["in_products"], 2) for arm in tables.arms(row)] == [1.0, 0.8]


# Many comparisons


def test_the_overview_has_a_line_for_each_finding_and_leads_to_it():
    text = page(None, run("bench", bench_rows()))
    overview = text.split("## Benchmarks")[1].split("###")[0]
    assert "| [Loading a checkpoint](#comparison-loading) | safetensors 830 ± 13 ms | 1 of 1 |" in overview
    assert "| [fp32 against bf16](#comparison-precision) | Against fp32: bf16 forward 1.40x faster" in overview
    assert "| **8 of 9** |" in overview
    for target in re.findall(r"\]\(#([^)]+)\)", text):
        assert f'<a id="{target}"></a>' in text or f"## {target.capitalize()}" in text


def test_an_arm_that_this_machine_cannot_run_is_no_failure():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0, "fp16": None})]
    rows[0]["arms"][2]["verified"] = {"verdict": "skip", "message": "fp16 exists on cuda"}
    text = page(None, run("bench", rows))
    assert "| 2 of 2, 1 skipped |" in text
    assert "- no time for fp16 (skip): fp16 exists on cuda" in text
    (plot,) = plots(None, Run.of(run("bench", rows)))
    assert "fp16" not in texts(plot)


def test_long_tables_are_folded_and_short_ones_are_not():
    text = page(None, run("bench", [*precision(), *decode()]))
    assert text.count("<details>") == text.count("</details>") == 1
    assert "<details><summary>Every arm at every point: 15 rows</summary>\n\n| context |" in text


def test_metrics_over_different_axes_stand_one_after_the_other_with_their_axis():
    rows = [*generation()[:2], *decode()[:1], *generation()[2:3]]
    text = page(None, run("bench", rows))
    points = re.findall(r"^\| (generate|decode) \| ([\w ]+) \| (?:un)?cached \|", text, flags=re.MULTILINE)
    assert list(dict.fromkeys(points)) == [
        ("generate", "8 new tokens"), ("generate", "16 new tokens"), ("generate", "32 new tokens"),
        ("decode", "64 context"),
    ]  # fmt: skip


def test_extras_of_several_arms_are_columns_and_others_are_notes(tmp_path):
    write(tmp_path, None, run("bench", compiling()))
    text = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "| compile | graph breaks | verified |" in text
    assert "| 41.8 s | 0 | pass |" in text
    assert "- compiled, forward at 512: cache 3.61 MiB" in text
    heads, _, compiled, *_ = (tmp_path / "tables" / "compile.csv").read_text(encoding="utf-8").splitlines()
    assert heads.endswith(",compile_seconds,graph_breaks,break_even_calls,cache_bytes")
    assert compiled.endswith(",41.8,0,1195,3785359")


def test_an_extra_does_not_take_the_place_of_a_column_of_the_table(tmp_path):
    (row,) = compiling()
    row["arms"][0]["extras"] = {"ratio": 7}
    write(tmp_path, None, run("bench", [row]))
    heads = (tmp_path / "tables" / "compile.csv").read_text(encoding="utf-8").splitlines()[0].split(",")
    assert len(heads) == len(set(heads))
    assert "extra_ratio" in heads


def test_one_comparison_in_several_settings_is_not_mixed_up():
    rows = [{**row, "threads": threads} for threads in (1, 2) for row in compiling()]
    text = page(None, run("bench", rows))
    assert "| forward, 1 thread | 512 | eager |" in text
    assert "| forward, 2 threads | 512 | eager |" in text
    for row in rows:
        row |= {"axis": "threads", "point": row["threads"]}
    assert "forward, 1 thread" not in page(None, run("bench", rows))


OLD = {
    *("kind", "comparison", "title", "subject", "axis", "point", "metric", "control", "arms", "ratios"),
    *("arm", "twin_of", "verified", "seconds", "median_seconds", "spread_seconds", "tokens_per_second", "positions"),
    *("positions_closed_form", "peak_memory_bytes", "peak_memory_ledger", "ledgers", "against", "ratio", "low"),
    *("high", "verdict", "smallest_resolvable", "rounds", "message", "allocator", "closed form"),
}


def as_before(value):
    if isinstance(value, dict):
        return {
            key: as_before(item) for key, item in value.items() if key in OLD or key in ("allocator", "closed form")
        }
    return [as_before(item) for item in value] if isinstance(value, list) else value


def test_records_of_an_older_run_still_make_a_report(tmp_path):
    rows = [as_before(row) for row in bench_rows() if row["kind"] == "comparison"]
    files = write(tmp_path, None, run("bench", rows))
    names = {path.name for path in files}
    assert {"precision.png", "attention-forward.png", "generation-decode-latency.png", "compile.csv"} <= names
    assert not {"roofline.png", "ceilings.csv", "held.csv"} & names
    assert "| 1.40x faster [1.37, 1.44] |" in files[0].read_text(encoding="utf-8")


# What is drawn


def texts(plot):
    """Every text of a figure as drawn."""
    return [text for text, _ in words_of(plot)]


def words_of(plot):
    """Every upright text of a figure, with the pixels that it covers."""
    from matplotlib import rc_context
    from matplotlib.text import Text

    from harness.report.figure import STYLE

    with rc_context(STYLE):
        figure = plot.painted()
        figure.draw_without_rendering()
        found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
        return [
            (text.get_text(), Text.get_window_extent(text).padded(-1.5)) for text in found if not text.get_rotation()
        ]


ALL = [
    *plots(Run.of(run("verify", verify_rows(wrong=True))), Run.of(run("bench", bench_rows()))),
    *plots(None, Run.of(run("bench", cuda()))),
]


@pytest.mark.parametrize("plot", ALL, ids=lambda plot: plot.name)
def test_no_word_of_a_figure_lies_on_another_or_leaves_the_figure(plot):
    found = words_of(plot)
    for index, (text, box) in enumerate(found):
        over = [other for other, taken in found[index + 1 :] if box.overlaps(taken)]
        assert not over, (text, over)
        assert box.x0 >= 0, text
        assert box.x1 <= 900, text


# What is hostile


def hostile_runs():
    verify, bench = verify_rows(wrong=True), bench_rows()
    for row in verify:
        row |= dict.fromkeys(("message", "why", "source", "found", "suite", "check", "rerun", "id", "unit"), HOSTILE)
        row["where"] = [HOSTILE]
        row["parameters"] = {**row["parameters"], HOSTILE: HOSTILE}
        if row["measure"] == "activation_std":
            row["value"] |= {"block 3": float("nan"), "block 4": float("inf"), "block 5": 0.0, HOSTILE: HOSTILE}
        for found in row["details"].get("comparisons", []):
            found |= {"where": HOSTILE, "float64": float("nan"), "verdict": HOSTILE}
    for row in bench:
        row |= {"metric": HOSTILE, "what": f"exponent of memory {HOSTILE}", "expected": HOSTILE, "points": HOSTILE}
        if row["kind"] == "held":
            row |= {"arm": row["arm"] + HOSTILE, "found": float("nan") if row["arm"] == "flash" else 1.0}
            continue
        row |= {"title": HOSTILE, "axis": row["axis"] and HOSTILE, "control": row["control"] + HOSTILE}
        row |= {"device": HOSTILE, "load": float("nan"), "notes": [HOSTILE, None]}
        for ceiling in row.get("ceilings", []):
            ceiling |= {"name": ceiling["name"] + HOSTILE, "seconds": [None, float("nan"), HOSTILE]}
        for arm in [*row["arms"], *row["ratios"]]:
            arm |= {key: arm[key] + HOSTILE for key in ("arm", "against") if key in arm}
        for number, arm in enumerate(row["arms"]):
            arm["verified"]["message"] = HOSTILE
            if "extras" in arm:
                arm["extras"] = {HOSTILE: HOSTILE, "compile_seconds": float("nan"), "none": None, "_bytes": -1}
                arm["witness"] = {"products": {HOSTILE: HOSTILE}, "attention": [HOSTILE], "compiled": HOSTILE}
                arm["ceiling"] = {"name": HOSTILE, "regime": HOSTILE, "fraction": (float("nan"), 0.0, 1e9)[number % 3]}
                arm["warm"] = {"reached": False, "calls": HOSTILE}
                arm |= {"flops": (float("inf"), -1.0, 1e12, None)[number % 4], "error": float("nan")}
    return run("verify", verify, subject=HOSTILE), run("bench", bench, subject=HOSTILE)


def test_a_hostile_message_neither_breaks_the_page_nor_becomes_markup():
    text = page(*hostile_runs())
    assert "<script" not in text
    tables = re.findall(r"(?:^\|.*\|$\n)+", text, flags=re.MULTILINE)
    assert tables
    for table in tables:
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert not re.search(r"^# H1|^- \*\*b", text, flags=re.MULTILINE)


@pytest.mark.parametrize("render", [escape, prose, code])
def test_escaped_text_renders_as_itself(render):
    markdown_it = pytest.importorskip("markdown_it")
    markdown = markdown_it.MarkdownIt("commonmark").enable(["table", "strikethrough"])
    rendered = markdown.render(f"| a | b |\n| --- | --- |\n| x {render(HOSTILE)} | c |\n")
    assert "<td>c</td>" in rendered
    cell = re.search(r"<td>x (.*?)</td>", rendered, flags=re.DOTALL)[1]
    assert not re.findall(r"<(?!/?code)", cell)
    shown = html.unescape(re.sub(r"</?code>", "", cell))
    expected = wording.plain(HOSTILE)
    assert shown == (expected if render is not prose or expected.count("`") % 2 else expected.replace("`", ""))


def test_hostile_records_still_give_every_figure(tmp_path):
    files = write(tmp_path, *hostile_runs())
    names = {path.name for path in files}
    assert {"activations.png", "parity.svg", "precision.png", "checks.csv"} <= names
    assert all(path.stat().st_size > 0 for path in files)


def test_code_that_looks_like_code_stays_code():
    assert prose("run `make verify` <now>") == "run `make verify` &lt;now&gt;"
    assert prose("an odd ` tick") == "an odd &#96; tick"
    assert code("a|b") == "<code>a&#124;b</code>"


# Files


def test_a_report_written_twice_is_the_same_to_the_byte(tmp_path):
    runs = run("verify", initialisation()), run("bench", generation())
    first = {path.name: path.read_bytes() for path in write(tmp_path / "a", *runs)}
    second = {path.name: path.read_bytes() for path in write(tmp_path / "b", *runs)}
    assert first == second
    assert {"index.md", "activations.csv", "activations.png", "activations.svg", "generation.png"} <= set(first)


def test_every_link_on_the_page_leads_to_a_file_and_every_file_is_linked(tmp_path):
    page_path, *files = write(tmp_path, run("verify", verify_rows()), run("bench", bench_rows()))
    links = re.findall(r"\]\(((?:tables|plots)/[^)]+)\)", page_path.read_text(encoding="utf-8"))
    assert {tmp_path / link for link in links} == set(files)


def test_every_figure_names_its_machine_versions_and_subject():
    for plot in plots(Run.of(run("verify", verify_rows())), Run.of(run("bench", bench_rows()))):
        for part in ("Intel Xeon", "2 cores", "2 threads", "torch 2.13.0", "2026-11-22", "gpt:GPT", "commit d3ab9a4"):
            assert part in plot.caption


def test_files_of_an_earlier_report_go_and_files_of_the_user_stay(tmp_path):
    write(tmp_path, run("verify", verify_rows()), None)
    mine = tmp_path / "plots" / "mine.png"
    mine.write_text("")
    write(tmp_path, run("verify", [check()]), None)
    assert sorted(path.name for path in (tmp_path / "plots").iterdir()) == ["mine.png"]


def test_nothing_heavy_is_imported_before_a_figure_is_drawn():
    heavy = "{'matplotlib', 'pandas', 'torch', 'numpy'} & set(sys.modules)"
    line = f"import sys, harness.cli, harness.report; sys.exit(str({heavy} or ''))"
    assert (
        subprocess.run([sys.executable, "-c", line], capture_output=True, text=True, check=False).stderr.strip() == ""
    )


def save(folder, name, rows):
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text("".join(json.dumps(record_files.encode(row)) + "\n" for row in rows), encoding="utf-8")
    return path


def test_the_newest_records_are_by_the_time_in_the_name_and_then_by_the_number(tmp_path):
    for stamp in ("20261121T100000Z", "20261122T153000Z", "20261122T153000Z-2", "20261122T153000Z-10"):
        save(tmp_path, f"verify-{stamp}.jsonl", [])
    paths = list(tmp_path.iterdir())
    assert latest(paths, "verify").name == "verify-20261122T153000Z-10.jsonl"
    assert latest(paths, "bench") is None


def test_a_report_never_joins_the_verdict_on_one_subject_to_the_times_of_another(tmp_path):
    records = tmp_path / "records"
    save(records, "bench-20261121T100000Z.jsonl", run("bench", bench_rows()[:1], subject="theirs.py:GPT"))
    save(records, "verify-20261122T100000Z.jsonl", run("verify", [check()], subject="mine.py:GPT"))
    text = write_latest(tmp_path)[0].read_text(encoding="utf-8")
    assert "Report on mine.py" in text
    assert "Benchmarked" not in text


def test_gpt_harness_report_makes_the_report_from_records_alone(tmp_path, capsys):
    save(tmp_path / "records", "verify-20261122T153000Z.jsonl", run("verify", [check(value=float("nan"))]))
    save(tmp_path / "records", "bench-20261122T160000Z.jsonl", run("bench", bench_rows()[:1]))
    assert cli.main(["report", "--records", str(tmp_path / "records"), "--output", str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out" / "index.md") in capsys.readouterr().out
    assert "The one check that was judged passes" in (tmp_path / "out" / "index.md").read_text(encoding="utf-8")
    assert (tmp_path / "out" / "tables" / "precision.csv").exists()


def test_gpt_harness_report_takes_files(tmp_path):
    path = save(tmp_path, "any.jsonl", run("verify", [check()], footer=False))
    assert cli.main(["report", str(path), "--output", str(tmp_path / "out")]) == 0
    assert "Interrupted" in (tmp_path / "out" / "index.md").read_text(encoding="utf-8")


def test_no_records_is_one_clear_line(tmp_path, capsys):
    assert cli.main(["report", "--records", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert f"no records in {tmp_path}: looked for verify-*.jsonl and bench-*.jsonl" in told
    assert "`pytest verifications/`" in told


def test_two_runs_of_one_kind_a_missing_file_and_a_foreign_one_are_named_errors(tmp_path):
    one, two = (save(tmp_path, f"{name}.jsonl", run("verify", [check()])) for name in "ab")
    with pytest.raises(HarnessError, match="are both of kind 'verify'"):
        write_from(tmp_path, [one, two])
    with pytest.raises(HarnessError, match="no such file"):
        write_from(tmp_path, [tmp_path / "none.jsonl"])
    with pytest.raises(HarnessError, match="kind 'train'; expected one of verify, bench"):
        write_from(tmp_path, [save(tmp_path, "c.jsonl", run("train", []))])


def test_a_session_writes_its_report_beside_its_records(tmp_path):
    save(tmp_path / "records", "verify-20261122T153000Z.jsonl", run("verify", [check()]))
    assert write_latest(tmp_path)[0] == tmp_path / "index.md"


# Words


@pytest.mark.parametrize(
    ("median", "spread", "words"),
    [
        (1.427, 0.026, "1.427 ± 0.026 s"),
        (0.0123, 0.0004, "12.30 ± 0.40 ms"),
        (3.2e-5, 4.1e-7, "32.00 ± 0.41 µs"),
        (125.0, 14.0, "125 ± 14 s"),
        (2.0, 0.0, "2.000 ± 0.000 s"),
        (2.0, None, "2 s"),
        (None, None, ""),
    ],
)
def test_a_time_has_its_spread_and_the_digits_that_it_deserves(median, spread, words):
    assert wording.timing(median, spread) == words


@pytest.mark.parametrize(
    ("ratio", "low", "high", "verdict", "words"),
    [
        (1.31, 1.28, 1.34, "SLOWER", "1.31x slower [1.28, 1.34]"),
        (0.42, 0.40, 0.45, "FASTER", "2.38x faster [2.22, 2.50]"),
        (1.0, 0.99, 1.013, "SAME", "same within 1.3% [0.990, 1.013]"),
        (1.02, 0.95, 1.09, "UNRESOLVED", "not resolved [0.95, 1.09]"),
        (None, None, None, None, "not resolved"),
    ],
)
def test_a_ratio_is_worded_by_its_verdict(ratio, low, high, verdict, words):
    assert wording.ratio({"ratio": ratio, "low": low, "high": high, "verdict": verdict}) == words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (124439808, "124,439,808"),
        (0.28361, "0.2836"),
        (2.1e-6, "2.1e-6"),
        (1234.56, "1,234.6"),
        (0.0, "0"),
        (True, "true"),
        (None, "nothing"),
        (float("nan"), "nan"),
        ({"a": 1, "b": 2.5}, "a: 1, b: 2.5"),
        ([1, 2, 3, 4, 5, 6], "[1, 2, 3, 4, … (6 in all)]"),
    ],
)
def test_a_value_is_written_as_a_person_reads_it(value, words):
    assert wording.number(value) == words


@pytest.mark.parametrize(
    ("value", "low", "high", "words"),
    [
        (0.81, 0.79, 0.83, "81% [79, 83]"),
        (0.0281, None, None, "2.8%"),
        (0.0021, 0.002, 0.0022, "0.21% [0.20, 0.22]"),
        (1.31, 1.29, 1.33, "131% [129, 133]"),
        (float("nan"), 0.1, 0.2, ""),
    ],
)
def test_a_share_is_in_percent_with_its_interval(value, low, high, words):
    assert wording.share(value, low, high) == words


@pytest.mark.parametrize(
    ("name", "value", "head", "words"),
    [
        ("compile_seconds", 41.8, "compile", "41.8 s"),
        ("compile_seconds", 0.0, "compile", "0 s"),
        ("cache_bytes", 3785359, "cache", "3.61 MiB"),
        ("break_even_calls", 1195.0, "break even calls", "1,195"),
        ("accepted_share", 0.734, "accepted", "73%"),
        ("tokens_per_second", 220386.4, "tokens", "220,386/s"),
        ("model_flops", 20_017_152, "model", "20 MFLOP"),
        ("mfu", 0.0126, "mfu", "1.3%"),
        ("perplexity", 31.0417, "perplexity", "31.04"),
        ("note", "a`b", "note", "a`b"),
    ],
)
def test_a_plain_number_is_in_the_unit_that_its_name_ends_in(name, value, head, words):
    assert wording.unitless(name) == head
    assert wording.quantity(name, value) == words


@pytest.mark.parametrize(
    ("size", "words"),
    [(402653184, "384 MiB"), (3785359, "3.61 MiB"), (1047527424, "999 MiB"), (12, "12 B"), (None, "")],
)
def test_memory_is_in_binary_units(size, words):
    assert wording.memory(size) == words


@pytest.mark.parametrize(
    ("seconds", "words"), [(0.31, "0.31 s"), (92.3, "1 min 32 s"), (59.99, "60.0 s"), (7300, "2 h 1 min")]
)
def test_a_duration_is_in_minutes_where_it_is_long(seconds, words):
    assert wording.duration(seconds) == words
