"""The log of a run, `log.jsonl`: one JSON object a line, whole or absent, and TensorBoard's events beside it.

Events: header, resume, step, validation, sample, checkpoint and end. The `step` of a step is its number, from 0; its
loss is that of the weights before its update, as the validation's with the same `step` is. In all other events `step`
counts the steps completed.
"""

import contextlib
import json
import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gpt.errors import PackageMissing, RunError
from gpt.training.checkpoints import BEST

LOG = "log.jsonl"


class RunLog:
    """The open log of a run. Each event is written with one call, so that a killed process leaves whole lines.

    Raises `RunError` when the file cannot be written, `PackageMissing` when TensorBoard is wanted and not there.
    """

    def __init__(self, path: Path, *, tensorboard: Path | None = None, step: int = 0) -> None:
        self.path = path
        self._scalars = summary_writer(tensorboard, step) if tensorboard else None
        try:
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise RunError(f"{path}: cannot be written ({error.strerror}); choose another --out") from error

    def write(self, event: str, **values: Any) -> None:
        """Append one event. Values that are not finite become null."""
        line = json.dumps({"event": event} | _finite(values), ensure_ascii=False, allow_nan=False) + "\n"
        raw = line.encode("utf-8", "replace")
        try:
            written = self._file.write(raw)
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); make room and resume") from error
        if written != len(raw):
            raise RunError(f"{self.path}: only {written} of {len(raw)} bytes were written; make room and resume")
        if self._scalars and event in ("step", "validation"):
            for name, value in values.items():
                if name != "step" and isinstance(value, int | float) and math.isfinite(value):
                    self._scalars.add_scalar(f"{event}/{name}", value, values["step"])

    def flush_to_disk(self) -> None:
        """Return when all lines are on the disk: a checkpoint must not be newer than its log."""
        try:
            os.fsync(self._file.fileno())
        except OSError as error:
            raise RunError(f"{self.path}: cannot be written ({error.strerror}); make room and resume") from error

    def close(self) -> None:
        """Close the file."""
        self._file.close()
        if self._scalars:
            self._scalars.close()


def read_log(path: Path) -> list[dict[str, Any]]:
    """Return the events of a log. An incomplete last line, of a process that was killed, is left out.

    Raises `RunError` for a line that is no event.
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        raise RunError(f"{path}: cannot be read ({error.strerror}); expected the log of a run") from error
    events = []
    for number, line in enumerate(lines[:-1], start=1):  # after the last line end comes nothing, or half a line
        try:
            event = json.loads(line)
            if not isinstance(event.get("event"), str) or not isinstance(event.get("step"), int):
                raise ValueError("it has no event or no step")
        except (ValueError, AttributeError) as error:
            raise RunError(f"{path}:{number}: is no event of a log ({error}); remove the line to go on") from error
        events.append(event)
    return events


def truncate_log(path: Path, step: int, last: Mapping[str, int]) -> None:
    """Remove what a log says about the time after a checkpoint of `step` steps, which a resumed run does again.

    `last` is the step of the last validation and of the last sample that the checkpoint knows of: it may have been
    saved before those of its step. The new file replaces the old one as a whole. Raises `RunError`.
    """
    last = {"step": step - 1, **last}
    events = read_log(path) if path.exists() else []
    kept = [event for event in events if event["step"] <= last.get(_belongs_to(event), step)]
    partial = path.with_name(f".{path.name}")
    try:
        with partial.open("wb") as file:
            file.writelines(json.dumps(event, ensure_ascii=False).encode() + b"\n" for event in kept)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise RunError(f"{path}: cannot be written ({error.strerror}); make room and resume") from error


def _belongs_to(event: Mapping[str, Any]) -> str:
    """Return the kind of an event; a best checkpoint is saved, and saved again, with its validation."""
    return "validation" if event.get("name") == BEST else str(event["event"])


def require_tensorboard() -> None:
    """Raise `PackageMissing` unless TensorBoard's events can be written."""
    _summary_writer_class()


def summary_writer(folder: Path, step: int) -> Any:
    """Return TensorBoard's writer, which hides what earlier files in the folder have from `step` on.

    Raises `PackageMissing`.
    """
    return _summary_writer_class()(str(folder), purge_step=step)


def _summary_writer_class() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise PackageMissing(
            "--tensorboard needs the package tensorboard, which is not installed; install it, or leave the flag out "
            f"({LOG} has every number)"
        ) from error
    return SummaryWriter


def _finite(values: Mapping[str, Any]) -> dict[str, Any]:
    """Return values without NaN and infinities, for which JSON has no numbers."""
    return {
        name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in values.items()
    }
