"""The records of other runs, which claims about training and about time are judged by."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harness.core.errors import MissingResource
from harness.core.record_files import Row, age, read
from harness.core.resources import Resources

COMMANDS = {"lessons": "make lessons", "bench": "make bench", "sweep": "gpt-harness sweep"}
OF_THE_TRAINER = ("lessons", "sweep")  # runs whose subject is the program that trains the GPT


@dataclass(frozen=True)
class RecordedRun:
    """One run: the name of its record file, and its rows."""

    file: str
    rows: Sequence[Row]

    @property
    def header(self) -> Row:
        """The first row: when and where the run was."""
        return self.rows[0]

    @property
    def footer(self) -> Row:
        """The last row, empty if the run died."""
        return self.rows[-1] if self.rows[-1].get("kind") == "footer" else {}

    def of_kind(self, kind: str) -> list[Row]:
        """Return the rows of a kind."""
        return [row for row in self.rows if row.get("kind") == kind]

    @property
    def machine(self) -> str:
        """The processor of the run, and how many cores it had."""
        environment = self.header.get("environment") or {}
        processor = environment.get("gpu") or environment.get("cpu") or "an unknown processor"
        return f"{processor}, {environment.get('cores', '?')} cores"

    @property
    def origin(self) -> dict[str, str]:
        """What a reading says about the run that it was taken from."""
        return {"file": self.file, "machine": self.machine, "started": str(self.header.get("started", ""))}


def newest_run(kind: str, subject: str) -> RecordedRun:
    """Return the newest run of a kind, a key of COMMANDS, of this subject or of the program that trains it.

    Raises MissingResource, with the command that makes one, if there is none.
    """
    folder = Path(Resources.current.records)
    command = COMMANDS[kind]
    paths = sorted(folder.glob(f"{kind}-*.jsonl"), key=age, reverse=True)
    for path in paths:
        run = _recorded_run(path, path.stat().st_mtime_ns)
        name = str((run.header.get("subject") or {}).get("name", ""))
        if name == subject or (kind in OF_THE_TRAINER and _package(name) == _package(subject) is not None):
            return run
    if paths:
        raise MissingResource(f"`{command}` has not run for {subject}; the runs in {folder} are of other subjects")
    raise MissingResource(f"`{command}` has not run")


@functools.lru_cache(maxsize=8)
def _recorded_run(path: Path, modified: int) -> RecordedRun:
    """Return the run of a record file, which is read once for all claims. Do not write into its rows."""
    return RecordedRun(path.name, read(path))


def _package(name: str) -> str | None:
    """Return the package of a subject or trainer, `gpt` of `gpt:GPT` and of `gpt.train`; None of a file's."""
    location = name.partition(":")[0]
    return None if location.endswith(".py") or "/" in location else location.split(".")[0]
