"""Two processes answer what one was asked, and whatever happens to the second, no answer is lost."""

import os
import signal
import subprocess
import sys
import time

import pytest

from harness.core.second_process import SecondProcess, second_process
from harness.tests.processes import ends

QUESTIONS = ("a", "b", "c", "d", "e", "f")


@pytest.fixture
def begun():
    """Start a second process, and end it after the test."""
    started = []

    def begin(answer, **patience):
        started.append(SecondProcess(QUESTIONS, answer, **patience))
        return started[0]

    yield begin
    started[0].close()


def asked(second, here=lambda question: f"{question} here"):
    """Ask every question in order; what the second process does not answer is answered here."""
    return [found if (found := second.answer(question)) is not None else here(question) for question in QUESTIONS]


@pytest.mark.usefixtures("many_descriptors")
def test_the_second_begins_with_the_last_question_and_none_is_answered_twice(begun):
    second = begun(lambda question: time.sleep(0.2) or f"{question} there")

    def here(question):
        time.sleep(0.2)
        return f"{question} here"

    answers = asked(second, here)
    assert [answer[0] for answer in answers] == list(QUESTIONS)
    places = [answer[2:] for answer in answers]
    assert places == sorted(places)  # all that are answered here come before all that are answered there
    assert set(places) == {"here", "there"}


def test_an_answer_longer_than_a_pipe_holds_does_not_stop_it(begun):
    second = begun(lambda question: question * 200_000)
    time.sleep(0.5)  # nobody asks meanwhile
    assert [len(answer) for answer in asked(second)[1:]] == [200_000] * 5


def test_the_questions_of_a_second_process_that_dies_are_answered_here(begun):
    second = begun(lambda question: os.kill(os.getpid(), signal.SIGKILL))
    assert asked(second) == [f"{question} here" for question in QUESTIONS]


def test_a_second_process_that_raises_is_no_loss(begun):
    second = begun(lambda question: {"f": "f there"}[question])
    time.sleep(0.5)
    assert asked(second) == [*[f"{question} here" for question in QUESTIONS[:5]], "f there"]


def test_a_second_process_that_hangs_is_waited_for_no_longer_than_allowed(begun):
    second = begun(lambda question: time.sleep(1000), patience=1.0)
    time.sleep(0.5)
    started = time.monotonic()
    assert asked(second) == [f"{question} here" for question in QUESTIONS]
    assert time.monotonic() - started < 10


def test_a_child_of_the_second_process_does_not_keep_this_one_waiting(begun):
    def answer(question):
        if os.fork() == 0:
            time.sleep(5)
        os._exit(0)

    assert asked(begun(answer)) == [f"{question} here" for question in QUESTIONS]


def test_a_child_of_the_second_process_answers_nothing(begun):
    """Its parent has ended, and all that is left was answered by the child."""

    def answer(question):
        if (child := os.fork()) != 0:
            os.waitpid(child, 0)
            os._exit(0)
        return f"{question} from the child"

    second = begun(answer)
    time.sleep(0.5)
    assert asked(second) == [f"{question} here" for question in QUESTIONS]


def test_the_second_process_ends_with_the_first(tmp_path):
    program = f"""
import os, time
from harness.core.second_process import SecondProcess
def answer(question):
    open({str(tmp_path / "pid")!r}, "w").write(str(os.getpid()))
    time.sleep(1000)
SecondProcess(["a", "b"], answer)
while not os.path.exists({str(tmp_path / "pid")!r}) or not open({str(tmp_path / "pid")!r}).read():
    time.sleep(0.1)
os.kill(os.getpid(), 9)
"""
    subprocess.run([sys.executable, "-c", program], check=False)
    process = int((tmp_path / "pid").read_text())
    assert ends(process)


def test_one_core_gets_no_second_process(monkeypatch):
    monkeypatch.setattr("harness.core.second_process.cores", lambda: 1)
    assert second_process(QUESTIONS, str.upper, None) is None
