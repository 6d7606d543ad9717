"""A run that is cut short says so: -x, two Ctrl-C, a deleted folder, a full disk, and checks that are all skipped."""

import shutil

import pytest

from harness.core.record_files import RecordWriter, read
from harness.pytest_plugin.session import Session
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
    result = project.runpytest_subprocess("--subject", "mine.py:Mine", "--no-isolate")
    assert result.ret != 0
    assert not records(project)[-1]["complete"]


@pytest.mark.parametrize("where", ["harness.report.write_latest", "harness.pytest_plugin.session.Session._close"])
def test_ctrl_c_while_a_run_ends_costs_no_more_than_the_report(project, where):
    """It was a traceback in place of the summary, and a run without a footer."""
    module, _, name = where.rpartition(".")
    owner, of = (module.rpartition(".")[0], "session.Session") if "Session" in module else (module, "report")
    project.makeconftest(
        f"""
import os, signal
from {owner.rpartition(".")[0]} import {owner.rpartition(".")[2]}
original = {of}.{name}
def interrupted(*arguments, **keywords):
    os.kill(os.getpid(), signal.SIGINT)
    return original(*arguments, **keywords)
{of}.{name} = interrupted
"""
    )
    result = project.runpytest_subprocess("-k", "right")
    assert result.ret == pytest.ExitCode.INTERRUPTED
    assert "complete" in records(project)[-1]
    result.stdout.fnmatch_lines(["*the report was not written (Ctrl-C)*"])
    result.stderr.no_fnmatch_line("*Traceback*")


def test_records_that_a_subject_deletes_are_written_again(project):
    project.makepyfile(mine="import shutil\n" + MINE.format(second="shutil.rmtree('reports')"))
    result = project.runpytest("--subject", "mine.py:Mine", "-k", "right or wrong")
    _, *rows, footer = records(project)
    assert [row["check"] for row in rows] == ["right", "wrong"]
    assert footer["complete"]
    result.stdout.fnmatch_lines(["*was deleted during the run; it is written again"])


# In a process of its own: in this one the judge might take the replacement for the original, and the original later on
# for what a subject put in its place.
FULL_DISK = """
from harness.core.record_files import RecordWriter
original = RecordWriter.{method}

def full(self, row):
    if {full}:
        raise OSError(28, "No space left on device")
    return original(self, row)

RecordWriter.{method} = full
"""


def test_a_disk_that_is_full_when_the_diagnosis_is_written_costs_no_summary(project):
    project.makeini("[pytest]")  # with a diagnosis
    project.makeconftest(FULL_DISK.format(method="write", full="row.get('kind') == 'diagnosis'"))
    project.makepyfile(mine="from gpt import *\nclass Mine(GPT): ...\n")
    result = project.runpytest_subprocess("--subject", "mine.py:Mine", "-k", "wrong")
    result.stdout.fnmatch_lines(["*what fails*", "a record was not written: *No space left on device*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_run_in_which_every_check_is_skipped_is_no_success(project):
    result = project.runpytest("-k", "lacking")
    assert result.ret == pytest.ExitCode.NO_TESTS_COLLECTED
    result.stdout.fnmatch_lines(["nothing was judged: every check was skipped (exit status 5)"])


def test_a_record_file_that_is_gone_is_the_same_once_it_is_written_again(tmp_path):
    from harness.pytest_plugin.record_writer import RunWriter

    # What the session collects may be of two runs: the rows of the other belong in the other's file.
    writer = RunWriter(RecordWriter(tmp_path / "records" / "verify-1.jsonl", {"run": "verify"}), [{"kind": "other"}])
    writer.write({"kind": "record", "verdict": "pass"})
    before = read(writer.recorder.path)
    assert not writer.restore()
    shutil.rmtree(tmp_path / "records")
    assert writer.restore()
    assert read(writer.recorder.path) == before


def test_ctrl_c_between_two_lines_ends_the_run_as_interrupted(project):
    """Python 3.11 then has an entry without a line in the traceback, over which pytest broke: exit status 1."""
    project.makeconftest(
        "import sys, types\n"
        "def pytest_runtest_call(item):\n"
        "    nowhere = types.TracebackType(None, sys._getframe(), 10**6, -1)\n"
        "    assert nowhere.tb_lineno is None\n"
        "    raise KeyboardInterrupt().with_traceback(nowhere)\n"
    )
    result = project.runpytest_subprocess()
    assert result.ret == pytest.ExitCode.INTERRUPTED
    result.stdout.no_fnmatch_line("*TypeError*")


@pytest.mark.parametrize("option", ["--time-limit=-1", "--time-limit=nan", "--time-limit=1e300", "--memory-limit=nan"])
def test_a_limit_that_is_none_is_a_usage_error(project, option):
    result = project.runpytest(option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(
        [f"*{option.partition('=')[0]}: found '{option.partition('=')[2]}', expected *between*"]
    )


@pytest.mark.parametrize("workers", [(), ("-n", "1")])
def test_a_run_that_stops_after_its_last_check_and_before_other_tests_is_not_complete(project, workers):
    """As a benchmark with -x: its comparisons are no checks, and every check was judged."""
    (project.path / "zz_test.py").write_text("def test_later(): ...")
    project.runpytest_subprocess("-x", "-k", "right or wrong or later", *workers, "verifications", "zz_test.py")
    _, *rows, footer = records(project)
    assert [row["check"] for row in rows] == ["right", "wrong"]
    assert not footer["complete"]


def test_after_ctrl_c_nothing_is_diagnosed_also_if_pytest_has_not_noted_it(project):
    """A second Ctrl-C in a hook of the first left pytest's exit status at 0, and the diagnosis began."""
    project.makeini("[pytest]")  # with a diagnosis
    project.makeconftest(
        "def pytest_runtest_teardown(item):\n"  # of the last one: that not all were judged would be a reason, too
        "    if 'lacking' in item.name: raise KeyboardInterrupt\n"
        "def pytest_keyboard_interrupt(excinfo): raise KeyboardInterrupt\n"
    )
    project.runpytest_subprocess("--subject", "gpt:GPT")
    _, *rows, footer = records(project)
    assert [row["kind"] for row in rows] == ["record"] * 3
    assert not footer["complete"]


def test_ctrl_c_in_the_diagnosis_costs_neither_footer_nor_report(project, monkeypatch):
    project.makeini("[pytest]")  # with a diagnosis

    def interrupted(self):
        raise KeyboardInterrupt

    monkeypatch.setattr(Session, "_diagnose", interrupted)
    result = project.runpytest(no_reraise_ctrlc=True)
    assert result.ret == pytest.ExitCode.INTERRUPTED
    footer = records(project)[-1]
    assert (footer["kind"], footer["counts"], footer["complete"]) == (
        "footer",
        {"pass": 1, "fail": 1, "skip": 1},
        False,
    )
    assert (project.path / "reports" / "index.md").exists()
    result.stdout.fnmatch_lines(["*what fails*", "the diagnosis was interrupted (Ctrl-C)*"])


def test_one_file_that_cannot_be_closed_costs_not_the_footer_of_the_other(project):
    """A session may write two files: a verification and a benchmark."""
    project.makeconftest(
        "import pytest\n"
        "from harness.pytest_plugin.session import write_benchmark\n"
        "@pytest.hookimpl(tryfirst=True)\n"
        "def pytest_runtest_setup(item):\n"
        "    write_benchmark(item.config, {'kind': 'comparison'})\n"
        + FULL_DISK.format(method="close", full="'bench' in self.path.name")
    )
    result = project.runpytest_subprocess()
    assert records(project)[-1]["kind"] == "footer"
    result.stdout.fnmatch_lines(["*bench-*.jsonl has no footer, as if the run had been killed: *No space left*"])


def test_a_disk_that_is_full_from_the_start_leaves_no_file_and_costs_no_verdict(project):
    """Each record opened another file, and left it empty: a hundred of them."""
    project.makeini("[pytest]")  # with a diagnosis
    project.makeconftest(FULL_DISK.format(method="_write", full="True"))
    result = project.runpytest_subprocess()
    assert list((project.path / "reports" / "records").iterdir()) == []
    result.assert_outcomes(passed=1, failed=1, skipped=1)
    result.stdout.fnmatch_lines(["*what fails*", "a record was not written: *No space left on device*"])


@pytest.mark.parametrize(("method", "full"), [("_write", "True"), ("write", "True"), ("close", "True")])
def test_a_run_whose_records_are_not_all_written_is_not_green(project, method, full):
    """It said so, and exited with 0."""
    project.makeconftest(FULL_DISK.format(method=method, full=full))
    result = project.runpytest_subprocess("-k", "right")
    result.assert_outcomes(passed=1)
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stdout.fnmatch_lines(["*: *No space left on device*"])


def test_a_record_that_does_not_fit_on_the_disk_leaves_no_half_of_it(tmp_path):
    """Half a line, and the next line behind it, made the whole file unreadable."""
    import resource
    import signal

    writer = RecordWriter(tmp_path / "verify-1.jsonl", {"run": "verify"})
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (500, before[1]))
        with pytest.raises(OSError, match="File too large"):
            writer.write({"kind": "record", "verdict": "fail", "message": "x" * 9000})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)
    writer.write({"kind": "record", "verdict": "pass"})
    writer.close({})
    assert [row.get("verdict") for row in read(writer.path)] == [None, "pass", None]
    assert read(writer.path)[-1]["counts"] == {"pass": 1}
    assert "xx" not in writer.path.read_text()
