"""The report of a sweep on disk: a page, its tables as CSV and its figures as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from harness.core.record_files import Row, age, read
from harness.report.json_values import as_cell
from harness.report.page_files import linked_files, remove_stale, write_page, write_table
from harness.report.report_files import link_other_pages
from harness.report.sweeps.iso_flop_plot import plots
from harness.report.sweeps.page import page
from harness.report.sweeps.sweep_rows import Sweep

PAGE = "sweep.md"
KIND = "sweep"  # of the run, in the header and in the name of the record file
# As `gpt-harness sweep --fit` reads them.
RUN_COLUMNS = (
    *("name", "source", "budget", "width", "seed", "parameters", "non_embedding", "tokens", "flops", "loss"),
    *("model_flops", "lr", "steps", "train_tokens", "tokens_per_second", "seconds", "why", "made"),
)
FIT_COLUMNS = ("source", "count", "approach", "name", "value", "low", "high")


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the report of a record file's rows into `folder`; return its files, the page first."""
    sweep = Sweep.of(rows)
    path = folder / PAGE
    before = linked_files(path)
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    write_page(path, page(rows))
    link_other_pages(folder)
    written = [path]
    fits: list[Row] = [
        {
            "source": fit.source, "count": fit.count, "approach": fit.approach, "name": name,
            "value": value.value, "low": value.low, "high": value.high,
        }
        for fit in sweep.fits
        for name, value in fit.values.items()
    ]  # fmt: skip
    cells = [{key: as_cell(value) for key, value in run.items()} for run in sweep.runs]
    for name, columns, found in (("sweep-runs", RUN_COLUMNS, cells), ("sweep-fits", FIT_COLUMNS, fits)):
        table = folder / "tables" / f"{name}.csv"
        write_table(table, columns, found)
        written.append(table)
    for plot in plots(sweep):
        written += plot.save(folder / "plots")
    remove_stale(before, written)
    return written


def write_from(folder: Path, records: Path) -> list[Path]:
    """Write the report of a record file into `folder`; return its files, the page first."""
    return write(folder, read(records))


def newest_records(folder: Path) -> Path | None:
    """Return the newest record file of a sweep in a folder of records; None if there is none."""
    return max(folder.glob(f"{KIND}-*.jsonl"), key=age, default=None)
