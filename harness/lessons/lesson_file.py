"""The lessons as data: lessons.toml, read and validated into runs."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from harness.core.errors import HarnessError, did_you_mean
from harness.core.toml_text import read_toml

LESSONS = Path(__file__).with_name("lessons.toml")

Settings = Mapping[str, Any]  # fields of the trainer's configuration
_KEYS: dict[str, dict[str, type | tuple[type, ...]]] = {
    "file": {"settings": dict, "lesson": list, "full_size": dict},
    "lesson": {
        "name": str, "title": str, "claim": str, "about": str, "seconds": (int, float), "text_characters": int,
        "settings": dict, "arm": list,
    },
    "arm": {"name": str, "seeds": list, "seconds": (int, float), "settings": dict},
}  # fmt: skip
_REQUIRED = {
    "file": {"lesson", "full_size"},
    "lesson": {"name", "title", "claim", "about", "seconds", "arm"},
    "arm": {"name"},
}


@dataclass(frozen=True)
class LessonRun:
    """One run of the trainer.

    `settings` are fields of the trainer's configuration, without the seed. `seconds` is what the run is expected to
    take on one core: it orders the runs and gives the minutes left. `text_characters` cuts the text; 0 takes all.
    A run at the lessons' own size has the name of its `preset`.
    """

    lesson: str
    arm: str
    seed: int
    settings: Settings
    seconds: float
    text_characters: int = 0
    preset: str = ""

    @property
    def name(self) -> str:
        """The name of the run and of its folder: `schedule-cosine-seed-0`."""
        return f"{self.preset or self.lesson}-{self.arm}-seed-{self.seed}"


@dataclass(frozen=True)
class Lesson:
    """A lesson: its title, what the lessons claim, what is done here instead, and its runs."""

    name: str
    title: str
    claim: str
    about: str
    runs: tuple[LessonRun, ...]

    def as_row(self) -> dict[str, Any]:
        """Return what the header of a record file says of the lesson."""
        return {
            "name": self.name,
            "title": self.title,
            "claim": self.claim,
            "about": self.about,
            "runs": [run.name for run in self.runs],
            "preset": next((run.preset for run in self.runs), ""),
        }


def read_lessons(path: Path = LESSONS) -> tuple[Lesson, ...]:
    """Return the lessons that two cores carry, in the order of the file.

    Raises HarnessError, with file and line, if it is not TOML, has unknown or missing keys, values of another type or
    two runs of one name.
    """
    text, data = _read(path)
    lessons = tuple(_lesson(path, text, table, data.get("settings", {})) for table in data["lesson"])
    names = [run.name for lesson in lessons for run in lesson.runs]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise HarnessError(f"{path}:1: two runs are called {twice[0]}; give each arm and seed of a lesson once")
    return lessons


def read_full_size(preset: str, path: Path = LESSONS) -> Lesson:
    """Return the lesson at the size of one of the trainer's presets: a run for each arm, not all of them usual.

    Raises HarnessError as `read_lessons` does.
    """
    text, data = _read(path)
    lesson = _lesson(path, text, data["full_size"], {"preset": preset})
    return replace(lesson, runs=tuple(replace(run, preset=preset) for run in lesson.runs))


def _read(path: Path) -> tuple[str, dict[str, Any]]:
    text, data = read_toml(path)
    _check_table(path, text, data, "file")
    return text, data


def _lesson(path: Path, text: str, table: Mapping[str, Any], common: Settings) -> Lesson:
    _check_table(path, text, table, "lesson")
    runs = []
    for arm in table["arm"]:
        _check_table(path, text, arm, "arm")
        settings = {**common, **table.get("settings", {}), **arm.get("settings", {})}
        seconds = float(arm.get("seconds", table["seconds"]))
        runs += [
            LessonRun(table["name"], arm["name"], int(seed), settings, seconds, table.get("text_characters", 0))
            for seed in arm.get("seeds", [0])
        ]
    return Lesson(table["name"], table["title"], table["claim"], table["about"], tuple(runs))


def _check_table(path: Path, text: str, table: Mapping[str, Any], kind: str) -> None:
    known = _KEYS[kind]
    for key, value in table.items():
        if key not in known:
            line = _line_of(text, key, table)
            raise HarnessError(f"{path}:{line}: unknown key '{key}' of {kind}; {did_you_mean(key, known)}")
        if not isinstance(value, known[key]) or isinstance(value, bool):
            found = type(value).__name__
            line = _line_of(text, key, table)
            raise HarnessError(f"{path}:{line}: '{key}' of {kind} has a value of type {found}")
    if missing := sorted(_REQUIRED[kind] - set(table)):
        line = _line_of(text, "name", table)
        raise HarnessError(f"{path}:{line}: the {kind} lacks the key '{missing[0]}'")


def _line_of(text: str, key: str, table: Mapping[str, Any]) -> int:
    """Return the number of the line that sets `key`, the first after the table's name; 1 if there is none."""
    named = re.search(rf"""name = "{re.escape(str(table.get("name")))}\"""", text)
    found = re.compile(rf"(?<![\w-]){re.escape(key)}(?![\w-])").search(text, named.start() if named else 0)
    return 1 + text.count("\n", 0, found.start()) if found else 1


def chosen(lessons: Sequence[Lesson], names: Iterable[str] = (), only: Iterable[str] = ()) -> list[LessonRun]:
    """Return the runs of the lessons called `names`, of those arms that `only` names; neither leaves any out if empty.

    `only` may have wildcards: `constant-*`. Raises HarnessError for a word that names nothing.
    """
    wanted, arms = list(names), list(only)
    known = {lesson.name for lesson in lessons}
    if unknown := [name for name in wanted if name not in known]:
        raise HarnessError(f"no lesson is called '{unknown[0]}'; {did_you_mean(unknown[0], known)}")
    runs = [run for lesson in lessons if not wanted or lesson.name in wanted for run in lesson.runs]
    for pattern in arms:
        if not any(fnmatchcase(run.arm, pattern) for run in runs):
            found = {run.arm for run in runs}
            raise HarnessError(f"--only {pattern}: these lessons have no such arm; {did_you_mean(pattern, found)}")
    return [run for run in runs if not arms or any(fnmatchcase(run.arm, pattern) for pattern in arms)]


def flags(settings: Settings) -> Iterator[str]:
    """Yield the settings as flags of the trainer: `--n-layer 4`; a true one alone, a false one with `--no-`."""
    for name, value in settings.items():
        flag = name.replace("_", "-")
        if isinstance(value, bool):
            yield f"--{flag}" if value else f"--no-{flag}"
        else:
            yield from (f"--{flag}", str(value))
