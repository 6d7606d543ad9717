"""A run that is cut short says so: -x, two Ctrl-C, a deleted folder, a full disk, and checks that are all skipped."""

import shutil

import pytest

from harness.core.record_files import RecordWriter, read
from harness.tests.pytest_plugin.small_suite import records

MINE = """
from gpt import *

class Mine(GPT):
    built = 0

    def __init__(self, config, **options):
        Mine.built += 1
        if Mine.built > 1:
            {second}
        super().__init__(config, **options)
"""


def test_a_run_that_stops_at_the_first_failure_is_not_complete(project):
    result = project.runpytest("-x")
    result.assert_outcomes(passed=1, failed=1)
    assert not records(project)[-1]["complete"]
    assert (
        "Interrupted: 2 checks were recorded. 1 of them did not pass."
        in (project.path / "reports" / "index.md").read_text()
    )


def test_a_second_ctrl_c_before_pytest_has_noted_the_first_does_not_make_a_run_complete(project):
    """pytest sets its exit status after its hooks for Ctrl-C; a second one in a hook left it at 0."""
    project.makepyfile(mine=MINE.format(second="raise KeyboardInterrupt"))
    project.makeconftest("def pytest_keyboard_interrupt(excinfo): raise KeyboardInterrupt")
    result = project.runpytest_subprocess("--subject", "mine.py:Mine")
    assert result.ret != 0
    assert not records(project)[-1]["complete"]


def test_records_that_a_subject_deletes_are_written_again(project):
    project.makepyfile(mine="import shutil\n" + MINE.format(second="shutil.rmtree('reports')"))
    result = project.runpytest("--subject", "mine.py:Mine", "-k", "right or wrong")
    _, *rows, footer = records(project)
    assert [row["check"] for row in rows] == ["right", "wrong"]
    assert footer["complete"]
    result.stdout.fnmatch_lines(["*was deleted during the run; it is written again"])


def test_a_disk_that_is_full_when_the_diagnosis_is_written_costs_no_summary(project, monkeypatch):
    project.makeini("[pytest]")  # with a diagnosis
    write = RecordWriter.write

    def full(self, row):
        if row.get("kind") == "diagnosis":
            raise OSError(28, "No space left on device")
        write(self, row)

    monkeypatch.setattr(RecordWriter, "write", full)
    project.makepyfile(mine="from gpt import *\nclass Mine(GPT): ...\n")
    result = project.runpytest("--subject", "mine.py:Mine", "-k", "wrong")
    result.stdout.fnmatch_lines(["*what fails*", "a record was not written: *No space left on device*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_in_which_every_check_is_skipped_is_no_success(project):
    result = project.runpytest("-k", "lacking")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["nothing was judged: every check was skipped (exit status 5)"])


def test_a_record_file_that_is_gone_is_the_same_once_it_is_written_again(tmp_path):
    from harness.pytest_plugin.record_writer import RunWriter

    writer = RunWriter(RecordWriter(tmp_path / "records" / "verify-1.jsonl", {"run": "verify"}), [])
    writer.write({"kind": "record", "verdict": "pass"})
    before = read(writer.recorder.path)
    assert not writer.restore()
    shutil.rmtree(tmp_path / "records")
    assert writer.restore()
    assert read(writer.recorder.path) == before


@pytest.mark.parametrize("option", ["--time-limit=-1", "--time-limit=nan", "--time-limit=1e300", "--memory-limit=nan"])
def test_a_limit_that_is_none_is_a_usage_error(project, option):
    result = project.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*{option.partition('=')[0]}: found '{option.partition('=')[2]}', expected *between*"]
    )
