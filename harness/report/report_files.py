"""The report on disk: one page as Markdown and as HTML, its tables as CSV and its plots as PNG and SVG."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.core import record_files
from harness.core.errors import HarnessError
from harness.core.record_files import Row, age
from harness.report import history
from harness.report.claims import report_files as claims
from harness.report.csv_tables import tables
from harness.report.history import NONE_EARLIER, Earlier
from harness.report.html import page as html_page
from harness.report.page import page, plots
from harness.report.page_files import linked_files, remove_stale, write_page, write_table
from harness.report.run_records import RunRecords

PAGE = "index.md"
HTML_PAGE = "index.html"  # the same in one file, which can be passed on
KINDS = ("verify", "bench")
OTHER_PAGES = {
    "lessons.md": "the lessons' training runs",
    "sweep.md": "scaling laws of a sweep",
    "claims.md": "the lessons' claims, derived and measured",
    "faults.md": "known faults, and the checks that kill them",
    "survey.md": "a survey of other people's GPTs",
}
MOST_RUNS = 50  # the newest, that are looked through for claims and suites
OTHER_PAGES_TITLE = "## Other pages"


@dataclass(frozen=True)
class RelatedRuns:
    """The records that a report shows beside those of its runs.

    `claimed` is the run whose claims are shown, if that is not the verification run. `behind` is the verification run
    that the HTML page shows if the run has claims alone. `runs` are verification runs, newest first, whose suites are
    shown beside the claims. `earlier` are runs that this one is compared with. `notes` say which records were left out.
    """

    claimed: list[Row] | None = None
    behind: list[Row] | None = None
    runs: Iterable[RunRecords] = ()
    earlier: Earlier = NONE_EARLIER
    notes: tuple[str, ...] = ()


def write(
    folder: Path, verify: list[Row] | None, bench: list[Row] | None, related: RelatedRuns | None = None
) -> list[Path]:
    """Write the report of a verification run, a benchmark run or both into `folder`; return its files, pages first.

    A run whose checks are all claims is shown on the claims' page and on the HTML page, and leaves the other page as it
    is. Files that the previous page in `folder` linked to, and the new one does not, are removed.
    """
    related = related or RelatedRuns()
    verify_run, bench_run = (RunRecords.of(records) if records else None for records in (verify, bench))
    claims_run = RunRecords.of(related.claimed) if related.claimed else verify_run
    runs, again = itertools.tee(related.runs)
    of_claims = claims.write(folder, claims_run, runs) if claims_run else []
    if verify_run and verify_run.only_claims:
        verify, verify_run = None, None
    shown = RunRecords.of(related.behind) if related.behind and not verify_run else verify_run
    html = html_page.page(
        shown, bench_run, claimed=claims_run, runs=again, earlier=related.earlier, notes=related.notes
    )
    write_page(folder / HTML_PAGE, html)
    if of_claims and not verify and not bench:
        link_other_pages(folder)
        return [of_claims[0], folder / HTML_PAGE, *of_claims[1:]]
    path = folder / PAGE
    before = linked_files(path)
    write_page(path, page(verify, bench, related.earlier, related.notes))
    link_other_pages(folder)
    written = [
        *write_tables(folder / "tables", verify_run, bench_run),
        *write_plots(folder / "plots", verify_run, bench_run),
    ]
    remove_stale(before, written)
    return [path, folder / HTML_PAGE, *written, *of_claims]


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
    folder.mkdir(parents=True, exist_ok=True)
    for name, (columns, rows) in tables(verify, bench).items():
        path = folder / f"{name}.csv"
        write_table(path, columns, rows)
        yield path


def write_plots(folder: Path, verify: RunRecords | None, bench: RunRecords | None) -> Iterator[Path]:
    """Write every plot that has data as PNG and SVG, and yield the paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for plot in plots(verify, bench):
        yield from plot.save(folder)


def write_latest(folder: Path, records: Path | None = None, *, of: Iterable[Path] = ()) -> list[Path]:
    """Write the report of the newest run in `records` (default: `folder`/records) into `folder`.

    The report also shows the newest run of the other kind that has the same subject, and, unless `of` says which run is
    reported on, the claims of the newest run that has some.

    Args:
        folder: where the report is written.
        records: where the record files are.
        of: the record files of the run, used in place of the newest ones: another run may have ended meanwhile.

    Raises:
        HarnessError: if there are no records.
    """
    records = records or folder / "records"
    paths = sorted((path for kind in KINDS for path in records.glob(f"{kind}-*.jsonl")), key=age, reverse=True)
    reported = list(of)
    read = Reader()
    own = reported or list(itertools.islice((path for path in paths if read(path)), 1))
    if not paths:
        raise HarnessError(
            f"no records in {records}: looked for verify-*.jsonl and bench-*.jsonl; "
            "`pytest verifications/` or `pytest benchmarks/` writes them"
        )
    subject, subjects = subject_of(own[0]) if own else None, {path: subject_of(path) for path in paths}
    for path in paths:
        if not subjects[path]:
            read(path)  # for the note that says why it cannot be read
    same_subject = [*own, *(each for each in paths if each not in own and subjects[each] == subject)]
    verify, bench = ([path for path in same_subject if path.name.startswith(f"{kind}-")] for kind in KINDS)
    judged = [path for path in verify if path in reported] or verify[:MOST_RUNS]
    shown = next((path for path in judged if (rows := read(path)) and not RunRecords.of(rows).only_claims), None)
    claimed = next((path for path in judged if has_claims(read(path) or ())), None)
    behind = None
    if shown is None and claimed in reported:  # another run's page stays
        bench = [path for path in bench if path in reported]
        whole = (path for path in verify[:MOST_RUNS] if (rows := read(path)) and not RunRecords.of(rows).only_claims)
        behind = next(whole, None)
    timed = next((path for path in bench if read(path)), None)
    if not (shown or timed or claimed):
        raise HarnessError("; ".join(read.notes) or f"no records that can be read in {records}")
    related = RelatedRuns(
        claimed=read(claimed) if claimed else None,
        behind=read(behind) if behind else None,
        runs=readable(verify[:MOST_RUNS], read),
        earlier=Earlier(before(shown or behind, verify, read), before(timed, bench, read)),
        notes=tuple(read.notes),
    )
    return write(folder, read(shown) if shown else None, read(timed) if timed else None, related)


def before(shown: Path | None, paths: Iterable[Path], read: Reader) -> tuple[RunRecords, ...]:
    """Return the newest runs of these record files that are older than the one shown."""
    older = (path for path in paths if shown and age(path) < age(shown))
    return tuple(itertools.islice(readable(older, read), history.MOST_RUNS))


class Reader:
    """Reads record files, each once. One that cannot be read is None, and a note says why."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self._rows: dict[Path, list[Row] | None] = {}

    def __call__(self, path: Path) -> list[Row] | None:
        """Return the rows of a record file; None, once with a note, if it is damaged or of another version."""
        if path not in self._rows:
            try:
                self._rows[path] = record_files.read(path)
            except (HarnessError, OSError) as error:
                self._rows[path] = None
                self.notes.append(f"left out: {error}")
        return self._rows[path]


def has_claims(rows: Iterable[Row]) -> bool:
    """Return True if a check of these records is a claim."""
    return any(isinstance(row.get("claim"), dict) for row in rows)


def readable(paths: Iterable[Path], read: Reader) -> Iterator[RunRecords]:
    """Yield the runs of record files, each read when it is asked for; damaged ones are left out."""
    yield from (RunRecords.of(rows) for path in paths if (rows := read(path)))


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


def subject_of(path: Path) -> str:
    """Return the subject of a record file, read from its header alone; an empty string if that is unreadable."""
    with path.open(encoding="utf-8", errors="replace") as file:
        try:
            return str(json.loads(file.readline())["subject"]["name"])
        except (ValueError, KeyError, TypeError):
            return ""
