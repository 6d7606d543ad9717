"""Training programs in a run: which checks are collected for which subject, and how they are judged and shown."""

import pytest

from harness.core.record_files import read
from harness.pytest_plugin.suites_of_run import row_of_crash
from harness.tests.training.tiny import script

SUITES = {
    "small": ("count", "parameter_count", '{ size = "debug" }', "{ equals = 96_576 }"),
    "training": ("groups", "times_in_groups", "{}", "{ equals = 1 }"),
}


def suite(name, measure, parameters, expect):
    return (
        f'[suite]\ntitle = "S"\nabout = "A"\n[[check]]\nname = "{name}"\nmeasure = "{measure}"\n'
        f'parameters = {parameters}\nexpect = {expect}\nwhy = "so"\nsource = "this test"\n'
    )


@pytest.fixture
def project(pytester, monkeypatch):
    """A folder with a suite for GPTs, one for training programs, and a right and a wrong training program."""
    folder = pytester.mkdir("verifications")
    for name, check in SUITES.items():
        (folder / f"{name}.toml").write_text(suite(*check))
    pytester.makepyfile(
        train=script(),
        half=script(replaced=[("AdamW(model.parameters()", "AdamW(model.hidden.parameters()")]),
        mine="from gpt import GPT, GPTConfig",
    )
    return pytester


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], ["small.toml::count", "training.toml::groups"]),
        (["--subject", "mine.py:GPT"], ["small.toml::count"]),
        (["--trainer", "train.py"], ["training.toml::groups"]),
        (["--subject", "mine.py:GPT", "--trainer", "train.py"], ["small.toml::count", "training.toml::groups"]),
        (
            ["--trainer", "train.py", "--trainer", "half.py"],
            ["training.toml::groups@train.py", "training.toml::groups@half.py"],
        ),
        (["-m", "debug"], ["small.toml::count", "training.toml::groups"]),
    ],
    ids=" ".join,
)
def test_checks_are_collected_for_the_subjects_that_are_named(project, arguments, expected):
    result = project.runpytest("--collect-only", "-q", *arguments)
    assert [line.removeprefix("verifications/") for line in result.outlines if "::" in line] == expected


def test_a_training_program_is_judged_recorded_and_diagnosed_with_its_line(project):
    named = suite("every-parameter-once", *SUITES["training"][1:])
    (project.path / "verifications" / "training.toml").write_text(named)
    result = project.runpytest("--trainer", "half.py", "--trainer", "train.py --flag")
    result.assert_outcomes(passed=1, failed=1)
    line = next(n for n, text in enumerate((project.path / "half.py").read_text().splitlines(), 1) if "AdamW(" in text)
    result.stdout.fnmatch_lines(
        [
            "*== diagnosis of half.py*",
            f"1. optimizer groups  half.py:{line}:  *AdamW(model.hidden.parameters()*",
            "   * parameters are in no group: *",
            "   this explains 1 of the 1 failures",
            f"look at    half.py:{line}",
            "run again  pytest verifications/training.toml::every-parameter-once --trainer half.py",
        ]
    )
    (path,) = (project.path / "reports" / "records").glob("verify-*.jsonl")
    rows = [row for row in read(path) if row["kind"] == "record"]
    assert [(row["subject"], row["verdict"]) for row in rows] == [("half.py", "fail"), ("train.py --flag", "pass")]
    (diagnosis,) = [row for row in read(path) if row["kind"] == "diagnosis"]
    assert diagnosis["subject"] == "half.py"


def test_a_mistake_that_two_rehearsals_show_explains_both_failures(project):
    """It explained one of them twice, and the other one was listed as what else fails."""
    text = suite("every-parameter-once", "times_in_groups", "{}", "{ equals = 1 }")
    text = text.replace("parameters = {}", 'matrix = { rehearsal = ["plain", "again"] }')
    (project.path / "verifications" / "training.toml").write_text(text)
    result = project.runpytest("--trainer", "half.py")
    result.stdout.fnmatch_lines(["   this explains 2 of the 2 failures"])
    result.stdout.no_fnmatch_line("*what else fails*")


DECLARED = '[[deviation]]\nchecks = ["training::groups"]\nreason = "the head is frozen"\n'


def test_what_a_training_program_declares_beside_its_file_is_no_failure(project):
    (project.path / "half.deviations.toml").write_text(DECLARED)
    result = project.runpytest("--trainer", "half.py --flag")
    result.stdout.fnmatch_lines(["half.py --flag: right except: training::groups (the head is frozen)", "*1 declared*"])
    assert result.ret == pytest.ExitCode.OK


def test_a_declaration_of_a_training_program_that_no_longer_applies_fails_the_run(project):
    (project.path / "train.deviations.toml").write_text(DECLARED)
    result = project.runpytest("--trainer", "train.py")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stdout.fnmatch_lines(["*train.deviations.toml:1: nothing that 'training::groups' names fails any more*"])


def test_a_deviation_of_gpts_is_none_of_a_training_program(project):
    (project.path / "train.deviations.toml").write_text('[[deviation]]\nwhat = "bias-free"\nreason = "so"\n')
    result = project.runpytest("--trainer", "train.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: *train.deviations.toml:1: a training program declares checks = *"])


def test_a_gpt_and_a_training_program_are_not_put_side_by_side(project):
    result = project.runpytest("--subject", "mine.py:GPT", "--trainer", "train.py")
    result.assert_outcomes(passed=2)
    result.stdout.fnmatch_lines(["small *1 pass*", "training *1 pass*"])
    assert "## Side by side" not in (project.path / "reports" / "index.md").read_text()


def test_a_training_program_that_does_not_exist_is_a_usage_error_of_one_line(project):
    result = project.runpytest("--trainer", "none.py")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --trainer none.py: none.py: no such file in *; give the path of a script"])


def test_deviations_of_a_training_program_alone_are_a_usage_error(project):
    result = project.runpytest("--trainer", "train.py", "--deviations", "some.toml")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --deviations FILE is of a GPT, and only a training program is named: *"])


def test_a_crash_in_a_check_of_a_training_program_is_recorded_as_its_own(project):
    config = project.parseconfigure("--subject", "mine.py:GPT", "--trainer", "train.py")
    for name, subject in (("training.toml::groups", "train.py"), ("small.toml::count", "mine.py:GPT")):
        row = row_of_crash(f"verifications/{name}", config)
        assert (row["subject"], row["verdict"]) == (subject, "error")


def test_a_program_that_hangs_is_told_in_full_once_and_not_run_again(project):
    (project.path / "verifications" / "twice.toml").write_text(suite("again", *SUITES["training"][1:]))
    ran = project.path / "ran.count"
    (project.path / "train.py").write_text(f"import time\nopen('{ran}', 'a').write('x')\ntime.sleep(60)")
    result = project.runpytest("--trainer", "train.py", "--full-failures", "--time-limit", "5")
    result.assert_outcomes(failed=2)
    message = "train.py: did not end within 5 s"
    result.stdout.fnmatch_lines([f"{message}*", "* (see again)"])
    assert ran.read_text() == "x", "once to find its options: what hangs there hangs in every rehearsal"


def test_a_program_that_fails_is_told_in_full_once(project):
    (project.path / "verifications" / "twice.toml").write_text(suite("again", *SUITES["training"][1:]))
    (project.path / "train.py").write_text("raise RuntimeError('out of data')")
    result = project.runpytest("--trainer", "train.py", "--full-failures")
    result.assert_outcomes(failed=2)
    message = "train.py fails in the rehearsal 'plain': RuntimeError: out of data at train.py:1 in <module>"
    result.stdout.fnmatch_lines([f"{message}*", f"{message}* (see again)"])
