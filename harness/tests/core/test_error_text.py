"""Exceptions of other people's code are described in one line that can be printed."""

import os
import signal

import pytest

from harness.core.error_text import describe_error, describe_exit, describe_refusal


class ExitsError(Exception):
    def __str__(self):
        raise SystemExit(0)


@pytest.mark.parametrize(
    ("message", "shown"),
    [
        ("\x1b[2J\x1b]0;title\x07", r"\x1b[2J\x1b]0;title\x07"),
        ("user\u202egnp.exe", r"user\u202egnp.exe"),
        ("two\nlines\tand a tab", "two lines and a tab"),
        ("grüße, 漢字", "grüße, 漢字"),
    ],
    ids=["a terminal's commands", "the direction of text", "lines", "other letters"],
)
def test_characters_that_steer_a_terminal_are_shown_as_escapes(message, shown):
    assert describe_error(ValueError(message)) == f"ValueError: {shown}"


def test_a_message_that_exits_ends_nothing():
    assert describe_error(ExitsError()) == "ExitsError: (its message cannot be shown: SystemExit)"


def test_a_process_that_a_message_forks_does_not_go_on():
    """It went on with the run, beside the process that it was forked from."""
    forked = []

    class ForksError(Exception):
        def __str__(self):
            forked.append(os.fork())
            return "no"

    process = os.getpid()
    try:
        assert describe_error(ForksError()) == "ForksError: no"
        assert os.getpid() == process
    finally:
        if os.getpid() != process:  # else the child goes on with the tests
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(forked[0], 0)[1]) == -signal.SIGKILL


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (3, "exited with status 3"),
        (-15, "ended with SIGTERM"),
        (-9, "SIGKILL (out of memory"),
        (-14, "SIGALRM (its time limit"),
        (-35, "ended with signal 35"),
    ],
)
def test_how_a_process_ended_is_said_for_every_signal(status, text):
    """Regression: a real-time signal without a name of its own, as 35, was a ValueError."""
    assert text in describe_exit(status)


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError(24, "Too many open files"), "Too many open files"),
        (OSError(2, "No such file", "a.py"), "No such file: 'a.py'"),
        (OSError(36, "File name too long", "a" * 5000), "File name too long: 'aaaa"),
    ],
)
def test_what_the_system_refuses_is_said_with_the_path_that_it_is_about(error, text):
    """Without a path, it was "Too many open files: 'None'"."""
    said = describe_refusal(error)
    assert said.startswith(text)
    assert "None" not in said
    assert len(said) < 400
