"""Do runs: several trainers at once, longest first, until all are done, the time is up or someone stops it."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import FrameType

from harness.lessons.plan import Plan
from harness.lessons.progress import Progress
from harness.lessons.trainer_process import UNTIL_SAVED, TrainerProcess

INTERRUPTED = (130, 143, -2, -15)  # exit statuses after SIGINT and SIGTERM, which a trainer that still starts may have
POLL = 0.5  # seconds
LEAST_MINUTES = 0.1  # with less time left no trainer is started: importing torch takes that long


@dataclass
class Outcome:
    """What came of the runs, by name: `failed` has the trainer's last words, `unfinished` why it is not done."""

    finished: list[str] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)
    unfinished: dict[str, str] = field(default_factory=dict)
    signal: int | None = None


class StopRequest:
    """While it is entered, SIGINT and SIGTERM are counted instead of ending this process."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    @contextmanager
    def entered(self) -> Iterator[StopRequest]:
        """Count signals inside the block."""

        def count(number: int, frame: FrameType | None) -> None:
            self.signals.append(number)

        before = {number: signal.signal(number, count) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield self
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)


def execute(plan: Plan, *, minutes: float, commit: str | None, progress: Progress) -> Outcome:
    """Do the runs of a plan that are not finished, and return what came of them.

    `minutes` limits all of them together (0: no limit): a trainer whose time is up saves and stops. After SIGINT or
    SIGTERM all trainers save and stop; after a second one they are killed.
    """
    outcome = Outcome(finished=[folder.run.name for folder in plan.folders if folder.finished])
    # The longest first: otherwise it would be alone at the end.
    waiting = sorted((folder for folder in plan.folders if not folder.finished), key=lambda folder: -folder.run.seconds)
    active: list[TrainerProcess] = []
    deadline = time.monotonic() + 60 * minutes if minutes else None

    def left() -> float:
        return (deadline - time.monotonic()) / 60 if deadline is not None else 0.0

    with StopRequest().entered() as stop, _stopped_on_failure(active):
        while active or waiting:
            if stop.signals or (deadline is not None and left() < LEAST_MINUTES):
                why = "stopped before its turn" if stop.signals else "the budget was used up before its turn"
                outcome.unfinished |= {folder.run.name: why for folder in waiting}
                waiting = []
            while waiting and len(active) < plan.processes and not stop.signals:
                folder = waiting.pop(0)
                text = plan.texts.get(folder.run.name)
                active.append(TrainerProcess(folder, minutes=left(), text=text, commit=commit, threads=plan.threads))
            progress.show([folder.run for folder in waiting], active)
            if stop.signals:
                _stop(active, stop)
            for process in [process for process in active if process.status is not None]:
                active.remove(process)
                _note(process, outcome, progress)
            if active:
                time.sleep(POLL)
        outcome.signal = stop.signals[0] if stop.signals else None
    return outcome


@contextmanager
def _stopped_on_failure(active: Sequence[TrainerProcess]) -> Iterator[None]:
    """Have the trainers save and stop if this process fails in the block: a full disk, for instance."""
    try:
        yield
    except BaseException:
        for process in active:
            process.interrupt()
        raise


def _note(process: TrainerProcess, outcome: Outcome, progress: Progress) -> None:
    """Enter the end of a process into the outcome, and print it."""
    folder = process.folder
    name, finished = folder.run.name, process.close()
    seconds = f"after {process.seconds / 60:.1f} min"
    if finished:
        outcome.finished.append(name)
        progress.finished(folder.run, f"finished {seconds}: {folder.log.ended}")
    elif (reason := folder.log.ended) in ("budget", "interrupted", "terminated"):
        outcome.unfinished[name] = f"{reason} after step {folder.log.end.get('step')}; it will be resumed"
        progress.message(f"{name} was stopped {seconds} ({reason})")
    elif process.status in INTERRUPTED and not folder.log.steps:
        outcome.unfinished[name] = "interrupted before its first step; it will be resumed"
        progress.message(f"{name} was stopped {seconds} (interrupted before its first step)")
    elif process.status is not None and process.status < 0:
        outcome.unfinished[name] = f"killed by signal {-process.status}; it will be resumed"
        progress.message(f"{name} was killed {seconds}")
    else:
        outcome.failed[name] = folder.last_words()
        progress.message(f"{name} failed {seconds}: {outcome.failed[name]}")


def _stop(active: Sequence[TrainerProcess], stop: StopRequest) -> None:
    """Ask all trainers to save and stop, and wait for them; a second signal kills them."""
    for process in active:
        process.interrupt()
    deadline = time.monotonic() + UNTIL_SAVED
    while any(process.status is None for process in active):
        if len(stop.signals) > 1 or time.monotonic() > deadline:
            for process in active:
                process.kill()
            return
        time.sleep(0.05)
