"""The texts of the lessons' runs: a part of a published text, as a file that the trainer reads."""

from __future__ import annotations

import importlib
from collections.abc import Sequence
from pathlib import Path

from harness.core.errors import HarnessError
from harness.core.shipped_packages import shipped_package
from harness.core.whole_file import write_whole
from harness.lessons.lesson_file import LessonRun

TEXT_LOADER = "gpt.data:load_text"  # a name, not an import, as in harness.core.resources


def write_texts(folder: Path, runs: Sequence[LessonRun]) -> dict[str, Path]:
    """Write the first `text_characters` characters of each text that is cut, and return the file of each such run.

    Raises HarnessError if a text is not at hand or shorter.
    """
    found: dict[str, Path] = {}
    for run in runs:
        if run.text_characters:
            name = str(run.settings.get("text", "tinyshakespeare"))
            found[run.name] = _write(folder, name, run.text_characters)
    return found


def _write(folder: Path, name: str, characters: int) -> Path:
    path = folder.resolve() / f"{Path(name).stem}-{characters}.txt"
    if not path.exists():
        text = load_text(name)
        if len(text) < characters:
            raise HarnessError(f"the text '{name}' has {len(text):,} characters; expected at least {characters:,}")
        folder.mkdir(parents=True, exist_ok=True)
        write_whole(path, text[:characters])
    return path


def load_text(name: str) -> str:
    """Return a published text or a file. Raises HarnessError, with how to get it, if it is not at hand."""
    module, function = TEXT_LOADER.split(":")
    try:
        with shipped_package(module.split(".")[0]):  # a user's own package may have the same name
            return str(getattr(importlib.import_module(module), function)(name))
    except Exception as error:
        raise HarnessError(f"the text '{name}' cannot be read: {error}") from error
