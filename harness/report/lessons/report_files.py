"""The report of the lessons' runs on disk: a page, its tables as CSV and its figures as PNG and SVG."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from pathlib import Path

from harness.core.record_files import Row, read
from harness.report.lessons.page import page, plots_of
from harness.report.lessons.tables import tables
from harness.report.lessons.training_runs import LessonRuns
from harness.report.report_files import age, link_other_pages, spell_nan

PAGE = "lessons.md"
KIND = "lessons"  # of the run, in the header and in the name of the record file


def write(folder: Path, rows: Sequence[Row], *, records: Path | None = None) -> list[Path]:
    """Write the report of a record file's rows into `folder`; return its files, the page first.

    Record files beside `records` that are older than it are named on the page. Files that the previous page linked to,
    and the new one does not, are removed.
    """
    import pandas  # slow to import

    found = LessonRuns.of(rows)
    path = folder / PAGE
    before = linked_files(path)
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(f".{os.getpid()}.tmp")  # replaced in one step, so that no reader sees half a page
    fresh.write_text(page(rows, older_records(records)), encoding="utf-8", errors="replace")
    fresh.replace(path)
    link_other_pages(folder)
    written = [path]
    for name, (_, columns, cells) in tables(found).items():
        table = folder / "tables" / f"{name}.csv"
        spelled = [[spell_nan(row.get(column)) for column in columns] for row in cells]
        pandas.DataFrame(spelled, columns=columns, dtype=object).to_csv(table, index=False, errors="replace")
        written.append(table)
    for plots in plots_of(found).values():
        for plot in plots:
            written += plot.save(folder / "plots")
    for stale in before - set(written):
        stale.unlink(missing_ok=True)
    return written


def write_from(folder: Path, records: Path) -> list[Path]:
    """Write the report of a record file into `folder`; return its files, the page first."""
    return write(folder, read(records), records=records)


def newest_records(folder: Path) -> Path | None:
    """Return the newest record file of the lessons' runs in a folder of records; None if there is none."""
    return max(folder.glob(f"{KIND}-*.jsonl"), key=age, default=None)


def linked_files(page_path: Path) -> set[Path]:
    """Return the tables and plots that a page links to."""
    text = page_path.read_text(encoding="utf-8", errors="replace") if page_path.is_file() else ""
    links = re.findall(r"\]\(((?:tables|plots)/[\w-]+\.(?:csv|png|svg))\)", text)
    return {page_path.parent / link for link in links}


def older_records(records: Path | None) -> list[str]:
    """Return the names of the record files beside `records` that are older, the newest first."""
    if records is None:
        return []
    paths = sorted(records.parent.glob(f"{KIND}-*.jsonl"), key=age, reverse=True)
    return [path.name for path in paths if age(path) < age(records)]
