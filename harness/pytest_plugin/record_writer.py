"""Write the records of a run to disk as they come."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from harness.core.record_files import RecordWriter, Row
from harness.pytest_plugin.options import subject_names, trainer_names

ATTEMPTS = 100  # runs that may start in the same second


class RunWriter:
    """Appends rows to a run's record file and to `collected`, which is of all runs of the session, for the summary.

    `footer` goes into its last line.
    """

    def __init__(self, recorder: RecordWriter, collected: list[Row]) -> None:
        self.recorder = recorder
        self.footer: dict[str, Any] = {}
        self._rows: list[Row] = []
        self._collected = collected

    def write(self, row: Row) -> None:
        """Append one row. It is on disk when this returns."""
        self.recorder.write(row)
        self._rows.append(row)
        self._collected.append(row)

    def restore(self) -> bool:
        """Write the file again from memory, if somebody has deleted it, and return whether it was gone."""
        if self.recorder.path.exists():
            return False
        self.recorder = RecordWriter(self.recorder.path, self.recorder.header)
        for row in self._rows:
            self.recorder.write(row)
        return True


def code_folder(config: pytest.Config) -> Path:
    """Return the folder whose commit is the subject's: its file's, the current one for a module, ours by default."""
    if config.getoption("--subject") is None and config.getoption("--trainer") is None:
        return config.rootpath
    names = (*subject_names(config), *trainer_names(config))
    files = (Path(file) for name in names for file in (name, name.rpartition(":")[0]) if Path(file).is_file())
    return next((file.parent for file in files), config.invocation_params.dir)


def open_record_file(config: pytest.Config, folder: Any, run: str, started: str) -> RecordWriter:
    """Create the record file of a run and write its header.

    Args:
        config: of the run.
        folder: the folder of the reports.
        run: "verify" or "bench".
        started: the time in UTC, as ISO 8601.

    Raises:
        OSError: if the file cannot be created.
    """
    from harness.core.environment import environment  # imports torch

    header = {
        "run": run,
        "started": started,
        "subject": {"name": ", ".join(subject_names(config) or trainer_names(config))},
        "subjects": subject_names(config),
        "trainers": trainer_names(config),
        "arguments": list(config.invocation_params.args),
        "device": config.getoption("--device"),
        "environment": environment(code_folder(config)),
    }
    stamp = started.replace(":", "").replace("-", "")
    for attempt in range(ATTEMPTS):
        name = f"{run}-{stamp}" + (f"-{attempt}" if attempt else "")
        try:
            return RecordWriter(folder / "records" / f"{name}.jsonl", header)
        except FileExistsError:
            continue  # another run started in the same second
    raise FileExistsError(f"{folder}/records has {ATTEMPTS} runs of {stamp}")
