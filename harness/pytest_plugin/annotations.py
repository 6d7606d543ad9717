"""Annotations of a run in GitHub Actions: what is wrong, at the lines of the subject."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from harness.core.error_text import is_user_file
from harness.core.github_actions import command
from harness.core.record_files import Row
from harness.pytest_plugin.terminal_summary import in_order, is_bad, unexplained

MOST = 10  # annotations of one kind that GitHub shows of a step


def error_lines(checks: Sequence[Row], diagnoses: Mapping[str, Row]) -> list[str]:
    """Return the lines that annotate what is wrong: the findings at their lines, then what they do not explain."""
    lines = []
    for subject in dict.fromkeys(str(row["subject"]) for row in checks):
        bad = [row for row in checks if row["subject"] == subject and is_bad(row)]
        diagnosis = diagnoses.get(subject, {})
        found = in_order(diagnosis)
        lines += [*map(_finding, found), *_failures(unexplained(bad, diagnosis), found)]
    return lines[:MOST]


def _finding(found: Row) -> str:
    file, _, line = str(found.get("source") or "").rpartition(":")
    title = found.get("fault") or found.get("where") or "gpt-harness"
    return command(f"{found['cause']}; {found['evidence']}", file=file, line=line, title=str(title))


def _failures(bad: Sequence[Row], findings: Sequence[Row]) -> Iterator[str]:
    """Yield a line for each place at which checks raised an error; the others are each a line, or one beside findings.

    A place that is a finding's is not repeated.
    """
    by_place: dict[str, list[Row]] = {}
    for row in bad:
        by_place.setdefault(_place(row), []).append(row)
    without = by_place.pop("", [])
    for place, rows in by_place.items():
        if place not in {found.get("source") for found in findings}:
            file, _, line = place.rpartition(":")
            yield command(_text(rows), file=file, line=line, title=str(rows[0]["id"]))
    for rows in [without] if findings and without else [[row] for row in without]:
        file = str(rows[0]["subject"]).rpartition(":")[0] or str(rows[0]["subject"])  # a training program has no colon
        known = file if not findings and Path(file).is_file() else ""
        title = "what else fails" if findings else str(rows[0]["id"])
        yield command(_text(rows), file=known, line="1" if known else "", title=title)


def _place(row: Row) -> str:
    """Return the line of the user's that raised the error, as `my_gpt.py:37`; "" if none did."""
    place = str((row["details"].get("raised") or {}).get("place") or "").partition(" in ")[0]
    return place if is_user_file(str(Path(place.rpartition(":")[0]).resolve())) else ""


def usage_error_line(message: str) -> str:
    """Return the line that annotates why a run did not begin, at the first line of a file that the message names."""
    at = re.search(r"([^\s:'\"]+\.(?:py|toml)):(\d+)", message)
    file, line = at.groups() if at and os.path.isfile(at[1]) else ("", "")  # False for a path that is too long
    return command(message, file=file, line=line, title="gpt-harness: nothing was judged")


def _text(rows: Sequence[Row]) -> str:
    """Return the message of the first failure, how to run it again, and how many others there are."""
    text = f"{rows[0]['message']}; run again: {rows[0]['rerun']}"
    return text if len(rows) == 1 else f"{text}; {len(rows) - 1} more checks fail so"
