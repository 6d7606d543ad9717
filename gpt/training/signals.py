"""Ctrl-C and SIGTERM as a request: the current step finishes before the run stops."""

import os
import signal
import threading
from types import FrameType
from typing import Any

STDERR = 2

REASONS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class StopRequest:
    """While it is entered, the first SIGINT or SIGTERM is remembered, and the second one ends the process at once.

    Outside of the main thread Python allows no handlers, and nothing is caught.
    """

    def __init__(self, *, quiet: bool = False) -> None:
        self.reason: str | None = None
        """Why the run should stop: "interrupted" or "terminated"; None as long as it should go on."""
        self._quiet = quiet
        self._process = os.getpid()
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> "StopRequest":
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._handle) for number in REASONS}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if self.reason is not None or os.getpid() != self._process:  # a worker inherits this handler
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self.reason = REASONS[signal.Signals(number)]
        if not self._quiet:
            again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
            # Not print: the signal may have come while the same buffer was being written.
            os.write(STDERR, f"\nstopping after this step ({again} ends at once)\n".encode())
