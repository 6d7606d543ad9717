"""Forked processes: one that answers a question, and one that works until it is ended."""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import gc
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from pathlib import Path

POLL = 0.05  # seconds between two looks at whether the process still lives
TRIAL = 2.0  # seconds for a small operation of two threads
_PR_SET_PDEATHSIG = 1  # of prctl(2)
_END = b"\0"  # of an answer: the end of the pipe comes late if a process that the question forked has it, too


def end_with_parent() -> None:
    """Let the system kill this process when the one that forked it ends, however it ends. Linux alone can."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)


def answer_of_fork(question: Callable[[], str], seconds: float) -> str:
    """Return what `question` returns in a process forked from this one; "" if that ends or does not answer in time."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            os.close(read)
            text = question().encode("utf-8", "replace") + _END
            while text:
                text = text[os.write(write, text) :]
        finally:
            os._exit(0)
    os.close(write)
    answer, until, ended = b"", time.monotonic() + seconds, 0
    try:
        while not answer.endswith(_END):
            ended = ended or os.waitpid(child, os.WNOHANG)[0]
            if connection.wait([read], POLL):
                part = os.read(read, 1 << 16)
                answer += part
                if not part:
                    return ""
            elif ended or time.monotonic() > until:
                return ""
        return answer.removesuffix(_END).decode("utf-8", "replace")
    finally:
        os.close(read)
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)


def can_fork() -> bool:
    """Return True where a forked process can go on to use torch: macOS ends one."""
    return sys.platform == "linux" and Path("/proc/self/fd").exists()


def threads_of_fork() -> int:
    """Return how many threads torch can have in a process forked from this one. A trial shows it.

    Where OpenMP has already worked with several threads, a forked process waits for threads that it does not have.
    """
    import torch  # which other projects' runs must not pay for

    def work_in_parallel() -> str:
        return f"{torch.ones(1 << 17).exp().sum()}"  # enough elements for every thread

    threads = torch.get_num_threads()
    return threads if threads == 1 or answer_of_fork(work_in_parallel, TRIAL) else 1


class ForkedProcess:
    """A process forked from this one, in a session of its own: `subprocess.Popen` for a function.

    It has what this process has imported, so it starts at once. It keeps no descriptor of this process but `passed`.
    When `work` returns it ends, without running exit handlers.

    Args:
        work: what it does.
        passed: the descriptors that it keeps.
        output: the descriptor for what it prints; None for that of this process.

    Attributes:
        pid: The id of the process.
        returncode: Its exit status, negative for a signal; None while it runs.
    """

    def __init__(self, work: Callable[[], None], *, passed: Sequence[int], output: int | None) -> None:
        self.returncode: int | None = None
        self.pid = os.fork()
        if self.pid == 0:
            try:
                _leave_parent(passed, output)
                work()
            finally:
                os._exit(1)

    def poll(self) -> int | None:
        """Return the exit status; None while the process runs."""
        if self.returncode is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self.returncode = os.waitstatus_to_exitcode(status) if pid else None
        return self.returncode

    def wait(self, timeout: float | None = None) -> int:
        """Return the exit status once the process has ended. Raises subprocess.TimeoutExpired after these seconds."""
        until = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if until is not None and time.monotonic() > until:
                raise subprocess.TimeoutExpired("a forked process", timeout or 0.0)
            time.sleep(0.001)
        return code


def _leave_parent(passed: Sequence[int], output: int | None) -> None:
    """Let go, in a forked process, of what belongs to the process that forked it."""
    os.setsid()  # Ctrl-C reaches that process alone
    signal.signal(signal.SIGINT, signal.default_int_handler)
    faulthandler.cancel_dump_traceback_later()
    gc.freeze()  # its objects are not to be finalized here
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, 0)
    if output is not None:
        os.dup2(output, 1)
        os.dup2(output, 2)
    # Replaced, not closed: an object that has the number of a closed one would close what gets that number later.
    for descriptor in map(int, os.listdir("/proc/self/fd")):
        if descriptor > 2 and descriptor != null and descriptor not in passed:
            with contextlib.suppress(OSError):  # the descriptor of the listing is closed by now
                os.fstat(descriptor)
                os.dup2(null, descriptor, inheritable=False)
    for name, descriptor, mode in (("stdin", 0, "r"), ("stdout", 1, "w"), ("stderr", 2, "w")):
        stream = open(descriptor, mode, buffering=1, encoding="utf-8", errors="backslashreplace", closefd=False)  # noqa: SIM115 - stays open
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)
