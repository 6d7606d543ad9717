"""The report of the lessons' runs on disk: a page, its tables as CSV and its figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.record_files import Row, age, read
from harness.report.lessons.page import page, plots_of
from harness.report.lessons.tables import tables
from harness.report.lessons.training_runs import LessonRuns
from harness.report.page_files import linked_files, remove_stale, write_page, write_table
from harness.report.report_files import link_other_pages

PAGE = "lessons.md"
KIND = "lessons"  # of the run, in the header and in the name of the record file


def write(folder: Path, rows: Sequence[Row], *, records: Path | None = None) -> list[Path]:
    """Write the report of a record file's rows into `folder`; return its files, the page first.

    Record files beside `records` that are older than it are named on the page. Files that the previous page linked to,
    and the new one does not, are removed.
    """
    found = LessonRuns.of(rows)
    path = folder / PAGE
    before = linked_files(path)
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_page(path, page(rows, older_records(records)))
    link_other_pages(folder)
    written = [path]
    for name, (_, columns, cells) in tables(found).items():
        table = folder / "tables" / f"{name}.csv"
        write_table(table, columns, cells)
        written.append(table)
    for plots in plots_of(found).values():
        for plot in plots:
            written += plot.save(folder / "plots")
    remove_stale(before, written)
    return written


def write_from(folder: Path, records: Path) -> list[Path]:
    """Write the report of a record file into `folder`; return its files, the page first."""
    return write(folder, read(records), records=records)


def newest_records(folder: Path) -> Path | None:
    """Return the newest record file of the lessons' runs in a folder of records; None if there is none."""
    return max(folder.glob(f"{KIND}-*.jsonl"), key=age, default=None)


def older_records(records: Path | None) -> list[str]:
    """Return the names of the record files beside `records` that are older, the newest first."""
    if records is None:
        return []
    paths = sorted(records.parent.glob(f"{KIND}-*.jsonl"), key=age, reverse=True)
    return [path.name for path in paths if age(path) < age(records)]
