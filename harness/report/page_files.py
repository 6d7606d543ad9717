"""A page of a report on disk, and the tables and plots that it links to."""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

from harness.core.record_files import Row
from harness.core.whole_file import write_whole

LINK = re.compile(r"\]\(((?:tables|plots)/[\w-]+\.(?:csv|png|svg))\)")


def write_page(path: Path, text: str) -> None:
    """Write a page in one step; a character that cannot be encoded, as of a path on disk, becomes `?`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, text, errors="replace")


def write_table(path: Path, columns: Sequence[str], rows: Iterable[Row]) -> None:
    """Write rows as CSV. NaN is written as a word: an empty cell says that nothing was measured."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows([_cell(row.get(column)) for column in columns] for row in rows)


def _cell(value: object) -> object:
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def linked_files(path: Path) -> set[Path]:
    """Return the tables and plots that the page at `path` links to; an empty set if there is no page."""
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return {path.parent / link for link in LINK.findall(text)}


def remove_stale(before: Iterable[Path], written: Iterable[Path]) -> None:
    """Remove the files of an earlier page that the new one does not have."""
    for stale in set(before) - set(written):
        stale.unlink(missing_ok=True)
