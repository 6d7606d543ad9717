"""The sections of the page on a benchmark run."""

import re

from harness.report import page, write
from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.drawn_text import texts
from harness.tests.report.sample_benchmark import (
    attention,
    bench_rows,
    comparison,
    compiling,
    decode,
    expected_metric_rows,
    generation,
    precision,
)
from harness.tests.report.sample_run import run


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


def test_a_difference_that_does_not_survive_the_adjustment_has_the_same_mark_in_the_table_and_the_headline():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.9})]
    rows[0]["ratios"][0] |= {"low": 0.94, "high": 0.96, "verdict": "FASTER"}
    where = {"comparison": "precision", "metric": "forward", "point": None, "arm": "bf16"}
    for adjusted, marked in ((0.049, False), (0.051, True)):
        records = run("bench", rows, ending={"adjusted": [{**where, "p": 0.01, "adjusted": adjusted}]})
        text = page(None, records)
        assert ("| 1.05x faster [1.04, 1.06] (inconclusive †) |" in text) == marked
        (plot,) = plots(None, RunRecords.of(records))
        assert (
            plot.headline
            == f"Against fp32: bf16 1.05x faster [1.04, 1.06]{' (inconclusive †)' if marked else ''} in forward"
        )


def test_the_head_of_the_page_says_how_many_ratios_are_decided():
    """Not one that is inconclusive, does not survive the adjustment, or belongs to a twin."""
    arms = {"fp32": 2.0, "bf16": 1.0, "fp16": 1.5, "int8": 2.01, "int4": 2.02}
    rows = [comparison("precision", "forward", arms, twin=True)]
    for ratio, verdict in zip(rows[0]["ratios"], ("FASTER", "FASTER", "SAME", "UNRESOLVED", "SAME"), strict=True):
        ratio["verdict"] = verdict
    where = {"comparison": "precision", "metric": "forward", "point": None, "arm": "fp16"}
    text = page(None, run("bench", rows, ending={"adjusted": [{**where, "p": 0.01, "adjusted": 0.06}]}))
    assert "- 2 of 4 ratios decided: 1 by a difference, 1 as the same ([what" in text


def test_an_arm_that_had_not_warmed_up_and_the_run_s_notes_are_shown():
    (row,) = compiling()
    row["arms"][0]["warm"] = {"reached": False, "calls": 50}
    row["notes"] = ["stopped by the `budget` <b>", "eager was not warm: its times still fell after 50 calls"]
    text = page(None, run("bench", [row]))
    assert "its time may still have been falling: eager (forward at 512 tokens)" in text
    assert "- forward at 512 tokens: stopped by the `budget` &lt;b&gt;" in text
    assert "after 50 calls" not in text  # said once


def test_every_arm_shows_its_share_of_the_ceiling_and_its_error():
    text = page(None, run("bench", compiling()))
    row = next(line for line in text.splitlines() if "| eager |" in line)
    assert "| 44% of compute [43, 45] | 3.1e-7 | float32 |" in row


def test_an_arm_that_failed_shows_no_share_and_one_that_beats_its_ceiling_is_noted():
    (row,) = compiling()
    assert "131%" in page(None, run("bench", [row]))  # in its message
    row["arms"][2]["verified"]["message"] = ""
    assert "131%" not in page(None, run("bench", [row]))
    row["arms"][0]["ceiling"] = row["arms"][2]["ceiling"]
    text = page(None, run("bench", [row]))
    assert "- eager, forward at 512 tokens, beats its ceiling (131% of compute [129, 133]): its work or the" in text


def test_the_ceilings_of_a_run_are_shown_in_their_units(tmp_path):
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


def test_without_ceilings_there_is_no_roofline_and_no_column_for_them():
    rows = [{key: value for key, value in row.items() if key != "ceilings"} for row in compiling()]
    for arm in rows[0]["arms"]:
        arm["ceiling"] = None
    text = page(None, run("bench", rows))
    assert "roofline" not in text
    assert "| share of ceiling |" not in text


def test_expected_metrics_are_a_table_and_a_line_at_the_head_of_the_page():
    text = page(None, run("bench", [*attention(), *expected_metric_rows()]))
    assert "- Expected and measured: 2 pass, 1 fail, 1 inconclusive ([all of them](#expected-and-measured))." in text
    assert (
        "| attention forward | naive | exponent of memory over tokens | 1.98 [1.96, 2.00] | 2 by closed form | pass |"
        in text
    )
    assert "| exponent of time over tokens | 1.94 [1.91, 1.98] | 2 | **fail** |" in text


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
    (plot,) = plots(None, RunRecords.of(run("bench", rows)))
    assert "fp16" not in texts(plot)


def test_long_tables_are_folded_and_short_ones_are_not():
    text = page(None, run("bench", [*precision(), *decode()]))
    assert text.count("<details><summary>Every arm") == 1
    assert "<details><summary>Every arm at every point: 15 rows</summary>\n\n| context, in tokens |" in text


def test_metrics_over_different_axes_are_listed_one_after_the_other_with_their_axis():
    rows = [*generation()[:2], *decode()[:1], *generation()[2:3]]
    text = page(None, run("bench", rows))
    points = re.findall(r"^\| (generate|decode) \| ([\w ]+) \| (?:un)?cached \|", text, flags=re.MULTILINE)
    assert list(dict.fromkeys(points)) == [
        ("generate", "8 new tokens"), ("generate", "16 new tokens"), ("generate", "32 new tokens"),
        ("decode", "context of 64 tokens"),
    ]  # fmt: skip


def test_extras_of_several_arms_are_columns_and_others_are_notes(tmp_path):
    write(tmp_path, None, run("bench", compiling()))
    text = (tmp_path / "index.md").read_text(encoding="utf-8")
    assert "| compile | graph breaks | verified |" in text
    assert "| 41.8 s | 0 | pass |" in text
    assert "- compiled, forward at 512 tokens: calls until compiling has paid off 1,195" in text
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
