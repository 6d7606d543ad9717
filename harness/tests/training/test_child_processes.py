"""The processes of training programs end, whatever ends the ones that started them."""

import os
import signal
import subprocess
import sys
import time

from harness.tests.processes import ends, is_running

LOOP = """
import os, time
with open({path!r} + ".part", "w") as file:
    file.write(f"{{os.getpid()}} {{os.getppid()}}")
os.replace({path!r} + ".part", {path!r})
while True:
    time.sleep(0.1)
"""
RECORD = "from harness.training.program import TrainingProgram; TrainingProgram('loop.py').record('plain')"


def test_a_run_ends_if_the_process_that_forked_it_is_killed(tmp_path):
    """One that was left trained for half an hour on one of two cores."""
    path = str(tmp_path / "processes")
    (tmp_path / "loop.py").write_text(LOOP.format(path=path))
    with subprocess.Popen([sys.executable, "-c", RECORD], cwd=tmp_path, stderr=subprocess.DEVNULL) as judge:
        try:
            until = time.monotonic() + 100
            while not os.path.exists(path) and time.monotonic() < until:
                time.sleep(0.1)
            with open(path, encoding="ascii") as file:
                run, server = map(int, file.read().split())
            assert is_running(run)
            os.kill(server, signal.SIGKILL)
            assert ends(run)
        finally:
            judge.kill()
