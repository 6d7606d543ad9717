"""The folder of one run: what the trainer wrote, and a file of the lessons that says which run it is and how far."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from harness.core.record_files import Row, encode
from harness.core.shipped_packages import HOME
from harness.core.whole_file import write_whole
from harness.lessons.lesson_file import LessonRun
from harness.lessons.run_row import run_row
from harness.lessons.training_log import LOG, TrainingLog, read_training_log

RUNS = "lessons"  # the folder of the runs, in that of the reports
STATE = "lesson.json"
ENVIRONMENT = "environment.json"  # the trainer's
OUTPUT = "output.txt"
CONFIG = "config.toml"
IDENTITY = ("lesson", "arm", "seed", "preset", "text_characters")  # of a LessonRun, without its settings


@dataclass(frozen=True)
class RunState:
    """What is known of a run besides the trainer's files: its identity, the seconds so far, and if it is done.

    `made` is when and by which commit it was started. `settings` are those that it was started with, `run` has the
    lesson, arm, seed and preset.
    """

    fingerprint: str
    seconds: float = 0.0
    finished: bool = False
    made: Mapping[str, Any] | None = None
    settings: Mapping[str, Any] | None = None
    run: Mapping[str, Any] | None = None


class RunFolder:
    """The folder of a run below `parent`. A run of another fingerprint in it is replaced when this run starts."""

    def __init__(self, parent: Path, run: LessonRun, fingerprint: str) -> None:
        self.path = parent.resolve() / run.name
        self.run = run
        self.fingerprint = fingerprint

    @property
    def state(self) -> RunState:
        """The state in the folder; that of a run that was not started if there is none, or another run's."""
        state = read_state(self.path)
        return state if state and state.fingerprint == self.fingerprint else RunState(self.fingerprint)

    @property
    def log(self) -> TrainingLog:
        """What the trainer has logged so far."""
        return read_training_log(self.path / LOG)

    @property
    def finished(self) -> bool:
        """True if the run was done to its end, as it is declared now and by the trainer as it is now."""
        return self.state.finished

    @property
    def outdated(self) -> bool:
        """True if the folder has a run of other settings or of another version of the trainer, which is done again."""
        state = read_state(self.path)
        return state is not None and state.fingerprint != self.fingerprint

    @property
    def resumable(self) -> bool:
        """True if this run was started: the trainer writes its configuration last, so it can resume from then on."""
        return self.state.made is not None and (self.path / CONFIG).is_file()

    def prepare(self, commit: str | None) -> bool:
        """Make the folder ready for a process, and return True if it is to resume the run.

        Otherwise the folder is emptied.
        """
        if self.resumable:
            return True
        if self.path.exists():
            shutil.rmtree(self.path)
        self.path.mkdir(parents=True)
        made = {"date": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"), "git_commit": commit}
        run = {name: getattr(self.run, name) for name in IDENTITY}
        self._write(RunState(self.fingerprint, made=made, settings=dict(self.run.settings), run=run))
        return False

    def add(self, seconds: float, *, finished: bool) -> None:
        """Note that a process of this run has ended after so many seconds."""
        state = self.state
        self._write(replace(state, seconds=state.seconds + seconds, finished=finished))

    def row(self) -> Row:
        """Return the run as a row of a record file."""
        state = self.state
        run = replace(self.run, settings=state.settings) if state.settings else self.run
        found = _read_json(self.path / ENVIRONMENT)
        machine = {name: value for name, value in found.items() if name in ("device_name", "torch", "threads")}
        return run_row(run, self.log, seconds=state.seconds, made={**(state.made or {}), **machine})

    def last_words(self) -> str:
        """Return the last line that the trainer printed, which after a failure says why."""
        try:
            lines = (self.path / OUTPUT).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        except OSError:
            lines = []
        return lines[-1] if lines else "it printed nothing"

    def _write(self, state: RunState) -> None:
        write_whole(self.path / STATE, json.dumps(encode(asdict(state)), indent=1) + "\n")


def read_state(folder: Path) -> RunState | None:
    """Return the state of the run in a folder; None if there is none that can be read."""
    try:
        return RunState(**_read_json(folder / STATE))
    except TypeError:
        return None


def preset_runs(parent: Path) -> Iterator[RunFolder]:
    """Yield the folders of the runs of presets that were started below `parent`, with the settings they had."""
    for path in sorted(parent.glob(f"*/{STATE}")):
        state = read_state(path.parent)
        if state and state.run and state.run.get("preset"):
            run = LessonRun(**{name: state.run[name] for name in IDENTITY}, settings=state.settings or {}, seconds=0.0)
            yield RunFolder(parent, run, state.fingerprint)


def _read_json(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def fingerprint(run: LessonRun, identity: Mapping[str, Any] | None = None) -> str:
    """Return a hash of what a run's result depends on: its settings, its text, and the trainer's source.

    `identity` replaces the settings where those are chosen by measurement.
    """
    inputs = [run.name, identity if identity is not None else run.settings, run.text_characters]
    digest = hashlib.sha256(json.dumps(encode(inputs), sort_keys=True).encode())
    source = HOME / "gpt"  # a folder, not an import: the harness does not know the reference
    for path in sorted(path for kind in ("*.py", "*.toml") for path in source.rglob(kind)):
        if "tests" not in path.relative_to(source).parts:
            digest.update(f"\n{path.relative_to(source)}\n".encode() + path.read_bytes())
    return digest.hexdigest()[:16]
