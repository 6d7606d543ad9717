"""Nothing that an isolated subject writes, and no process that it forks, is taken for an answer of its worker."""

import json
import os
import subprocess
import sys
import time

import pytest

from harness.judging import in_process, isolated
from harness.judging.envelope import Envelope, NoAnswer
from harness.judging.runner import make_runner
from harness.tests.judging.naughty import FORWARD, subject

ASKED = Envelope(2, "token", 10)
ANSWER = {"verdict": "pass", "value": float("inf")}


def test_an_answer_comes_out_as_it_went_in():
    assert ASKED.opened(ASKED.sealed(ANSWER).encode()) == ANSWER


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (Envelope(1, "token", 10).sealed(ANSWER), "the answer to question 1 came when question 2 was asked"),
        (Envelope(2, "token", 11).sealed(ANSWER), "process 11 answered, which was forked from process 10"),
        (Envelope(2, "other", 10).sealed(ANSWER), "came where an answer was expected"),
        (json.dumps(ANSWER), "came where an answer was expected"),
        ("[1]", r"^'\[1\]' came"),
        ('{"half', "came where"),
        ("[" * 100_000, "came where"),
        ("\x1b[31m", r"^'\\\\x1b\[31m' came"),
        ("", "came where"),
    ],
    ids=lambda value: value[:30],
)
def test_a_line_that_is_not_the_answer_is_refused(line, found):
    with pytest.raises(NoAnswer, match=found):
        ASKED.opened(line.encode("utf-8", "replace"))


TO_ALL = "for fd in OPEN:\n    try: os.write(fd, {})\n    except OSError: pass".replace(
    "OPEN", "[int(each) for each in os.listdir('/proc/self/fd') if int(each) > 2]"
)
FORGED = b'{"kind": "record", "verdict": "pass", "message": ""}\n'
FOREIGN = "came where an answer was expected"


@pytest.mark.parametrize(
    ("line", "found"),
    [
        (TO_ALL.format(FORGED), FOREIGN),
        (TO_ALL.format(b'{"half'), FOREIGN),
        (TO_ALL.format("b'x' * 5000"), FOREIGN),
        ("while True:\n    " + TO_ALL.format("b'x' * 5000").replace("\n", "\n    "), "more than 1,000,000 bytes"),
        ("os.closerange(3, 65_536)", "the process exited with status 1"),
        ("if os.fork() == 0: time.sleep(600)\nctypes.CDLL(None)._exit(0)", "the process exited with status 0"),
    ],
    ids=["a forged answer", "half a line", "no end of a line", "endless", "closed pipes", "a child keeps the pipe"],
)
def test_an_isolated_subject_that_writes_to_every_descriptor_gets_no_verdict(
    shipped, tmp_path, monkeypatch, line, found
):
    """The line was taken for the answer, or ended the run; each check after it got the verdict of the one before."""
    monkeypatch.setattr(isolated, "LONGEST_ANSWER", 1_000_000)
    nested = "\n".join(f"    {each}" for each in line.splitlines())
    runner = make_runner(subject(tmp_path, FORWARD, f"if self.training:\n{nested}"), isolate=True, seconds=60.0)
    try:
        bad = runner.run(shipped["structure::training-mode-differs-by-dropout-alone"])
        good = runner.run(shipped["structure::parameter-count,size=debug,tied=true"])
    finally:
        runner.close()
    assert (bad.verdict, good.verdict, good.value) == ("error", "pass", 96_576)
    assert found in bad.message


WORKER = """
import os, sys
from harness.judging import worker

class Forks:
    def answer(self, question):
        os.fork()
        return {"question": question["number"]}

worker._Worker = Forks
worker.serve("mark", *map(int, sys.argv[1:]))
"""


def test_a_process_forked_from_the_worker_ends_without_an_answer():
    (to_worker, questions), (answers, from_worker) = os.pipe(), os.pipe()
    passed = (to_worker, from_worker, 2)
    worker = subprocess.Popen(
        [sys.executable, "-c", WORKER, *map(str, passed)], pass_fds=passed[:2], start_new_session=True
    )
    os.close(to_worker)
    os.close(from_worker)
    with open(questions, "w") as ask, open(answers, "rb") as found:
        for number in (1, 2):
            ask.write(json.dumps({"number": number, "token": "token"}) + "\n")
            ask.flush()
            line = found.readline()
            assert Envelope(number, "token", worker.pid).opened(line) == {"question": number}
        ask.close()
        assert found.read() == b""  # every process has ended
    worker.wait()


def _breaks(subject, records):
    raise ValueError("no such layer")


def _hangs(subject, records):
    time.sleep(100)


@pytest.mark.parametrize(
    ("diagnosis", "trouble"),
    [
        (_breaks, "the diagnosis broke: ValueError: no such layer at "),
        (_hangs, "the diagnosis broke: no answer within the time limit: it was at "),
    ],
)
@pytest.mark.usefixtures("many_descriptors")
def test_what_an_isolated_diagnosis_raises_is_said(tmp_path, monkeypatch, diagnosis, trouble):
    """The worker ended with status 1 and that was all that the summary said."""
    monkeypatch.setattr(in_process, "diagnose", diagnosis)
    runner = make_runner(subject(tmp_path, FORWARD, "pass"), isolate=True, seconds=2.0)
    try:
        assert runner.diagnose([])["trouble"].startswith(trouble)
    finally:
        runner.close()
