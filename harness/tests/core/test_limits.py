"""The alarm: what answers to it goes on, what does not ends the process, and suspended time is no delay."""

import subprocess
import sys
import textwrap

import pytest

HEAD = """\
import os, signal, subprocess, time
from harness.core import limits

reasons = []
limits.give_up, limits.LAST = reasons.append, 0.3
try:
    with limits.alarm(0.5):
"""
END = """
except limits.TooLong:
    print("TooLong")
print(len(reasons))
"""
# By the clock, a run that was continued after minutes of Ctrl-Z would end at once.
SUSPENDED = """\
subprocess.Popen(["sh", "-c", f"sleep 1.5; kill -CONT {os.getpid()}"])
try:
    os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(0.2)
except limits.TooLong:
    time.sleep(0.2)
"""


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ("pass", ["0"]),
        ("time.sleep(5)", ["TooLong", "0"]),
        ("signal.signal(signal.SIGALRM, signal.SIG_IGN)\ntime.sleep(1.5)", ["1"]),
        (SUSPENDED, ["0"]),
    ],
    ids=["in time", "answers", "ignores it", "suspended"],
)
def test_the_process_ends_only_if_nothing_else_does(block, said):
    script = HEAD + textwrap.indent(block, " " * 8) + END
    found = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=60)
    assert found.stdout.split() == said, found.stderr
