"""The alarm: what answers to it goes on, what does not ends the process, and suspended time is no delay."""

import fnmatch
import subprocess
import sys
import textwrap

import pytest

HEAD = """\
import atexit, ctypes, itertools, os, signal, subprocess, sys, threading, time
from harness.core import last_resort, limits
from harness.core.process_exit import ExitGuard

last_resort.LAST = 1.0
last_resort.EXIT = 0.5
ExitGuard().install()
sys.setrecursionlimit(10**9)
class Deletes:
    def __del__(self):
        while True: pass
try:
    with limits.alarm(0.5):
"""
END = """
except limits.TooLong:
    print("TooLong")
limits.run_is_over()
print("over", flush=True)
"""
# By the clock, a run that was continued after minutes of Ctrl-Z would end at once.
SUSPENDED = """\
subprocess.Popen(["sh", "-c", f"sleep 3; kill -CONT -{os.getpgrp()}"], start_new_session=True)
try:
    os.killpg(0, signal.SIGSTOP)
    time.sleep(0.2)
except limits.TooLong:
    time.sleep(0.2)
"""
IGNORED = "signal.signal(signal.SIGALRM, signal.SIG_IGN)\n"
ENDS = (
    "no answer within 0.5 s, and what runs cannot be interrupted: it is at *alarmed.py:{}. The run ends here*--isolate*"
)
DIED = "the process ended before its run did. *--isolate*"
STAYS = "the run is over, but an exit handler or a thread without daemon=True does not end*"
LINE = HEAD.count("\n") + 1


@pytest.mark.parametrize(
    ("block", "printed", "said", "status"),
    [
        ("pass", "over", "", 0),
        ("time.sleep(5)", "TooLong over", "", 0),
        ("try: time.sleep(5)\nexcept limits.TooLong: pass", "TooLong over", "", 0),
        ("Deletes()", "TooLong over", "", 0),
        (f"{IGNORED}time.sleep(1)", "over", "", 0),
        (SUSPENDED, "TooLong over", "", 0),
        (f"{IGNORED}time.sleep(60)", "", ENDS.format(LINE + 1), -9),
        ("sum(itertools.repeat(0))", "", ENDS.format(LINE), -9),
        ("threading.Thread(target=lambda: sum(itertools.repeat(0)), daemon=True).start()", "", ENDS.format(LINE), -9),
        ("ctypes.CDLL(None)._exit(0)", "", DIED, 0),
        ("os.closerange(3, 65_536)\ntime.sleep(0.4)", "over", "", 0),
        ("atexit.register(time.sleep, 60)", "over", STAYS, -9),
        ("threading.Thread(target=time.sleep, args=(60,)).start()", "over", STAYS, -9),
    ],
)
def test_what_does_not_answer_to_the_alarm_ends_the_process_with_a_reason(tmp_path, block, printed, said, status):
    """A loop in C hung for ever: it keeps the lock that the thread needed that was to end the process."""
    (tmp_path / "alarmed.py").write_text(HEAD + textwrap.indent(block, " " * 8) + END)
    process = subprocess.Popen(
        [sys.executable, "alarmed.py"],
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        output, errors = process.communicate(timeout=30)  # until the last resort, too, has ended
    finally:
        process.kill()
    assert output.split() == printed.split()
    assert process.returncode == status
    errors = [line for line in errors.splitlines() if line.startswith("gpt-harness: ")]
    assert len(errors) == bool(said)
    assert not said or fnmatch.fnmatch(errors[0], f"gpt-harness: {said}")
