"""The page: a pure function of records. GPT_HARNESS_UPDATE_GOLDEN=1 rewrites the golden page; read its diff."""

import os
from pathlib import Path

import pytest

from harness.report import page
from harness.report.page import plots
from harness.report.run_records import RunRecords
from harness.tests.report.sample_benchmark import bench_footer, bench_rows, comparison
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import check, noise_check, verify_rows

GOLDEN = Path(__file__).parent / "golden" / "report.md"


def test_the_page_of_a_wrong_gpt_is_the_golden_page():
    rows = bench_rows()
    found = page(run("verify", verify_rows(wrong=True)), run("bench", rows, ending=bench_footer(rows)))
    if os.environ.get("GPT_HARNESS_UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


def test_a_passing_run_says_so_and_claims_no_more_than_was_judged():
    text = page(run("verify", verify_rows()), None)
    assert "**All 22 checks that were judged pass; 3 were skipped.**" in text
    assert "## Failures\n\nNothing failed.\n" in text


def test_a_run_in_which_everything_was_skipped_judged_nothing():
    assert "**Nothing was judged: every check was skipped.**" in page(run("verify", [check(verdict="skip")]), None)


def test_a_claim_about_the_number_of_parameters_is_no_count():
    """Its value is a finding, "holds": the table would have it in place of the total."""
    claimed = check("parameters", suite="claims", measure="parameter_count", value="holds", claim={"finding": "holds"})
    claimed["parameters"] = {"size": "124M"}
    text = page(run("verify", [claimed]), None)
    assert "| 124M |" not in text
    counted = {**claimed, "value": 124_439_808, "claim": None}
    assert "| 124M | tied | 124,439,808 |" in page(run("verify", [claimed, counted]), None)
    assert "| 124M | tied | 124,439,808 |" in page(run("verify", [counted, claimed]), None)


def test_a_failure_gives_found_expected_where_why_and_the_command():
    failed = check("mask", verdict="fail", found="0.3", expected_text="at most 0", where=["block 1", "block 2"])
    text = page(run("verify", [check(), failed]), None)
    assert "**1 of 2 checks fails. First: structure/mask, at block 1.**" in text
    for line in (
        "- **found**: 0.3",
        "- **expected**: at most 0",
        "- **where**: block 1, block 2",
        "- **why**: every boundary has a shape that the paper states",
        "- **rerun**: `pytest 'verifications/structure.toml::mask'`",
    ):
        assert line in text


def test_a_subject_that_fails_everything_does_not_fill_the_page():
    text = page(run("verify", [check(f"check-{n}", verdict="fail", where=["w"]) for n in range(200)]), None)
    assert text.count("- **why**") == 10
    assert "### And 190 more" in text
    assert "(150 of 190 are only there)" in text


def test_an_error_is_distinguished_from_a_failure():
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
    assert "pytest" in text  # the rest of the page is shown


def test_an_interrupted_benchmark_says_how_far_it_came():
    rows = [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]
    assert "- Interrupted: 1 comparison was recorded." in page(None, run("bench", rows, footer=False))


@pytest.mark.parametrize("counts", [{"collected": 100, "selected": 88}, {"deselected": 12}])
def test_a_selection_is_called_a_selection(counts):
    text = page(run("verify", [check()], arguments=["verifications/", "-k", "a|b"], **counts), None)
    assert "This was a selection: 12 checks were left out by <code>pytest verifications/ -k 'a&#124;b'</code>." in text


def test_a_missing_section_names_the_command_that_fills_it():
    text = page(run("verify", [check()]), None)
    assert "Nothing was compared yet: run `pytest benchmarks/ --benchmark-autosave`." in text
    assert "No activations were measured in this run: run `pytest verifications/`." in text
    text = page(None, run("bench", [comparison("precision", "forward", {"fp32": 2.0, "bf16": 1.0})]))
    assert "No suite has judged the GPT in this run: run `pytest verifications/`." in text
    assert "run `pytest benchmarks/ --benchmark-autosave -k attention`." in text


def test_a_difference_that_a_check_expects_is_no_bug_of_the_subject():
    shown = noise_check("fault-is-caught", [f"block {n}" for n in range(4)], compare="blocks", wrong_from=0, scale=1.0)
    shown |= {"verdict": "pass", "expected": {"equals": "different"}}
    assert "| different, as expected |" in page(run("verify", [shown]), None)
    assert plots(RunRecords.of(run("verify", [shown])), None) == []


@pytest.mark.parametrize(("in_order", "masked"), [(True, False), (False, True)], ids=["a training program", "a GPT"])
def test_the_page_says_how_findings_are_ordered(in_order, masked):
    found = {"where": "targets", "fault": "", "cause": "shifted twice", "evidence": "step 0", "source": "a.py:3"}
    row = {"kind": "diagnosis", "subject": "gpt:GPT", "findings": [found | {"text": "y"}], "in_order": in_order}
    text = page(run("verify", [*verify_rows(wrong=True), row]), None)
    assert "shifted twice" in text
    assert ("Each is masked while the next is searched." in text) == masked
    assert ("in the order of a run's events, each with the failures that follow" in text) != masked
