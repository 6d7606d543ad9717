"""The page of the claims is a function of records: what it says, what its table has, and that no record breaks it."""

import csv
import os
import re
import shutil
from pathlib import Path

import pytest

from harness.report import write
from harness.report.claims.agreement import difference
from harness.report.claims.claim_rows import claims_of, tally
from harness.report.claims.figures import plots
from harness.report.claims.page import page
from harness.report.run_records import RunRecords
from harness.tests.report.claims.sample_claims import claim, claim_rows
from harness.tests.report.drawn_text import assert_no_word_overlaps, texts
from harness.tests.report.sample_run import run
from harness.tests.report.sample_verification import check
from harness.tests.report.test_hostile_records import HOSTILE

GOLDEN = Path(__file__).with_name("golden_claims.md")


def run_of(rows):
    return RunRecords.of(run("verify", rows))


def text_of(rows):
    return page(run_of(rows), plots(run_of(rows)))


def line_with(text, words):
    return next(line for line in text.splitlines() if words in line)


def test_the_page_is_the_golden_one():
    """GPT_HARNESS_UPDATE_GOLDEN=1 rewrites the golden page; read its diff."""
    found = text_of([*claim_rows(), check("shapes")])
    if os.environ.get("GPT_HARNESS_UPDATE_GOLDEN"):
        GOLDEN.write_text(found, encoding="utf-8")
    assert found == GOLDEN.read_text(encoding="utf-8")


@pytest.mark.parametrize("plot", plots(run_of(claim_rows())), ids=lambda plot: plot.name)
def test_no_word_of_a_figure_overlaps_another_or_leaves_the_figure(plot):
    assert_no_word_overlaps(plot)


def test_the_first_sentence_counts_every_finding_and_what_broke():
    assert tally(claims_of(run_of(claim_rows()))) == {
        "holds": 5,
        "holds with a correction": 2,
        "holds for another setting": 1,
        "does not hold": 2,
        "not measurable here": 2,
        "": 1,
    }
    assert (
        "**Of 13 claims 5 hold, 2 hold with a correction, 1 holds for another setting, 2 do not hold, "
        "2 were not measurable here, 1 could not be judged.**"
    ) in text_of(claim_rows())


def test_a_correction_and_a_setting_are_beside_the_verdict():
    text = text_of(claim_rows())
    assert "**holds with a correction: 10.978**" in line_with(text, "ln V + s²/2")
    assert "**holds for another setting: Kaiming-normal weights**" in line_with(text, "default initialisation")
    assert "1.13 std; with Kaiming-normal weights: 6.87 std" in line_with(text, "default initialisation")


def test_a_value_has_its_spread_and_a_run_its_machine_and_its_finding_the_size_that_it_is_found_at():
    text = text_of(claim_rows())
    assert "10.995 [10.957, 11.057] nats over 4 batches" in text
    assert "(lessons-20261127T100000Z.jsonl, Intel Xeon, 2 cores) | **does not hold at 345,000 parameters** |" in text


def test_a_ledger_that_says_otherwise_is_named_at_the_top():
    text = text_of(claim_rows())
    assert "- `attention-matrix`: does not hold (the ledger says: holds)" in text.partition("## ")[0]
    assert "says otherwise" not in text_of([row for row in claim_rows() if row["check"] != "attention-matrix"])


def test_a_claim_that_was_not_measured_says_what_is_missing():
    assert "missing: `make lessons` has not run | not measurable here |" in line_with(text_of(claim_rows()), "| 2.0 |")


def test_a_selection_of_claims_is_said_to_be_one():
    def text(*arguments):
        return page(RunRecords.of(run("verify", claim_rows(), arguments=list(arguments))), [])

    assert "This run was a selection" in text("verifications/", "-k", "loss")
    assert "This run was a selection" in text("verifications/claims.toml::parameters")
    assert "selection" not in text("verifications/", "-m", "claims")


def test_the_chain_has_the_claims_and_the_suites_of_the_run_by_level():
    rows = [*claim_rows(), check("shapes"), check("blocks", suite="parity", verdict="fail")]
    first, second, third = text_of(rows).partition("## The chain")[2].split("\n| ")[3:6]
    assert "`parameters`" in first
    assert "structure: 1 pass" in first
    assert "parity: 1 fail" in second
    assert "`initial-loss`" in third
    assert "none: `pytest verifications/` runs them" in third


def test_every_figure_shows_what_its_headline_says_and_its_machine():
    drawn = {plot.name: plot for plot in plots(run_of(claim_rows()))}
    assert list(drawn) == ["claims", "claims-growth", "claims-spacing", "claims-positions"]
    assert drawn["claims"].headline == "2 of 6 figures are as the lessons state them"
    assert "near Kaiming-normal weights (6.85) alone" in drawn["claims-growth"].headline
    assert drawn["claims-positions"].headline.endswith("take 5,950 positions without a cache and 109 with one: 54.6x")
    assert all("2 cores" in plot.caption for plot in drawn.values())
    words = {name: texts(plot) for name, plot in drawn.items()}
    assert {"parameters", "124.4M: 124,439,808", "holds with a correction"} <= set(words["claims"])
    assert {"PyTorch's defaults 1.11", "claimed 6.55"} <= set(words["claims-growth"])
    assert {"with a cache", "claimed 100"} <= set(words["claims-positions"])
    assert "bfloat16" in words["claims-spacing"]


def test_the_headline_of_the_growth_names_the_start_that_is_near_the_claimed_std_and_only_one_that_is():
    def headline(*names):
        return {plot.name: plot.headline for plot in plots(run_of([rows[name] for name in names]))}["claims-growth"]

    rows = {row["check"]: row for row in claim_rows()}
    wild = rows["growth-with-default-init"]
    none = "No measured initialisation is near 6.55 after 12 blocks; the nearest is "
    assert headline("scaled-init") == f"{none}scaled by 1/sqrt(2N) (0.83)"
    assert headline("scaled-init", wild["check"]) == "6.55 after 12 blocks is near Kaiming-normal weights (6.85) alone"
    wild["details"]["readings"].pop(0)
    assert headline(wild["check"]) == "6.55 after 12 blocks is near Kaiming-normal weights (6.85)"
    wild["details"]["readings"][0]["places"] = {"embedding": 0.8, "block 0": 7.3}
    assert headline(wild["check"]) == f"{none}Kaiming-normal weights (7.30)", "the largest is not the nearest"


def test_what_no_subject_can_change_is_said_to_be_and_counts_for_no_agreement():
    claimed = {"claimed": {"equals": 1.0}}
    alone = claim(
        "ratio", lesson="scaling", figure="1", found="holds", value=1.17, expected=claimed,
        details={"by": "arithmetic"},
    )  # fmt: skip
    rows = [*claim_rows(), alone]
    assert "| 1.17 (by arithmetic) | holds |" in text_of(rows)
    drawn = {plot.name: plot.headline for plot in plots(run_of(rows))}
    assert drawn["claims"] == "2 of 6 figures are as the lessons state them"


def test_a_size_is_escaped_in_the_description_of_a_figure():
    (row,) = [row for row in claim_rows() if row["check"] == "positions-cached"]
    row["details"]["readings"][0]["details"]["size"] = HOSTILE
    assert "<script" not in text_of([row])


def test_the_difference_is_that_of_the_claim_s_own_setting_and_only_of_positive_numbers():
    found = {each.name: difference(each) for each in claims_of(run_of(claim_rows()))}
    assert found["growth-with-default-init"] == pytest.approx(1.13 / 6.55 - 1)
    assert found["positions-cached"] == pytest.approx(0.09)
    assert found["usual-norms"] is found["cosine-reaches-2-0"] is found["logits-allclose"] is None


@pytest.fixture(scope="module")
def report(tmp_path_factory):
    """Write the report of the made-up ledger, and return its folder."""
    folder = tmp_path_factory.mktemp("report")
    write(folder, run("verify", [*claim_rows(), check()]), None)
    return folder


def test_every_file_is_linked_and_the_page_is_linked_from_the_index(report):
    names = {path.relative_to(report).as_posix() for path in report.rglob("*") if "claims" in path.name}
    assert {"claims.md", "tables/claims.csv", "plots/claims.png", "plots/claims-growth.svg"} <= names
    assert "[claims.md](claims.md)" in (report / "index.md").read_text(encoding="utf-8")
    links = set(re.findall(r"\]\(((?:tables|plots)/[^)]+)\)", (report / "claims.md").read_text(encoding="utf-8")))
    assert names == {*links, "claims.md"}


def test_a_new_report_replaces_the_files_of_the_old_one_and_a_run_without_claims_leaves_them(report, tmp_path):
    shutil.copytree(report, tmp_path, dirs_exist_ok=True)
    write(tmp_path, run("verify", [check()]), None)
    assert (tmp_path / "plots" / "claims.png").exists()
    write(tmp_path, run("verify", [*claim_rows()[:1], check()]), None)
    assert [path.name for path in (tmp_path / "plots").iterdir()] == []
    assert "Of 1 claim 1 holds." in (tmp_path / "claims.md").read_text(encoding="utf-8")


def test_the_table_has_a_row_for_each_claim_with_both_findings(report):
    with (report / "tables" / "claims.csv").open(encoding="utf-8", newline="") as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert len(rows) == 13
    assert (rows["initial-loss"]["measured"], rows["initial-loss"]["low"]) == ("10.9951", "10.957")
    assert (rows["attention-matrix"]["finding"], rows["attention-matrix"]["ledger"]) == ("does not hold", "holds")
    assert rows["growth-with-default-init"]["measured_elsewhere"] == "6.87"
    assert rows["exponent"]["missing"] == "a grid of training runs"
    assert rows["usual-norms"]["run"] == "lessons-20261127T100000Z.jsonl"


STRANGE = [None, HOSTILE, 3, True, [], {}, [HOSTILE], {HOSTILE: HOSTILE}, float("nan"), float("inf"), -1.0, 0]


@pytest.mark.parametrize("value", STRANGE, ids=lambda value: str(type(value).__name__))
def test_no_shape_of_a_record_breaks_the_page(value):
    rows = []
    for row in claim_rows():
        words = dict.fromkeys(("says", "expected", "finding", "level", "lesson"), value)
        rows.append({**row, "claim": {**row["claim"], **words}})
        rows.append({**row, "parameters": value, "details": {"readings": value}, "value": value, "check": value})
        for reading in row["details"].get("readings", []):
            for key in ("value", "places", "details", "unit", "setting"):
                rows.append({**row, "details": {"readings": [{**reading, key: value}]}})
            for key in ("spread", "curve", "run", "text", "step", "spacing", "about", "size"):
                details = {**reading["details"], key: value}
                rows.append({**row, "details": {"readings": [{**reading, "details": details}]}})
    found = run_of(rows)
    text = page(found, plots(found))
    assert "<script" not in text
    for table in re.findall(r"(?:^\|.*\|$\n)+", text, flags=re.MULTILINE):
        assert len({line.count("|") for line in table.splitlines()}) == 1
    assert all(plot.render() for plot in plots(found))


def test_claims_of_the_first_subject_are_shown_where_several_are_judged_side_by_side():
    twice = [claim("parameters", lesson="building", figure="1", found="holds", value=1, subject=name) for name in "ab"]
    assert len(claims_of(run_of(twice))) == 1
