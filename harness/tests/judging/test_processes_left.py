"""No process of a subject, and no worker, outlives the run, however the run ends."""

import contextlib
import os
import signal
import subprocess
import sys
import textwrap
import time

import pytest

from harness.core.record_files import read as records_of
from harness.judging.runner import make_runner
from harness.tests.judging.naughty import FORWARD, subject


def alive(marker):
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if marker in line and "ps -eo" not in line]


def test_ctrl_c_leaves_no_process_behind(project):
    """Neither the worker, which is in no terminal's foreground, nor what the subject has started in it."""
    marker = f"{time.time_ns() % 10**9 + 10**9}"
    line = f"import subprocess; subprocess.Popen(['sleep', '{marker}']); open('started', 'w').close(); time.sleep(1000)"
    # Not in the first call, (2, 4) ids, by which it is found out if it can be read at all.
    subject(project.path, FORWARD, f"if idx.shape != (2, 4): {line}")
    arguments = ["-m", "pytest", "--isolate", "--subject", "naughty.py:GPT", "-p", "no:cacheprovider"]
    run = subprocess.Popen([sys.executable, *arguments], cwd=project.path, stdout=subprocess.DEVNULL)
    try:
        for _ in range(600):
            if (project.path / "started").exists():
                break
            time.sleep(0.1)
        assert alive(marker)
        run.send_signal(signal.SIGINT)
        assert run.wait(30) == pytest.ExitCode.INTERRUPTED
    finally:
        run.kill()
    assert not alive(marker)
    (path,) = (project.path / "reports" / "records").glob("*.jsonl")
    assert [row.get("check") for row in records_of(path)][1:-1] == ["counted"]


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="no /proc, in which such processes are found")
@pytest.mark.parametrize("then", ["pass", "os.kill(os.getpid(), 9)"])
def test_a_process_in_a_session_of_its_own_does_not_outlive_the_isolated_subject(shipped, tmp_path, then):
    """Whether the subject lives to the end of the run or not, it is in another group than the one that is killed."""
    marker = f"{time.time_ns() % 10**9 + 10**9}"
    started = f"import subprocess; KEPT or KEPT.append(subprocess.Popen(['sleep', '{marker}'], start_new_session=True))"
    runner = make_runner(subject(tmp_path, FORWARD, f"{started}\n{then}"), isolate=True, seconds=60.0)
    try:
        runner.run(shipped["parity::debug,weights=probe,compare=logits"])
        assert then != "pass" or alive(marker)
    finally:
        runner.close()
    assert not alive(marker)


@pytest.mark.skipif(not os.path.exists("/proc/self/environ"), reason="no /proc, in which such processes are found")
@pytest.mark.parametrize(
    "then", ["time.sleep(1000)", "os.kill(os.getpid(), signal.SIGSTOP)", "sum(itertools.repeat(0))"]
)
def test_a_run_that_is_killed_leaves_no_process_behind(project, then):
    """A worker that is stopped, or in a loop in C, does not see that its pipe has ended; its children never do."""
    marker = f"{time.time_ns() % 10**9 + 10**9}"
    started = f"subprocess.Popen(['sleep', '{marker}'], start_new_session=True); open('started', 'w').close()"
    line = f"import itertools, subprocess\nif idx.shape != (2, 4): {started}; {then}"
    subject(project.path, FORWARD, line)
    arguments = ["-m", "pytest", "--subject", "naughty.py:GPT", "-p", "no:cacheprovider"]
    run = subprocess.Popen([sys.executable, *arguments], cwd=project.path, stdout=subprocess.DEVNULL)
    try:
        _until(lambda: (project.path / "started").exists())
        assert alive(marker)
        time.sleep(0.5)
    finally:
        run.kill()
        run.wait()
    _until(lambda: not alive(marker) and not _in_folder(project.path))
    assert not alive(marker)
    assert not _in_folder(project.path)


def _until(condition, seconds=60.0):
    until = time.monotonic() + seconds
    while not condition() and time.monotonic() < until:
        time.sleep(0.1)


def _in_folder(folder):
    """Return the other processes whose current folder this is."""
    found = []
    for process in {each for each in os.listdir("/proc") if each.isdecimal()} - {str(os.getpid())}:
        with contextlib.suppress(OSError):
            if os.readlink(f"/proc/{process}/cwd") == str(folder):
                found.append(process)
    return found


@pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="no memfd_create, by which such processes are found")
def test_a_forked_process_in_a_session_of_its_own_does_not_outlive_the_isolated_subject(shipped, tmp_path):
    """What /proc shows as its environment is the one of the run: the mark is a descriptor."""
    line = f"""
        if not KEPT and not KEPT.append(os.fork()) and KEPT[0] == 0:
            os.setsid()
            open({str(tmp_path / "forked")!r}, 'w').write(str(os.getpid()))
            time.sleep(1000)"""
    runner = make_runner(subject(tmp_path, FORWARD, textwrap.dedent(line)), isolate=True, seconds=60.0)
    try:
        runner.run(shipped["parity::debug,weights=probe,compare=logits"])
        process = f"/proc/{(tmp_path / 'forked').read_text()}"
        assert os.path.exists(process)
    finally:
        runner.close()
    until = time.monotonic() + 10
    while os.path.exists(process) and time.monotonic() < until:  # killed, but process 1 has not taken note yet
        time.sleep(0.05)
    assert not os.path.exists(process)
