"""A question that is asked in a forked process costs this one nothing."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.core.forked import answer_of_fork
from harness.tests.processes import is_running


@pytest.mark.usefixtures("many_descriptors")
def test_the_answer_comes_back_whatever_its_length():
    assert answer_of_fork(lambda: "long" * 100_000, 30.0) == "long" * 100_000


@pytest.mark.parametrize("question", [lambda: os._exit(7), lambda: 1 / 0, lambda: time.sleep(60)])
def test_no_answer_is_an_empty_one(question, capfd):
    began = time.monotonic()
    assert answer_of_fork(question, 1.0) == ""
    assert time.monotonic() - began < 30


@pytest.mark.parametrize(("then", "answer"), [(lambda: "right", "right"), (lambda: os._exit(7), "")])
def test_a_process_that_the_question_starts_and_leaves_behind_is_not_waited_for(tmp_path, then, answer):
    """It has the pipe, too, which therefore did not end: the run began a minute later."""
    pid = tmp_path / "pid"

    def question():
        if (left := os.fork()) == 0:
            time.sleep(20)
            os._exit(0)
        pid.write_text(str(left))
        return then()

    assert answer_of_fork(question, 60.0) == answer
    assert is_running(int(pid.read_text()))
    os.kill(int(pid.read_text()), signal.SIGKILL)


THREADS = """
import torch
torch.set_num_threads(2)
import harness.judging.runner
from harness.core.forked import threads_of_fork
from harness.measures.all_measures import measures
from harness.oracle.hugging_face import load_installed
measures(), load_installed()
print(threads_of_fork())
torch.ones(1 << 20).exp()
print(threads_of_fork())
"""


@pytest.mark.skipif((os.cpu_count() or 1) < 2, reason="one core")
def test_a_worker_has_every_thread_for_as_long_as_the_run_has_computed_nothing_with_them():
    """What the harness computed when it was imported had started OpenMP's threads: a forked worker hung."""
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    found = subprocess.run(
        [sys.executable, "-c", THREADS], env=environment, capture_output=True, text=True, check=True, timeout=120
    )
    assert found.stdout.split() == ["2", "1"]
