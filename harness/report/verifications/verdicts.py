"""The sections on a verification run: side by side, failures, skips, suites, parameters, and the slowest checks."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.blocks import Beside, Cell, Details
from harness.report.formatting import number, plural
from harness.report.json_values import as_float
from harness.report.markdown import LONGEST_TABLE, code, csv_link, embed, escape, missing, prose, table
from harness.report.plot import Plot
from harness.report.run_records import VERDICTS, RunRecords, count_verdicts
from harness.report.verifications import activations, diagnosis, failures, parity, ranks
from harness.report.verifications.check_rows import components
from harness.report.verifications.failures import anchor, expected, found, name_of

COMMAND = "pytest verifications/"
SLOWEST = 10


def sections(run: RunRecords, drawn: list[Plot]) -> Iterator[str]:
    """Yield all sections except the slowest checks, which come later on the page."""
    yield from side_by_side(run)
    yield from diagnosis.sections(run)
    for plot in drawn:
        if plot.section == "diagnosis":
            yield from embed(plot)
    yield from failures.section(run)
    yield from skips(run)
    yield from suites(run)
    yield from parameter_counts(run)
    yield from activations.section(run, [plot for plot in drawn if plot.section == "activations"])
    yield from ranks.section(run, [plot for plot in drawn if plot.section == ranks.SECTION])
    yield from parity.section(run, [plot for plot in drawn if plot.section == "parity"])


def skips(run: RunRecords) -> Iterator[str]:
    """Yield the skipped checks, one line for each reason; the reason says what is missing."""
    reasons: dict[str, list[Row]] = {}
    for check in run.of_verdict("skip"):
        reasons.setdefault(str(check.get("message") or "no reason given"), []).append(check)
    if reasons:
        lines = []
        for reason, checks in reasons.items():
            names = [code(each) for each in dict.fromkeys(f"{c.get('suite')}/{c.get('check')}" for c in checks)]
            lines.append(f"- {plural(len(checks), 'check')} ({formatting.entries(names, 5)}): {prose(reason)}")
        summary = f"{plural(run.counts['skip'], 'check')}, by what is missing"
        yield from ("## Skipped", "", Details(summary, lines, markdown="\n".join(lines)), "")


def suites(run: RunRecords) -> Iterator[str]:
    """Yield the verdict of each suite, in bold if it does not pass."""
    yield from ("## Verdict by suite", "")
    rows, used = [], [v for v in VERDICTS if v != "declared" or run.counts[v]]
    for suite in dict.fromkeys(str(check.get("suite")) for check in run.checks):
        own = [check for check in run.checks if str(check.get("suite")) == suite]
        counts, total = count_verdicts(own), sum(as_float(check.get("seconds")) or 0.0 for check in own)
        worst = next((v for v in ("fail", "error") if counts[v]), None)
        verdict = f"**{worst}**" if worst else "pass" if counts["pass"] or counts["declared"] else "skipped"
        time = Cell(formatting.duration(total), total)
        rows.append([escape(suite), verdict, *(str(counts[v] or "") for v in used), time])
    yield from table(["suite", "verdict", *used, "time"], rows, right=(*used, "time"))
    if rows:
        yield from every_check(run)
        yield from (Beside(f"Every check, one row each: {csv_link('checks')}."), "")


def every_check(run: RunRecords) -> Iterator[str]:
    """Yield every check with its value and how to run it again; Markdown has this table beside the page."""
    heads = ["check", "verdict", "found", "expected", "time", "run again"]
    rows = [
        [
            code(name_of(check)),
            escape(check.get("verdict")),
            prose(check.get("message") if check.get("verdict") == "skip" else found(check), 160),
            prose(expected(check), 160),
            Cell(formatting.duration(check.get("seconds")), as_float(check.get("seconds"))),
            code(check.get("rerun") or ""),
        ]
        for check in run.checks
    ]
    shown = table(heads, rows, right=["time"], ids=[anchor(check, "check") for check in run.checks], most=0)
    yield Details(f"Every check: {len(rows)} rows", shown)


def side_by_side(run: RunRecords) -> Iterator[str]:
    """Yield a table with a column for each subject: the suites, and every check that a subject fails.

    A run has no such table if no check judges two subjects: a GPT and a training program are not compared.
    """
    subjects = list(dict.fromkeys(str(check.get("subject")) for check in run.checks))
    judged = {tuple(str(check.get(key)) for key in ("suite", "check", "subject")) for check in run.checks}
    if len(judged) == len({(suite, name) for suite, name, _ in judged}):
        return
    cells: dict[str, dict[str, list[Row]]] = {}
    for check in run.checks:
        for line in (str(check.get("suite")), f"{check.get('suite')}/{check.get('check')}"):
            cells.setdefault(line, {}).setdefault(str(check.get("subject")), []).append(check)
    bad = {f"{check.get('suite')}/{check.get('check')}" for check in run.of_verdict("fail", "error")}
    lines = [line for line in cells if "/" not in line] + [line for line in cells if line in bad]
    titles = [code(line) if line in bad else escape(line) for line in lines]
    tallies = [[tally(cells[line].get(subject, [])) for subject in subjects] for line in lines]
    rows = [[title, *counts] for title, counts in zip(titles, tallies, strict=True)]
    yield from ("## Side by side", "")
    yield from table(["", *map(code, subjects)], rows, most=LONGEST_TABLE)
    yield from ("The suites come first, then every check that at least one subject fails.", "")


def tally(checks: list[Row]) -> str:
    """Return the number of checks by verdict, in bold if they do not pass."""
    counts = [f"{counted} {verdict}" for verdict, counted in count_verdicts(checks).items() if counted]
    return ", ".join(f"**{each}**" if each.endswith(("fail", "error")) else each for each in counts) or "not run"


def parameter_counts(run: RunRecords) -> Iterator[str]:
    """Yield the parameter counts by component, one row for each size and tying."""
    yield from ("## Parameters", "")
    rows = list(components(run))
    if not rows:
        yield from missing("No parameters were counted in this run", COMMAND)
        return
    names = [each for each in dict.fromkeys(row["component"] for row in rows) if each != "total"]
    columns = [*(names if len(names) <= 8 else []), "total"]
    cells = []
    for (size, tied), group in groupby(rows, key=lambda row: (row["size"], row["tied"])):
        counted = {row["component"]: row["parameters"] for row in group}
        numbers = [escape(number(counted[each])) if counted.get(each) is not None else "" for each in columns]
        cells.append([escape(size), "tied" if tied is True else "untied" if tied is False else "", *numbers])
    titles = [escape(column) for column in columns]
    yield from table(["size", "head", *titles], cells, right=titles)
    yield from (Beside(f"Counted on the built model, each parameter once: {csv_link('parameters')}."), "")


def slowest(run: RunRecords) -> Iterator[str]:
    """Yield the checks that took longest."""
    timed = [check for check in run.checks if as_float(check.get("seconds"))]
    ranked = sorted(timed, key=lambda check: -check["seconds"])[:SLOWEST]
    if not ranked:
        return
    total = sum(check["seconds"] for check in timed)
    share = sum(check["seconds"] for check in ranked) / total
    yield from (f"## The {plural(len(ranked), 'slowest check')}", "")
    yield from (f"They took {share:.0%} of the {formatting.duration(total)} that all checks took.", "")
    rows = [
        [
            Cell(formatting.duration(check["seconds"]), check["seconds"]),
            code(check.get("id") or name_of(check)),
            escape(check.get("verdict")),
        ]
        for check in ranked
    ]
    yield from table(["time", "check", "verdict"], rows, right=["time"])
