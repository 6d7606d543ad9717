"""Do the runs of a sweep: here with the lessons' engine, or on a Ray cluster."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from harness.lessons.execution import Outcome, execute
from harness.lessons.plan import Plan
from harness.lessons.progress import Progress
from harness.sweeps.sweep_runs import SweepRun


def lessons_plan(runs: Sequence[SweepRun], *, jobs: int) -> Plan:
    """Return the runs as a plan of the lessons' engine; a run on a CPU has one thread."""
    on_cpu = all(run.folder.run.settings["device"] == "cpu" for run in runs)
    texts = {run.name: run.text for run in runs}
    return Plan([run.folder for run in runs], (), jobs, 1 if on_cpu else None, texts)


def execute_here(
    runs: Sequence[SweepRun], *, jobs: int, minutes: float, commit: str | None, progress: Progress
) -> Outcome:
    """Do the runs that are not finished in `jobs` processes at once, and return what came of them.

    After Ctrl-C, SIGTERM and the last of `minutes` (0: no limit) the trainers save and stop, and are resumed next time.
    If this process is killed, Linux stops them in the same way; one that is killed itself starts from its last
    checkpoint.
    """
    return execute(lessons_plan(runs, jobs=jobs), minutes=minutes, commit=commit, progress=progress)


def why_not_finished(outcome: Outcome) -> Mapping[str, str]:
    """Return why each run that is not finished is not."""
    return {**outcome.unfinished, **outcome.failed}
