"""Several subjects in one run: every check on each, shown side by side."""

import pytest

from harness.core.record_files import read

SUITE = """\
[suite]
title = "Small"
about = "Two checks."

[[check]]
name = "count"
measure = "parameter_count"
parameters = { size = "debug" }
expect = { equals = 96_576 }
why = "it is"
source = "closed form"

[[check]]
name = "parity"
measure = "parity"
parameters = { size = "debug" }
matrix = { compare = ["blocks", "logits"] }
expect = { noise = "rounding" }
why = "it is to be GPT-2"
source = "this test"
"""
BOTH = ["--subject", "right.py:GPT", "--subject", "wrong.py:GPT"]


@pytest.fixture
def project(pytester):
    """A folder with one suite and two subjects."""
    (pytester.mkdir("verifications") / "small.toml").write_text(SUITE)
    pytester.makeini("[pytest]\naddopts = --no-diagnosis")
    pytester.makepyfile(
        right="from gpt import GPT, GPTConfig",
        wrong="""
        import gpt
        from gpt import GPTConfig

        class GPT(gpt.GPT):
            def forward(self, idx, targets=None, **options):
                logits, loss = super().forward(idx, targets, **options)
                return logits * 1.01, loss
        """,
    )
    return pytester


def rows_of(project):
    path = sorted((project.path / "reports" / "records").glob("verify-*.jsonl"))[-1]
    return [row for row in read(path) if row["kind"] == "record"]


@pytest.mark.parametrize("workers", [["--no-isolate"], ["-n", "2"], []], ids=" ".join)
def test_each_check_is_judged_on_each_subject_and_told_side_by_side(project, workers):
    result = project.runpytest(*BOTH, *workers)
    result.assert_outcomes(passed=5, failed=1)
    found = {(row["subject"], row["id"].partition("::")[2]): row["verdict"] for row in rows_of(project)}
    assert len(found) == 6
    assert [key for key, verdict in found.items() if verdict == "fail"] == [
        ("wrong.py:GPT", "parity,compare=logits@wrong.py:GPT")
    ]
    result.stdout.fnmatch_lines(
        [
            "  *right.py:GPT  wrong.py:GPT",
            "small  *pass  *1 fail",
            "small/parity  *pass  *1 fail",
            "*what fails in wrong*",
        ]
    )
    page = (project.path / "reports" / "index.md").read_text()
    assert "|  | `right.py:GPT` | `wrong.py:GPT` |" in page
    assert "| `small/parity` | 2 pass | **1 fail**, 1 pass |" in page.replace(
        "1 pass, **1 fail**", "**1 fail**, 1 pass"
    )


def test_one_subject_alone_keeps_the_plain_names(project):
    project.runpytest("--subject", "right.py:GPT")
    assert {row["id"] for row in rows_of(project)} == {
        "verifications/small.toml::count",
        "verifications/small.toml::parity,compare=blocks",
        "verifications/small.toml::parity,compare=logits",
    }


def test_last_failed_and_a_selection_by_subject_work(project):
    project.runpytest(*BOTH)
    again = project.runpytest(*BOTH, "--lf")
    again.assert_outcomes(failed=1)
    project.runpytest(*BOTH, "-k", "wrong and count").assert_outcomes(passed=1, deselected=5)
    one = "verifications/small.toml::parity,compare=logits@wrong.py:GPT"
    project.runpytest(*BOTH, one).assert_outcomes(failed=1)


def test_the_command_of_a_failure_is_of_its_own_subject_alone(project):
    project.runpytest(*BOTH)
    (rerun,) = (row["rerun"] for row in rows_of(project) if row["verdict"] == "fail")
    assert rerun == "pytest verifications/small.toml::parity,compare=logits --subject wrong.py:GPT"
    project.runpytest(*rerun.split()[1:]).assert_outcomes(failed=1)


def test_a_subject_that_is_named_twice_is_judged_once(project):
    project.runpytest(*BOTH[:2], *BOTH[:2]).assert_outcomes(passed=3)


def test_one_subject_that_cannot_be_had_ends_the_run_in_a_line(project):
    result = project.runpytest(*BOTH, "--subject", "missing.py:GPT")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --subject missing.py:GPT: missing.py is not a file*"])


def test_one_file_of_deviations_is_not_for_several_subjects(project):
    result = project.runpytest(*BOTH, "--deviations", "some.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
