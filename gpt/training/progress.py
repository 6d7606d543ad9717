"""The progress line of a run: rewritten on a terminal, now and then in a file."""

import shutil
import sys
import time
from collections import deque
from collections.abc import Mapping
from typing import TextIO

SECONDS = 30.0
"""The longest time between two lines in a file; on a terminal the line is rewritten ten times a second at most."""
SHARE = 10
"""In a file there is a line at least every tenth of the run."""
FORMATS = {"loss": ".4f", "val": ".4f", "lr": ".2e", "norm": ".3f"}
WINDOW = 50
"""The steps whose mean time gives the speed and the time left."""


class Progress:
    """The progress of a run of `steps` steps, on stderr; a quiet one prints nothing."""

    def __init__(self, steps: int, *, quiet: bool = False, stream: TextIO | None = None) -> None:
        self.steps, self.quiet = steps, quiet
        self.stream = stream or sys.stderr
        self.terminal = self.stream.isatty()
        self._recent: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)  # the clock, tokens and seconds of a step
        self._printed = float("-inf")
        self._tenth = -1
        self._open = False  # a line on the terminal that has no line end yet

    def start(self, step: int) -> None:
        """Start the clock after `step` completed steps."""
        self._recent.append((time.monotonic(), 0, 0.0))
        self._tenth = step * SHARE // self.steps

    def step(self, step: int, *, tokens: int, seconds: float, numbers: Mapping[str, float | None]) -> None:
        """Show the state after `step` completed steps, if it is time to."""
        now = time.monotonic()
        self._recent.append((now, tokens, seconds))
        tenth = step * SHARE // self.steps
        due = now - self._printed >= (0.1 if self.terminal else SECONDS)
        if due or (tenth > self._tenth and not self.terminal) or step == self.steps:
            self._printed, self._tenth = now, tenth
            self._show(self.line(step, numbers))

    def line(self, step: int, numbers: Mapping[str, float | None]) -> str:
        """Return the line: the step, the numbers by name (None: not known yet), the speed and the time that is left."""
        width = len(f"{self.steps:,}")
        parts = [f"step {step:>{width},}/{self.steps:,}", f"{step / self.steps:4.0%}"]
        parts += [f"{name} {value:{FORMATS[name]}}" for name, value in numbers.items() if value is not None]
        steps, tokens, seconds = list(self._recent)[1:], 0, 0.0
        for _, step_tokens, step_seconds in steps:
            tokens, seconds = tokens + step_tokens, seconds + step_seconds
        if seconds:
            parts += [f"{tokens / seconds:,.0f} tok/s"]
            each = (self._recent[-1][0] - self._recent[0][0]) / len(steps)  # with validation and checkpoints
            parts += [f"{duration((self.steps - step) * each)} left"] if step < self.steps else []
        return "  ".join(parts)

    def message(self, text: str) -> None:
        """Print something else, on lines of its own."""
        if not self.quiet:
            self.end_line()
            print(text, file=self.stream, flush=True)

    def end_line(self) -> None:
        """End the line on a terminal, if one is open: what is printed next begins on its own line."""
        if self._open:
            print(file=self.stream, flush=True)
            self._open = False

    def _show(self, line: str) -> None:
        if self.quiet:
            return
        if not self.terminal:
            print(line, file=self.stream, flush=True)
            return
        line = line[: shutil.get_terminal_size().columns - 1]  # a wrapped line could not be rewritten
        print(f"\r{line}\x1b[K", end="", file=self.stream, flush=True)
        self._open = True


def duration(seconds: float) -> str:
    """Return a time as text: 9 s, 2 min 5 s, 1 h 3 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"
