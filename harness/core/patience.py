"""The time that is waited for an answer, without that in which this process was suspended."""

from __future__ import annotations

import time

LONGEST_STEP = 0.1  # seconds between two looks; more have passed if the process was suspended, as by Ctrl-Z


class Patience:
    """A limit of seconds that counts no time in which this process was suspended.

    Ctrl-Z and SIGSTOP suspend the processes that it waits for, too. `is_over` must be called more often than every
    `LONGEST_STEP`: what has passed since the last call counts as that at most.
    """

    def __init__(self, seconds: float) -> None:
        self._left, self._last = seconds, time.monotonic()

    def is_over(self) -> bool:
        """Return True once the time is up."""
        now = time.monotonic()
        self._left -= min(now - self._last, LONGEST_STEP)
        self._last = now
        return self._left <= 0
