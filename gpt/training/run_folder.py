"""The folder of a run: what tells what the run is, written whole or not at all."""

import contextlib
import fcntl
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any, Self

from gpt.data import Vocabulary
from gpt.errors import RunError, RunExists
from gpt.training.checkpoints import flush_to_disk
from gpt.training.command_line import CONFIG
from gpt.training.config import TrainConfig
from gpt.training.config_file import to_toml
from gpt.training.run_log import LOG

ENVIRONMENT, VOCABULARY, CHECKPOINTS, LOCK = "environment.json", "vocabulary.json", "checkpoints", ".lock"


class FolderLock:
    """The right to write into a run's folder, which one process has at a time, from `take` on.

    Two processes would each cut the other's log, and remove checkpoints that the other is about to resume from.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: IO[bytes] | None = None

    def take(self) -> None:
        """Create the folder if need be, and lock it. Raises `RunError` if another process has it, or if it cannot."""
        path = self.folder / LOCK
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._file = path.open("ab")
        except OSError as error:
            raise cannot_be_written(path, error) from error
        try:
            # Not flock: the loader's processes would inherit it, and keep it for seconds after the run was killed.
            fcntl.lockf(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RunError(
                f"{self.folder}: is in use by another process ({error.strerror}); wait until it has saved and ended, "
                "or end it"
            ) from error

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._file:
            self._file.close()


def check_new(folder: Path) -> None:
    """Raise `RunExists` if there is a run in the folder already, `RunError` if it is no folder."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: is not a folder; choose another --out")
    found = [name for name in (CONFIG, LOG, CHECKPOINTS) if (folder / name).exists()]
    if found:
        raise RunExists(
            f"{folder}: has a run already ({', '.join(found)}); continue it with --resume {folder}, "
            "or choose another --out"
        )


def write_start(folder: Path, config: TrainConfig, *, environment: Mapping[str, Any], vocabulary: Vocabulary) -> None:
    """Create the folder of a new run with its configuration, its environment and its vocabulary. Raises `RunError`."""
    write_text(folder / ENVIRONMENT, json.dumps(environment, indent=1, ensure_ascii=False) + "\n")
    write_text(folder / VOCABULARY, vocabulary.to_json() + "\n")
    write_config(folder, config)  # the last one: a folder with a configuration is a run


def write_config(folder: Path, config: TrainConfig) -> None:
    """Write the configuration of a run. Raises `RunError`."""
    write_text(folder / CONFIG, to_toml(config))


def write_text(path: Path, text: str) -> None:
    """Replace a file by a text, down to the disk: a reader finds the old one or the new one. Raises `RunError`."""
    partial = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("w", encoding="utf-8", newline="\n") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
        flush_to_disk(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise cannot_be_written(path, error) from error


def cannot_be_written(path: Path, error: OSError) -> RunError:
    """Return the error of a file in a run's folder that the system does not let us write."""
    return RunError(f"{path}: cannot be written ({error.strerror}); choose another --out, or make room")
