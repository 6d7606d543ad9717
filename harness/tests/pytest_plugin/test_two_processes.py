"""What is small is judged by two processes, and the run is that of one."""

import os

import pytest

from harness.core.record_files import read

CHECK = """
[[check]]
name = "check-{number}"
measure = "parameter_count"
parameters = {{ size = "debug" }}
expect = {{ equals = {count} }}
why = "it is"
source = "closed form"
"""
COUNTS = [96_576, 96_576, 1, 96_576, 96_576, 2]  # the third and the last are wrong, on purpose
SUBJECT = """
import os, signal, time
from gpt import GPT as Reference

FIRST = os.getpid()
built = []

class GPT(Reference):
    def __init__(self, config):
        super().__init__(config)
        with open({pids!r}, "a") as file:
            file.write(f"{{os.getpid()}}\\n")
        {line}
"""

pytestmark = pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core only")


@pytest.fixture
def judge(pytester):
    """Run a suite of six checks on a subject whose constructor runs a line more; return the result and the records."""

    def run(line, *options):
        text = '[suite]\ntitle = "Small"\nabout = "Six checks."\n'
        text += "".join(CHECK.format(number=number, count=count) for number, count in enumerate(COUNTS))
        (pytester.mkdir("verifications") / "small.toml").write_text(text)
        pytester.makepyfile(mine=SUBJECT.format(pids=str(pytester.path / "pids"), line=line))
        result = pytester.runpytest_subprocess("--subject", "mine.py:GPT", *options)
        (path,) = (pytester.path / "reports" / "records").glob("verify-*.jsonl")
        # The first is forked to find out if the subject can be built.
        processes = (pytester.path / "pids").read_text().split()[1:]
        rows = [row for row in read(path) if row["kind"] == "record"]
        return result, [(row["check"], row["verdict"]) for row in rows], processes

    return run


EXPECTED = [(f"check-{number}", "pass" if count == 96_576 else "fail") for number, count in enumerate(COUNTS)]


def test_two_processes_judge_and_the_records_are_in_the_suite_s_order(judge):
    result, verdicts, processes = judge("time.sleep(0.3)", "--no-diagnosis")
    result.assert_outcomes(passed=4, failed=2)
    assert verdicts == EXPECTED
    assert len(set(processes)) == 2


def test_what_a_second_process_that_dies_has_not_judged_is_judged_all_the_same(judge):
    line = "os.getpid() != FIRST and os.kill(os.getpid(), signal.SIGKILL)"
    result, verdicts, _ = judge(line, "--no-diagnosis")
    result.assert_outcomes(passed=4, failed=2)
    assert verdicts == EXPECTED


def test_after_x_nothing_more_is_reported(judge):
    result, verdicts, _ = judge("time.sleep(0.3)", "--no-diagnosis", "-x")
    result.assert_outcomes(passed=2, failed=1)
    assert verdicts == EXPECTED[:3]


def test_what_a_subject_prints_is_shown_with_s_and_one_process_judges(judge):
    result, verdicts, processes = judge("print('built', flush=True)", "--no-diagnosis", "-s")
    result.stdout.fnmatch_lines(["*built*"])
    assert verdicts == EXPECTED
    assert len(set(processes)) == 1


def test_the_first_error_is_shown_in_full_though_the_second_process_found_it_first(judge):
    # The first build to be judged takes so long that the second process has found by then that no other succeeds.
    fine = "fine = built == [FIRST] or len(open(file.name).readlines()) == 1"
    line = f"built.append(os.getpid()); {fine}; time.sleep(2 * (built == [FIRST])); 1 / fine"
    result, verdicts, _ = judge(line, "--no-diagnosis")
    assert verdicts == [("check-0", "pass"), *((f"check-{number}", "error") for number in range(1, 6))]
    result.stdout.fnmatch_lines(["*check-1*", "*ZeroDivisionError: division by zero at mine.py:*", "*4 more not run:*"])
