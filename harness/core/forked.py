"""Ask a question in a forked process, which may end, hang or change anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable

POLL = 0.05  # seconds between two looks at whether the process still lives
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
            if select.select([read], [], [], POLL)[0]:
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
