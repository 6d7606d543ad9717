"""What the machine did during a block besides the arm's work: processor time, fresh pages, waiting, other machines."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path
from typing import NamedTuple

_STAT = Path("/proc/stat")
_STOLEN = 7  # of the numbers after "cpu": the ticks that other machines on the same processors took


class Usage(NamedTuple):
    """Counts since the process began; of stolen time, since the machine began.

    processor_seconds: computed by this process, on all cores.
    fresh_pages: pages of memory that the kernel had to provide and to fill with zeros.
    preemptions: how often a thread of this process had to leave its core to another process.
    stolen_seconds: core time that was given to other machines on the same processors; 0 if the system does not say.
    """

    processor_seconds: float
    fresh_pages: float
    preemptions: float
    stolen_seconds: float

    def since(self, before: Usage) -> Usage:
        """Return what was counted between the two."""
        return Usage(*(now - then for now, then in zip(self, before, strict=True)))

    def and_also(self, other: Usage) -> Usage:
        """Return the sum of both counts."""
        return Usage(*(one + another for one, another in zip(self, other, strict=True)))


def usage_now() -> Usage:
    """Return the counts of this process at this moment."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    return Usage(time.process_time(), used.ru_minflt, used.ru_nivcsw, _stolen_seconds())


def _stolen_seconds() -> float:
    try:
        ticks = _STAT.read_text(encoding="ascii").split("\n", 1)[0].split()[1:]
        return int(ticks[_STOLEN]) / os.sysconf("SC_CLK_TCK")
    except (OSError, ValueError, IndexError):  # no Linux
        return 0.0
