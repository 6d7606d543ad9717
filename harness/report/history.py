"""The section on history: verdicts and ratios of this run beside those of earlier runs of the same subject."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks.arm_rows import arms
from harness.report.blocks import Cell
from harness.report.formatting import date, plain, slug
from harness.report.json_values import as_float
from harness.report.markdown import LONGEST_TABLE, code, escape, table
from harness.report.run_records import VERDICTS, RunRecords, commit
from harness.report.verifications.failures import name_of

MOST_RUNS = 10  # earlier runs of each kind that are compared
SHOWN = 3  # earlier benchmark runs that have a column
GOOD, BAD = ("pass", "declared"), ("fail", "error")
COMPARE = "gpt-harness compare latest~1 latest --fail-if slower:5%"


@dataclass(frozen=True)
class Earlier:
    """Earlier runs of the subject on the page, the newest first."""

    verify: tuple[RunRecords, ...] = ()
    bench: tuple[RunRecords, ...] = ()


NONE_EARLIER = Earlier()


def sections(verify: RunRecords | None, bench: RunRecords | None, earlier: Earlier) -> Iterator[str]:
    """Yield the earlier runs, the verdicts that changed, and the arms' ratios in each; nothing if there are none."""
    judged = [*of_verdicts(verify, earlier.verify)] if verify and earlier.verify else []
    timed = [*of_ratios(bench, earlier.bench)] if bench and earlier.bench else []
    if judged or timed:
        yield from ("## History", "", *judged, *timed)


def of_verdicts(run: RunRecords, earlier: Sequence[RunRecords]) -> Iterator[str]:
    """Yield the tallies of the runs, and each check whose verdict is another than the last time that it was judged."""
    used = [verdict for verdict in VERDICTS if any(each.counts[verdict] for each in (run, *earlier))]
    rows = [
        [
            f"{escape(date(each.header.get('started')))}{' (this run)' if each is run else ''}",
            escape(commit(each.environment) or ""),
            *(str(each.counts[verdict] or "") for verdict in used),
            "interrupted" if each.interrupted else "a selection" if each.selection else "",
        ]
        for each in (run, *earlier)
    ]
    yield from ("### Verifications of this subject", "")
    yield from table(["run", "commit", *used, "note"], rows, right=used)
    changed = list(changes(run, earlier))
    if changed:
        ids = [f"changed-{slug(name, 120)}" for name, *_ in changed]
        cells = [[code(name), escape(now), escape(before), when] for name, now, before, when in changed]
        yield from table(["check", "now", "before", "last judged"], cells, ids=ids, most=LONGEST_TABLE)
    else:
        yield from ("No check has another verdict than the last time that it was judged.", "")


def changes(run: RunRecords, earlier: Iterable[RunRecords]) -> Iterator[tuple[str, str, str, str]]:
    """Yield name, verdict, earlier verdict and its date for each check that is right now and was wrong, or was right.

    A check is compared with the newest earlier run that judged it, so that a run of a selection hides nothing.
    """
    before: dict[tuple[str, str], tuple[str, str]] = {}
    for each in earlier:
        when = escape(date(each.header.get("started")))
        for check in each.of_verdict(*GOOD, *BAD):
            before.setdefault(_identity(check), (str(check["verdict"]), when))
    for check in sorted(run.checks, key=lambda check: check.get("verdict") not in BAD):
        was, when = before.get(_identity(check), ("", ""))
        now = str(check.get("verdict"))
        if (now in BAD and was in GOOD) or (now in GOOD and was in BAD):
            yield name_of(check), now, was, when


def _identity(check: Row) -> tuple[str, str]:
    return str(check.get("subject")), name_of(check)


def of_ratios(run: RunRecords, earlier: Sequence[RunRecords]) -> Iterator[str]:
    """Yield each arm's ratio to the control of its own run, in this run and in the newest earlier ones that have it."""
    now = ratios_of(run)
    before = [(each, found) for each in earlier if (found := ratios_of(each)).keys() & now.keys()][:SHOWN]
    if not before:
        return
    keys = [key for key in now if any(key in found for _, found in before)]
    dates = [
        f"{escape(date(each.header.get('started')))}<br>{escape(commit(each.environment) or '')}" for each, _ in before
    ]
    cells = [
        [*map(escape, key), *(_cell(found.get(key)) for found in (now, *(found for _, found in before)))]
        for key in keys
    ]
    yield from ("### Benchmarks of this subject: time relative to the control of the same run", "")
    ids = [f"history-{slug(' '.join(key), 120)}" for key in keys]
    yield from table(["comparison", "at", "arm", "this run", *dates], cells, ids=ids, most=LONGEST_TABLE)
    yield from (f"{code(COMPARE)} tests whether a change is more than the noise of two runs.", "")


def ratios_of(run: RunRecords) -> dict[tuple[str, str, str], Row]:
    """Return the rows of the arms that have a ratio, by comparison and metric, point, and arm."""
    return {
        (
            plain(f"{row['comparison']} {row['metric']}", 80),
            "" if row["point"] is None else formatting.at(row["point"], row["axis"]),
            plain(row["arm"], 60),
        ): row
        for comparison in run.comparisons
        for row in arms(comparison)
        if as_float(row["ratio"]) and row["arm"] != row["control"] and not row["twin_of"]
    }


def _cell(row: Row | None) -> str:
    return Cell(formatting.ratio(row), as_float(row["ratio"])) if row else ""
