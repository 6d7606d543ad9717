"""Ask a question in a forked process, which may end, hang or change anything."""

from __future__ import annotations

import contextlib
import ctypes
import os
import select
import signal
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1  # of prctl(2)


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
            text = question().encode("utf-8", "replace")
            while text:
                text = text[os.write(write, text) :]
        finally:
            os._exit(0)
    os.close(write)
    answer, until = b"", time.monotonic() + seconds
    try:
        while (left := until - time.monotonic()) > 0 and select.select([read], [], [], left)[0]:
            part = os.read(read, 1 << 16)
            if not part:
                return answer.decode("utf-8", "replace")
            answer += part
        return ""
    finally:
        os.close(read)
        with contextlib.suppress(ProcessLookupError):
            os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
