"""Exceptions of other people's code are described in one line that can be printed."""

import pytest

from harness.core.error_text import describe_error


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
