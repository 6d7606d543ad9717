"""GitHub Actions: annotations at the lines of the subject, and a summary on the page of the step.

Source: docs.github.com, "Workflow commands for GitHub Actions"; the escapes are those of actions/toolkit, command.ts.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.core.record_files import Row
from harness.pytest_plugin.terminal_summary import in_order

MOST = 10  # annotations of one kind that GitHub shows of a step
BAD = ("fail", "error")


def is_running_there() -> bool:
    """Return True in a step of a workflow."""
    return os.environ.get("GITHUB_ACTIONS") == "true"


def error_lines(checks: Sequence[Row], diagnoses: Mapping[str, Row]) -> list[str]:
    """Return the lines that annotate what is wrong: the findings at their lines, then what they do not explain."""
    return [*_findings(diagnoses), *_failures(checks, diagnoses)][:MOST]


def _findings(diagnoses: Mapping[str, Row]) -> Iterator[str]:
    for diagnosis in diagnoses.values():
        for found in in_order(diagnosis):
            file, _, line = str(found.get("source") or "").rpartition(":")
            title = found.get("fault") or found.get("where") or "gpt-harness"
            yield command(f"{found['cause']}; {found['evidence']}", file=file, line=line, title=str(title))


def _failures(checks: Sequence[Row], diagnoses: Mapping[str, Row]) -> Iterator[str]:
    explained = {each for diagnosis in diagnoses.values() for each in diagnosis.get("explained", ())}
    for row in checks:
        if row["verdict"] in BAD and not row.get("declared") and row["id"] not in explained:
            file = str(row["subject"]).rpartition(":")[0] or str(row["subject"])
            is_file = Path(file).is_file()
            text = f"{row['message']}; run again: {row['rerun']}"
            yield command(text, file=file if is_file else "", line="1" if is_file else "", title=str(row["id"]))


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
