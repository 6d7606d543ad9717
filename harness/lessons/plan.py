"""Which runs a command line asks for, how large they are, and where they go."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from harness.lessons import full_size
from harness.lessons.lesson_file import Lesson, LessonRun, Settings, chosen, read_full_size, read_lessons
from harness.lessons.run_folder import RUNS, RunFolder, fingerprint
from harness.lessons.texts import load_text, write_texts


@dataclass(frozen=True)
class Plan:
    """The folders of the chosen runs, and how their trainers run: how many at once, with how many threads.

    `lessons` are those that the record file describes. `texts` has the file of a run whose text is cut.
    """

    folders: list[RunFolder]
    lessons: tuple[Lesson, ...]
    processes: int
    threads: int | None  # of each trainer; None leaves torch's default
    texts: dict[str, Path] = field(default_factory=dict)

    @property
    def unfinished(self) -> list[LessonRun]:
        """The runs that are left to do."""
        return [folder.run for folder in self.folders if not folder.finished]


def plan_lessons(reports: Path, names: Sequence[str], only: Sequence[str], *, processes: int) -> Plan:
    """Return the plan for runs of lessons.toml, one thread each, so that no result depends on the number of cores.

    Raises HarnessError for a lesson or an arm that does not exist, and for a text that is not at hand.
    """
    lessons = read_lessons()
    runs = chosen(lessons, names, only)
    for text in {str(run.settings.get("text", "tinyshakespeare")) for run in runs}:
        load_text(text)  # an error now, once, and not in every run
    folders = [RunFolder(reports / RUNS, run, fingerprint(run)) for run in runs]
    return Plan(folders, lessons, processes, 1, write_texts(reports / RUNS / "texts", runs))


def plan_preset(reports: Path, preset: str, only: Sequence[str], *, minutes: float, force: bool) -> Plan:
    """Return the plan for one run of a preset (or those of the arms `only`), of as many steps as fit the minutes.

    The time of a step is measured by a short trial. Raises HarnessError for an unknown preset, for a trial that fails,
    and, unless forced, on a CPU that is too slow.
    """
    import torch  # slow to import

    settings = full_size.preset_settings(preset)
    gpu = torch.cuda.is_available()
    if not gpu and not force:
        full_size.refuse_on_cpu(preset, settings, minutes)
    lesson = read_full_size(preset)
    wanted = chosen([lesson], only=only) if only else lesson.runs[:1]
    folders = [_preset_folder(reports / RUNS, run, settings, minutes / len(wanted)) for run in wanted]
    return Plan(folders, (*read_lessons(), replace(lesson, runs=tuple(wanted))), 1, None)


def _preset_folder(parent: Path, run: LessonRun, preset: Settings, minutes: float) -> RunFolder:
    """Return the folder of a preset's run, with the steps that it was started with, or else those that fit."""
    run = replace(run, seconds=60 * minutes)
    identity = fingerprint(run, {**run.settings, "minutes": minutes, "preset": preset})
    before = RunFolder(parent, run, identity).state.settings
    if before is not None:
        return RunFolder(parent, replace(run, settings=before), identity)
    seconds = full_size.measure_step(parent, run)
    planned = full_size.with_steps(run, minutes, seconds)
    print(f"{run.name}: a step takes {seconds:.3g} s, so {planned.settings['steps']:,} steps fit {minutes:g} minutes")
    return RunFolder(parent, planned, identity)
