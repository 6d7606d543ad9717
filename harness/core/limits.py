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

from harness.core.last_resort import LATE, LastResort
from harness.core.process_exit import guarded_stderr

SECONDS = 300.0  # twenty times as long as the reference's longest check takes on two cores
MEMORY_SHARE = 0.8  # of the machine's memory, for an isolated subject
_last_resort: LastResort | None = None  # one for all limits of this process


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

    It is repeated because a subject may catch every exception; one that has caught it is late all the same, when the
    block ends. One that catches all of them, ignores the signal, or is in a loop in C, ends the process `LAST` seconds
    and a tenth of `seconds` later (see `harness.core.last_resort`); with `--isolate` that costs one check. It has no
    effect outside the main thread, which alone receives signals.
    """
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    late: list[TooLong] = []

    def ring(number: int, frame: FrameType | None) -> None:
        late.append(TooLong())
        raise late[-1]

    if resort := _resort():
        resort.arm(1.1 * seconds, f"no answer within {seconds:g} s, and {LATE}")
    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
        if late:  # caught, or raised where Python cannot: in __del__
            raise late[0]
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        if resort:
            resort.disarm()


def run_is_over() -> None:
    """Say that this process may end now: what is judged is recorded and reported."""
    if _last_resort is not None:
        _last_resort.run_is_over()


def _resort() -> LastResort | None:
    """Return what ends this process if nothing else can; None if no ExitGuard is installed in it."""
    global _last_resort
    stderr = guarded_stderr()
    if _last_resort is None and stderr is not None:
        with contextlib.suppress(OSError):  # there can be no other process
            _last_resort = LastResort(stderr)
    return _last_resort if stderr is not None else None


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
