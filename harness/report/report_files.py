"""The report on disk: one page, its tables as CSV and its plots as PNG and SVG."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator
from pathlib import Path

from harness.core import record_files
from harness.core.errors import HarnessError
from harness.core.record_files import Row, age
from harness.report.claims import report_files as claims
from harness.report.csv_tables import tables
from harness.report.page import page, plots
from harness.report.page_files import linked_files, remove_stale, write_page
from harness.report.run_records import RunRecords

PAGE = "index.md"
KINDS = ("verify", "bench")
OTHER_PAGES = {
    "lessons.md": "the lessons' training runs",
    "claims.md": "the lessons' claims, derived and measured",
    "faults.md": "known faults, and the checks that kill them",
}
OTHER_PAGES_TITLE = "## Other pages"


def write(folder: Path, verify: list[Row] | None, bench: list[Row] | None) -> list[Path]:
    """Write the report of a verification run, a benchmark run or both into `folder`; return its files, page first.

    Files that the previous page in `folder` linked to, and the new one does not, are removed.
    """
    verify_run, bench_run = (RunRecords.of(records) if records else None for records in (verify, bench))
    path = folder / PAGE
    before = linked_files(path)
    write_page(path, page(verify, bench))
    of_claims = claims.write(folder, verify_run) if verify_run else []
    link_other_pages(folder)
    written = [
        *write_tables(folder / "tables", verify_run, bench_run),
        *write_plots(folder / "plots", verify_run, bench_run),
    ]
    remove_stale(before, written)
    return [path, *written, *of_claims]


def link_other_pages(folder: Path) -> None:
    """Have the page in `folder`, if there is one, end with links to the other pages that are beside it."""
    path = folder / PAGE
    found = [f"- [{name}]({name}): {what}" for name, what in OTHER_PAGES.items() if (folder / name).is_file()]
    if not found or not path.is_file():
        return
    text = path.read_text(encoding="utf-8", errors="replace").partition(f"\n{OTHER_PAGES_TITLE}\n")[0].rstrip()
    write_page(path, "\n".join([text, "", OTHER_PAGES_TITLE, "", *found, ""]))


def write_tables(folder: Path, verify: RunRecords | None, bench: RunRecords | None) -> Iterator[Path]:
    """Write one CSV for each table that has rows, and yield the paths."""
    import pandas  # slow to import

    folder.mkdir(parents=True, exist_ok=True)
    for name, (columns, rows) in tables(verify, bench).items():
        path = folder / f"{name}.csv"
        cells = [[spell_nan(row.get(column)) for column in columns] for row in rows]
        pandas.DataFrame(cells, columns=columns, dtype=object).to_csv(path, index=False, errors="replace")
        yield path


def spell_nan(value: object) -> object:
    """Return NaN as a word: an empty cell would say that nothing was measured."""
    return "nan" if isinstance(value, float) and math.isnan(value) else value


def write_plots(folder: Path, verify: RunRecords | None, bench: RunRecords | None) -> Iterator[Path]:
    """Write every plot that has data as PNG and SVG, and yield the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots(verify, bench):
        yield from plot.save(folder)


def write_latest(folder: Path, records: Path | None = None, *, of: Iterable[Path] = ()) -> list[Path]:
    """Write the report of the newest run in `records` (default: `folder`/records) into `folder`.

    The report also shows the newest run of the other kind that has the same subject.

    Args:
        folder: where the report is written.
        records: where the record files are.
        of: the record files of the run, used in place of the newest ones: another run may have ended meanwhile.

    Raises:
        HarnessError: if there are no records.
    """
    records = records or folder / "records"
    paths = sorted((path for kind in KINDS for path in records.glob(f"{kind}-*.jsonl")), key=age, reverse=True)
    own = list(of) or paths[:1]
    same_subject = [path for path in paths if own and subject_of(path) == subject_of(own[0])]
    newest = [path for kind in KINDS if (path := latest(own, kind) or latest(same_subject, kind)) is not None]
    if not newest:
        raise HarnessError(
            f"no records in {records}: looked for verify-*.jsonl and bench-*.jsonl; "
            "`pytest verifications/` or `pytest benchmarks/` writes them"
        )
    return write_from(folder, newest)


def write_from(folder: Path, paths: Iterable[Path]) -> list[Path]:
    """Write the report of these record files, at most one of each kind, into `folder`.

    Raises:
        HarnessError: if a file does not exist, is of another kind, or if two are of the same kind.
    """
    runs: dict[str, tuple[Path, list[Row]]] = {}
    for path in paths:
        if not path.is_file():
            raise HarnessError(f"{path}: no such file; expected the records of a run (*.jsonl)")
        rows = record_files.read(path)
        kind = str(rows[0].get("run"))
        if kind not in KINDS:
            raise HarnessError(f"{path}:1: records of a run of kind {kind!r}; expected one of {', '.join(KINDS)}")
        if kind in runs:
            raise HarnessError(f"{path} and {runs[kind][0]} are both of kind '{kind}'; a report shows one run of each")
        runs[kind] = (path, rows)
    verify, bench = (runs[kind][1] if kind in runs else None for kind in KINDS)
    return write(folder, verify, bench)


def latest(paths: list[Path], kind: str) -> Path | None:
    """Return the newest record file of a kind, by the time in its name; None if there is none."""
    return max((path for path in paths if path.name.startswith(f"{kind}-")), key=age, default=None)


def subject_of(path: Path) -> str:
    """Return the subject of a record file, read from its header alone; an empty string if that is unreadable."""
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            return str(json.loads(file.readline())["subject"]["name"])
        except (ValueError, KeyError, TypeError):
            return ""
