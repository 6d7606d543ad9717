"""A subject that ends the process costs one check, and a run that ends early is not green."""

import os
import signal
import sys
import textwrap

import pytest

from harness.core.record_files import read as records_of
from harness.tests.judging.naughty import AT, FORWARD, subject


def rows_of(project):
    (path,) = sorted((project.path / "reports" / "records").glob("verify-*.jsonl"))
    return [row for row in records_of(path) if row["kind"] == "record"]


@pytest.mark.parametrize(
    ("line", "option"),
    [
        ("os._exit(0)", ["--no-isolate"]),
        ("os._exit(7)", ["--no-isolate"]),
        ("os.execvp('true', ['true'])", ["--no-isolate"]),
        ("os._exit(0)", ["--no-isolate", "-n", "1"]),
        ("os.execvp('true', ['true'])", []),
    ],
)
def test_a_subject_that_ends_its_process_costs_one_check(project, line, option):
    """`os._exit(0)` in a forward pass once ended the run with status 0 and no verdict: green in CI."""
    subject(project.path, FORWARD, line)
    result = project.runpytest_subprocess(
        "--subject", "naughty.py:GPT", "-k", "counted or logits", "--no-diagnosis", *option
    )
    assert [row["verdict"] for row in rows_of(project)] == ["pass", "error"]
    result.stdout.fnmatch_lines([f"*naughty.py:{AT} in forward*", "=* 1 failed, 1 passed*"])
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    assert (project.path / "reports" / "index.md").exists()


@pytest.mark.parametrize("option", [["--no-isolate"], ["--no-isolate", "-n", "1"], []], ids=" ".join)
def test_a_subject_whose_library_ends_the_process_loses_nothing_that_was_measured(project, option):
    """Alone in the run's own process there is nobody left to write a report; the records are there."""
    subject(project.path, FORWARD, "ctypes.CDLL(None)._exit(7)")
    result = project.runpytest_subprocess(
        "--subject", "naughty.py:GPT", "-k", "counted or logits", "--no-diagnosis", *option
    )
    rows = rows_of(project)
    assert (rows[0]["check"], rows[0]["verdict"]) == ("counted", "pass")
    if option != ["--no-isolate"]:
        assert [row["verdict"] for row in rows] == ["pass", "error"]
        result.stdout.fnmatch_lines(["=* 1 failed, 1 passed*"])
        assert (project.path / "reports" / "index.md").exists()


@pytest.mark.parametrize("option", [["--no-isolate"], ["-n", "1"], []], ids=" ".join)
def test_a_subject_that_ends_the_process_at_import_is_an_error_in_one_line(project, option):
    (project.path / "gone.py").write_text("import os\nos._exit(0)\n")
    result = project.runpytest_subprocess("--subject", "gone.py:GPT", *option)
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --subject gone.py:GPT: *gone.py:2*"])


@pytest.mark.parametrize("status", [0, 256])  # the exit status of a process is the low byte
def test_a_run_that_a_thread_of_the_subject_ends_is_not_green(project, status):
    line = f"t = threading.Thread(target=os._exit, args=({status},)); t.start(); t.join()"
    subject(project.path, FORWARD, f"import threading; {line}")
    result = project.runpytest_subprocess("--subject", "naughty.py:GPT", "--no-isolate")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR
    result.stderr.fnmatch_lines([f"gpt-harness: os._exit({status}) at * the run had not finished"])


def test_a_run_that_a_thread_replaces_by_another_program_is_not_green(project):
    line = "t = threading.Thread(target=os.execv, args=('/bin/true', ['true'])); t.start(); t.join()"
    subject(project.path, FORWARD, f"import threading; {line}")
    result = project.runpytest_subprocess("--subject", "naughty.py:GPT", "--no-isolate")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR


HANDLERS = ["lambda: os._exit(0)", "os._exit, 0", "os._exit, numpy.int64(0)", "os.execv, '/bin/true', ['true']"]


@pytest.mark.parametrize("handler", HANDLERS)
def test_an_exit_handler_of_the_subject_does_not_hide_that_the_run_failed(project, handler):
    subject(project.path, FORWARD, f"import atexit; atexit.register({handler}); raise ValueError('no')")
    result = project.runpytest_subprocess("--subject", "naughty.py:GPT", "--no-diagnosis", "--no-isolate")
    assert result.ret == pytest.ExitCode.TESTS_FAILED
    result.stderr.fnmatch_lines(["gpt-harness: os.* the run failed"])
    result.stderr.no_fnmatch_line("*Traceback*")


def test_a_run_that_ends_between_two_checks_is_not_green(project):
    """As by a signal handler of the subject's that calls pytest.exit."""
    project.makeconftest("import pytest\ndef pytest_runtest_teardown(): pytest.exit('bye', returncode=0)")
    subject(project.path, FORWARD, "pass")
    result = project.runpytest_subprocess("--subject", "naughty.py:GPT")
    assert result.ret == pytest.ExitCode.INTERNAL_ERROR


@pytest.mark.parametrize("line", ["os.execv('/bin/true', ['true'])", "os._exit(0)"])
def test_inspect_says_that_a_subject_would_have_ended_it(project, line):
    subject(project.path, FORWARD, line)
    result = project.run(sys.executable, "-m", "harness.cli", "inspect", "naughty.py:GPT")
    assert result.ret == 1
    result.stdout.fnmatch_lines(["*would have ended the process*"])


CATCHES_EVERYTHING = "while True:\n    try: time.sleep(0.01)\n    except BaseException: pass"
IS_IN_C = "sum(itertools.repeat(0))"


@pytest.mark.parametrize(
    ("line", "option"),
    [
        (CATCHES_EVERYTHING, ["--no-isolate"]),
        (IS_IN_C, ["--no-isolate"]),
        (IS_IN_C, []),
    ],
)
def test_a_subject_that_cannot_be_interrupted_costs_a_check_or_the_run_and_not_the_records(project, line, option):
    """Not in the first calls, by which it is found out if it can be read at all. The run hung for ever."""
    head = "import itertools, signal, time, gpt\n"
    head += "class GPT(gpt.GPT):\n    def forward(self, idx, targets=None, **options):\n"
    body = f"if idx.shape != (2, 4):\n{textwrap.indent(line, '    ')}\nreturn super().forward(idx, targets, **options)"
    (project.path / "hangs.py").write_text(head + textwrap.indent(body, " " * 8))
    result = project.runpytest_subprocess("--subject", "hangs.py:GPT", "--time-limit", "6", *option)
    rows = rows_of(project)
    if option:
        assert (result.ret, [row["verdict"] for row in rows]) == (-signal.SIGKILL, ["pass"])
        result.stderr.fnmatch_lines(
            ["gpt-harness: no answer within 6 s, and what runs cannot be interrupted: it is at *"]
        )
        return
    assert (result.ret, [row["verdict"] for row in rows]) == (pytest.ExitCode.TESTS_FAILED, ["pass", *["error"] * 4])
    assert "did not answer within 6 s: it was at hangs.py:" in rows[1]["message"]


@pytest.mark.parametrize("option", [["--no-isolate"], []], ids=" ".join)
def test_a_process_that_a_subject_forks_does_not_judge(project, monkeypatch, option):
    """Isolated, it once answered beside its parent: every answer was taken for the next question's."""
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # with more threads the child hangs in OpenMP
    doubled_gradients = "None if loss is None else 2 * loss - loss.detach()"  # seen by the last check alone
    line = (
        "if not KEPT: KEPT.append(os.fork())\n"
        "logits, loss = super().forward(idx, targets, **options)\n"
        f"return logits, {doubled_gradients}"
    )
    subject(project.path, FORWARD, line)
    result = project.runpytest_subprocess("--subject", "naughty.py:GPT", "--no-diagnosis", *option)
    assert [row["verdict"] for row in rows_of(project)] == ["pass", "pass", "pass", "pass", "fail"]
    assert result.ret == pytest.ExitCode.TESTS_FAILED


def test_a_process_that_a_subject_forks_may_exit_as_it_likes(project):
    line = "child = os.fork()\nif child == 0: os._exit(0)\nassert os.waitpid(child, 0)[1] == 0"
    subject(project.path, FORWARD, line)
    project.runpytest_subprocess("--subject", "naughty.py:GPT", "--no-diagnosis").assert_outcomes(passed=5)


def test_a_run_that_passed_leaves_no_descriptor_open(project):
    """The guard's copy of standard error stayed: a process of a thousand runs had a thousand."""
    project.runpytest("-k", "counted")  # what is imported once may stay open
    before = len(os.listdir("/dev/fd"))
    assert project.runpytest("-k", "counted").ret == 0
    assert len(os.listdir("/dev/fd")) == before
