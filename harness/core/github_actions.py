"""GitHub Actions: workflow commands, and the page of a step.

Source: docs.github.com, "Workflow commands for GitHub Actions"; the escapes are those of actions/toolkit, command.ts.
"""

from __future__ import annotations

import os
from pathlib import Path


def is_running_there() -> bool:
    """Return True in a step of a workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def command(message: str, **properties: str) -> str:
    """Return the workflow command that shows an error: `::error file=my_gpt.py,line=40,title=gelu::the exact GELU`."""
    if properties.get("file"):
        properties["file"] = _in_repository(properties["file"])
    shown = ",".join(f"{key}={_property(value)}" for key, value in properties.items() if value)
    return f"::error {shown}::{_data(message)}"


def _data(text: str) -> str:
    return text.replace("%", "%25").replace("\r", "%0D").replace("\n", "%0A")


def _property(text: str) -> str:
    return _data(text).replace(":", "%3A").replace(",", "%2C")


def _in_repository(file: str) -> str:
    """Return a path as GitHub wants it: from the root of the repository that is checked out."""
    root = os.environ.get("GITHUB_WORKSPACE")
    path = Path(file).resolve()
    return path.relative_to(root).as_posix() if root and path.is_relative_to(root) else file


def write_summary(text: str) -> None:
    """Append Markdown to the page of the step. Raises OSError if its file cannot be written."""
    if file := os.environ.get("GITHUB_STEP_SUMMARY"):
        with Path(file).open("a", encoding="utf-8", errors="replace") as summary:
            summary.write(text + "\n")
