"""A run in short, as Markdown for the page of a step in continuous integration."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.benchmarks import false_alarms
from harness.report.benchmarks.arm_rows import by_comparison
from harness.report.markdown import code, escape, prose, table
from harness.report.page import as_markdown, plots, run_summary, verdict_sentence
from harness.report.run_records import RunRecords
from harness.report.verifications import diagnosis
from harness.report.verifications.failures import expected, found, in_order, name_of

MOST_FAILURES = 20


def step_summary(verify: RunRecords | None, bench: RunRecords | None) -> str:
    """Return the verdict, the diagnosis, the first failures and how to run them again, and the benchmarks' results."""
    return as_markdown([*_of_verdicts(verify), *_of_benchmarks(bench)]) if verify or bench else ""


def _of_verdicts(run: RunRecords | None) -> Iterator[str]:
    if run is None:
        return
    yield from (f"## {escape(run.subject, 120)}", "", f"**{verdict_sentence(run)}**", "")
    yield from (*(f"- {line}" for line in run_summary(run, "Verified")), "")
    yield from diagnosis.sections(run)
    bad = in_order(run)
    if bad:
        rows = [
            [
                code(name_of(check)),
                prose(check.get("message") if check.get("verdict") == "error" else found(check), 160),
                prose(expected(check), 160),
                code(check.get("rerun") or ""),
            ]
            for check in bad[:MOST_FAILURES]
        ]
        yield from table(["fails", "found", "expected", "run again"], rows)
        if len(bad) > MOST_FAILURES:
            yield from (f"{len(bad) - MOST_FAILURES} more are in the report.", "")


def _of_benchmarks(run: RunRecords | None) -> Iterator[str]:
    if run is None:
        return
    yield from (f"## Benchmarks of {escape(run.subject, 120)}", "", *false_alarms.warning(run))
    yield from (*(f"- {line}" for line in run_summary(run, "Benchmarked")), "")
    named = by_comparison(run)
    yield from (*(f"- {escape(plot.headline)}" for plot in plots(None, run) if plot.section in named), "")
