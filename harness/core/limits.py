"""The time and memory limits of a subject in one check, and the alarm that enforces the time limit."""

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

from harness.core.patience import LONGEST_STEP, Patience
from harness.core.process_exit import give_up
from harness.core.waiting import line_of

SECONDS = 300.0  # twenty times as long as the reference's longest check takes on two cores
LAST = 10.0  # seconds, and a tenth of the limit, from TooLong to the end of the process; an isolated one has 5
MEMORY_SHARE = 0.8  # of the machine's memory, for an isolated subject


@dataclass(frozen=True)
class Limits:
    """Seconds per check, and GiB of memory for an isolated subject; None is no limit."""

    seconds: float | None = None
    memory_gib: float | None = None


class TooLong(BaseException):
    """Raised in the subject when its time is up, at the line that it is executing."""


@contextlib.contextmanager
def alarm(seconds: float | None) -> Iterator[None]:
    """Raise TooLong inside the block after `seconds`, and again each second; None is no limit.

    It is repeated because a subject may catch every exception. One that catches all of them, or ignores the signal,
    ends the process LAST seconds and a tenth of `seconds` later, in which no time counts that the process was suspended
    (Ctrl-Z). It has no effect outside the main thread, which alone receives signals, and cannot interrupt a loop in C:
    `--isolate` can.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(number: int, frame: FrameType | None) -> None:
        raise TooLong

    done = threading.Event()
    threading.Thread(target=_watch, args=(seconds, threading.get_ident(), done), daemon=True).start()
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        done.set()
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _watch(seconds: float, thread: int, done: threading.Event) -> None:
    """End the process, from another thread, unless the block is done in time: it has not answered to TooLong."""
    patience = Patience(1.1 * seconds + LAST)
    while not done.wait(LONGEST_STEP / 2):
        if patience.is_over():
            _give_up(seconds, thread)
            return


def _give_up(seconds: float, thread: int) -> None:
    place = line_of(thread)
    at = f": it is at {place}" if place else ""
    give_up(
        f"no answer within {seconds:g} s, and what runs cannot be interrupted{at}. The run ends here; what it had "
        "judged is in its records. With --isolate, this costs one check"
    )


def resident_bytes(process: int) -> int:
    """Return the resident memory of a process in bytes, or 0 if it has ended."""
    try:
        return int(Path(f"/proc/{process}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except OSError:
        if Path("/proc/self/statm").exists():  # there is a /proc, so the process has ended
            return 0
    listed = subprocess.run(["ps", "-o", "rss=", "-p", str(process)], capture_output=True, text=True, check=False)
    return int(listed.stdout.strip() or 0) * 1024


def written_bytes(process: int) -> int:
    """Return how many bytes a process has written to disks, or 0 if that is not known: Linux counts them."""
    try:
        rows = Path(f"/proc/{process}/io").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((int(row.split()[1]) for row in rows if row.startswith("write_bytes")), 0)


def machine_memory_gib() -> float:
    """Return the physical memory of the machine in GiB."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
