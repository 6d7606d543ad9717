"""The record file of the lessons' runs: every run that is finished, whenever it was done."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from harness.core.record_files import RecordWriter, Row
from harness.lessons.execution import Outcome
from harness.lessons.lesson_file import Lesson
from harness.lessons.run_folder import RUNS, RunFolder, fingerprint, preset_runs
from harness.lessons.run_row import EXPLOSION
from harness.lessons.trainer_process import TRAINER


def write_records(
    reports: Path, plan: Sequence[RunFolder], lessons: Sequence[Lesson], outcome: Outcome, machine: Row, seconds: float
) -> Path | None:
    """Write a record file with every finished run, done now or before, and return its path.

    `plan` are the runs that were chosen, `machine` the environment, `seconds` the wall time of the command. None, and
    no file, if no run is finished. A run of a preset that its budget stopped is recorded too, as such.
    """
    folders = {folder.run.name: folder for folder in (*_declared(reports, lessons), *plan)}
    rows = [folder.row() for folder in folders.values() if folder.finished or _stopped_preset(folder)]
    if not rows:
        return None
    now = time.time()
    stamp = f"{time.strftime('%Y%m%dT%H%M%S', time.gmtime(now))}Z-{int(now * 1000) % 1000:03d}"
    header = {
        "run": "lessons",
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(now - seconds)),
        "subject": {"name": TRAINER},
        "environment": machine,
        "lessons": [lesson.as_row() for lesson in lessons],
        "definitions": {"exploded_at": EXPLOSION},
    }
    recorder = RecordWriter(reports / "records" / f"lessons-{stamp}.jsonl", header)
    for row in rows:
        recorder.write(row)
    unfinished = {"unfinished": outcome.unfinished, "failed": outcome.failed}
    recorder.close({"wall_seconds": seconds, **unfinished, "complete": not any(unfinished.values())})
    return recorder.path


def _declared(reports: Path, lessons: Sequence[Lesson]) -> Iterator[RunFolder]:
    """Yield the folders of the runs of lessons.toml, and those of the presets that were run before."""
    for lesson in lessons:
        for run in lesson.runs:
            if not run.preset:
                yield RunFolder(reports / RUNS, run, fingerprint(run))
    yield from preset_runs(reports / RUNS)


def _stopped_preset(folder: RunFolder) -> bool:
    return bool(folder.run.preset) and folder.log.ended == "budget"
