"""The report of the claims on disk: claims.md, its table as CSV, and its figures as PNG and SVG."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.core.record_files import Row
from harness.report.claims.claim_rows import ClaimRow, claims_of
from harness.report.claims.figures import plots
from harness.report.claims.measured import measured_text
from harness.report.claims.page import page
from harness.report.json_values import as_cell
from harness.report.page_files import linked_files, remove_stale, write_page
from harness.report.run_records import RunRecords

PAGE = "claims.md"
COLUMNS = (
    "name", "lesson", "level", "says", "figure", "derived", "claimed", "corrected", "setting", "measured", "unit",
    "low", "high", "over", "measured_elsewhere", "text", "finding", "ledger", "verdict", "by", "run", "machine",
    "missing", "why", "source", "rerun", "seconds",
)  # fmt: skip


def write(folder: Path, run: RunRecords, runs: Iterable[RunRecords] = ()) -> list[Path]:
    """Write the report of a run's claims into `folder`; return its files, the page first. Empty if it has no claims.

    `runs` are verification runs of the same subject, the newest first, whose suites the page shows beside the claims.
    Files that the previous page linked to, and the new one does not, are removed.
    """
    claims = claims_of(run)
    if not claims:
        return []
    path = folder / PAGE
    before, drawn = linked_files(path), plots(run)
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_page(path, page(run, drawn, runs))
    written = [path, write_table(folder / "tables" / "claims.csv", claims)]
    for plot in drawn:
        written += plot.save(folder / "plots")
    remove_stale(before, written)
    return written


def write_table(path: Path, claims: list[ClaimRow]) -> Path:
    """Write one row for each claim."""
    with path.open("w", encoding="utf-8", errors="replace", newline="") as file:
        writer = csv.DictWriter(file, COLUMNS)
        writer.writeheader()
        writer.writerows(rows(claims))
    return path


def rows(claims: list[ClaimRow]) -> Iterator[Row]:
    """Yield the rows of the table; nested values become JSON, and NaN a word."""
    for claim in claims:
        first = claim.readings[0] if claim.readings else None
        other = claim.readings[1] if len(claim.readings) > 1 else None
        row = {
            **{key: getattr(claim, key) for key in COLUMNS if hasattr(claim, key)},
            "claimed": claim.expected_text.get("claimed"),
            "corrected": claim.expected_text.get("corrected"),
            "measured": first and first.value,
            "unit": first and first.unit,
            "measured_elsewhere": other and other.value,
            "text": measured_text(claim) if first else "",
            "run": first and first.origin.get("file"),
            "machine": first and first.origin.get("machine"),
            "missing": claim.message if claim.verdict == "skip" else "",
            **({key: first.spread.get(key) for key in ("low", "high", "over")} if first else {}),
            **{key: claim.row.get(key) for key in ("why", "source", "rerun", "seconds")},
        }
        yield {key: _cell(value) for key, value in row.items()}


def _cell(value: object) -> object:
    return "nan" if isinstance(value, float) and math.isnan(value) else as_cell(value)
