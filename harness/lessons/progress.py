"""The progress of the lessons' runs: one line that is rewritten on a terminal, or a line for each event elsewhere."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from harness.lessons.lesson_file import LessonRun
from harness.lessons.trainer_process import TrainerProcess

QUIET = 30.0  # seconds between two lines where there is no terminal
LEARN_AFTER = 30.0  # expected seconds of finished work, after which the pace of this machine is known


class Progress:
    """Says which runs are at work, how many of them are done and how many minutes are left.

    `expected` seconds are those of lessons.toml; the machine's own pace corrects them as soon as work is done.
    """

    def __init__(self, runs: Sequence[LessonRun], *, processes: int, stream: TextIO | None = None) -> None:
        self.total, self.processes = len(runs), processes
        self.done = 0
        self.stream = stream or sys.stderr
        self._started = self._printed = time.monotonic()
        self._expected_done = 0.0
        self._open = False

    def show(self, waiting: Sequence[LessonRun], active: Sequence[TrainerProcess]) -> None:
        """Print the line, if it is time to."""
        now = time.monotonic()
        if not self.stream.isatty() and now - self._printed < QUIET:
            return
        self._printed = now
        line = self.line(waiting, [(process.folder.run, *state_of(process)) for process in active], now - self._started)
        if self.stream.isatty():
            width = shutil.get_terminal_size().columns - 1
            print(f"\r{line[:width]}\x1b[K", end="", file=self.stream, flush=True)
            self._open = True
        else:
            print(line, file=self.stream, flush=True)

    def line(self, waiting: Sequence[LessonRun], active: Sequence[tuple[LessonRun, float, str]], elapsed: float) -> str:
        """Return `5 of 18 done · schedule-cosine-seed-1 420/1000 loss 2.31 · 14 min left`.

        `active` has each run at work, the share of it that this process has done, and its state as text.
        """
        done = self._expected_done + sum(run.seconds * share for run, share, _ in active)
        pace = elapsed * self.processes / done if done >= LEARN_AFTER else 1.0
        left = [run.seconds * (1 - share) for run, share, _ in active] + [run.seconds for run in waiting]
        seconds = pace * max(sum(left) / self.processes, max(left, default=0.0))
        names = [f"{run.name} {state}" for run, _, state in active]
        return " · ".join([f"{self.done} of {self.total} done", *names, f"{max(1, round(seconds / 60))} min left"])

    def finished(self, run: LessonRun, text: str) -> None:
        """Print that a run ended."""
        self.done += 1
        self._expected_done += run.seconds
        self.message(f"{self.done} of {self.total}: {run.name} {text}")

    def message(self, text: str) -> None:
        """Print a line of its own."""
        if self._open:
            print("\r\x1b[K", end="", file=self.stream)
            self._open = False
        print(text, file=self.stream, flush=True)


def state_of(process: TrainerProcess) -> tuple[float, str]:
    """Return the share of the run that this process has done, and `420/1000 loss 2.31`."""
    log = process.folder.log
    steps = int(process.folder.run.settings.get("steps", 0))
    if not log.steps:
        return 0.0, "starts"
    share = (log.steps_done - process.first_step) / steps if steps else 0.0
    return min(1.0, max(0.0, share)), f"{log.steps_done:,}/{steps:,} loss {log.losses[-1]:.2f}"
