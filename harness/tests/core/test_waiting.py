"""What takes long is said on standard error, with the line that runs."""

import time

import pytest

from harness.core.captured_output import CapturedOutput, captured_output
from harness.core.waiting import said_if_slow


def test_what_takes_long_is_said_once_with_the_line_although_output_is_captured(capfd):
    with said_if_slow("my_gpt.py", seconds=0.2), captured_output(CapturedOutput()):
        time.sleep(0.5)
    said = capfd.readouterr().err
    assert said.count("my_gpt.py has been importing or building for 0 s") == 1
    assert "test_waiting.py" in said


def test_what_is_quick_or_fails_says_nothing(capfd):
    with pytest.raises(ZeroDivisionError), said_if_slow("my_gpt.py", seconds=0.2):
        _ = 1 / 0
    time.sleep(0.3)
    assert capfd.readouterr().err == ""
