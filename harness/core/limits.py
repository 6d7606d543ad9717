"""How long and how large a subject may grow in one check, and the alarm that ends it."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

SECONDS = 300.0  # twenty times what the reference's longest check takes on two cores
MEMORY_SHARE = 0.8  # of the machine's memory, for a subject in a process of its own


@dataclass(frozen=True)
class Limits:
    """Seconds a check, and GiB of memory where the subject has a process of its own; None is no limit."""

    seconds: float | None = None
    memory_gib: float | None = None


class TooLong(BaseException):
    """Raised in the subject when its time is up, at the line where it is."""


@contextlib.contextmanager
def alarm(seconds: float | None) -> Iterator[None]:
    """While open, TooLong is raised once the time is up. Without effect outside the main thread.

    Again each second, in case that the subject catches whatever is raised. A loop within C is not reached: that takes
    a process of its own (`--isolate`).
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def resident_bytes(process: int) -> int:
    """The physical memory that a process holds now; 0 where it is no more."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        if Path("/proc/self/statm").exists():
            return 0
    asked = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False)
    return int(asked.stdout.strip() or 0) * 1024


def machine_memory_gib() -> float:
    """The physical memory of the machine."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
