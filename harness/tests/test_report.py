"""The report: a pure function of records. GPT_HARNESS_UPDATE_GOLDEN=1 writes the golden page anew; read its diff."""

import html
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from harness import cli, record
from harness.errors import HarnessError
from harness.report import page, wording, write, write_from, write_latest
from harness.report.files import latest
from harness.report.markdown import code, escape, prose
from harness.report.page import plots
from harness.report.run import Run
from harness.tests.sample_records import (
    bench_rows,
    check,
    comparison,
    generation,
    initialisation,
    noise_check,
    run,
    verify_rows,
)

GOLDEN = Path(__file__).parent / "golden" / "report.md"
HOSTILE = (
    "x|y `z` <script>alert(1)</script>\n# H1\n\n- **b** [l](http://e) ![i](http://e) [f]: u $\\frac{1}{0}$ ~~s~~ "
    "\x1b[31mred\x1b[0m \u202e &amp; \\| _u_ __v__ ``` \ud800 名前 | end"
)


def test_the_page_of_a_wrong_gpt_is_the_golden_page():
    found = page(run("verify", verify_rows(wrong=True)), run("bench", bench_rows()))
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
    assert "Nothing was verified yet: `pytest verifications/` does it." in text
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


def test_an_arm_timed_against_itself_counts_as_a_false_alarm_where_it_differs():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0}, twin=True)]
    text = page(None, run("bench", rows))
    assert "timed against themselves: 1; told apart, which is a false alarm: 0." in text
    assert "- fp32-again is fp32 built once more, and its ratio is to that arm" in text
    rows[0]["ratios"][-1]["verdict"] = "SLOWER"
    assert "false alarm: **1**." in page(None, run("bench", rows))


def test_memory_ledgers_that_disagree_are_printed_side_by_side():
    rows = [comparison("attention", "forward", {"naive": 2.0, "flash": 1.0}, axis="tokens", point=1024)]
    rows[0]["arms"][0]["ledgers"] = {"allocator": 99 * 2**20, "child process": 51 * 2**20}
    rows[0]["arms"][1]["ledgers"] = {"allocator": 100, "closed form": 101}
    text = page(None, run("bench", rows))
    assert "- memory of naive at 1,024, by ledger: allocator 99 MiB, child process 51 MiB" in text
    assert "memory of flash" not in text


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
        row |= {
            "title": HOSTILE,
            "metric": HOSTILE,
            "axis": row["axis"] and HOSTILE,
            "control": row["control"] + HOSTILE,
        }
        for arm in [*row["arms"], *row["ratios"]]:
            arm |= {key: arm[key] + HOSTILE for key in ("arm", "against") if key in arm}
        for arm in row["arms"]:
            arm["verified"]["message"] = HOSTILE
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
    path.write_text("".join(json.dumps(record.encode(row)) + "\n" for row in rows), encoding="utf-8")
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
