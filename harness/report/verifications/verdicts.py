"""The page's sections on a verification run: failures, skips, suites, and what the checks measured."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby

from harness.report import tables, wording
from harness.report.figure import Plot
from harness.report.markdown import LONGEST_TABLE, code, csv, escape, figure, missing, prose, rest, table
from harness.report.run import VERDICTS, Row, Run, count, plural
from harness.report.tables import as_mapping
from harness.report.verifications import activation, diagnosis
from harness.report.wording import as_float, number

COMMAND = "pytest verifications/"
IN_FULL = 10  # failures told in full; the others are listed
SLOWEST = 10


def sections(run: Run, found: list[Plot]) -> Iterator[str]:
    """All but the slowest checks, which come later on the page."""
    yield from side_by_side(run)
    yield from diagnosis.sections(run)
    for plot in found:
        if plot.section == "diagnosis":
            yield from figure(plot)
    yield from failures(run)
    yield from skips(run)
    yield from suites(run)
    yield from parameter_counts(run)
    yield from activations(run, [plot for plot in found if plot.section == "activations"])
    yield from noise(run, [plot for plot in found if plot.section == "parity"])


def failures(run: Run) -> Iterator[str]:
    """Every check that failed or broke: the first ones in full, the others in a line."""
    bad = run.of_verdict("fail", "error")
    yield from ("## What failed", "")
    if not bad:
        yield from ("Nothing." if run.counts["pass"] else "Nothing was judged.", "")
    # What was not run because of another failure has nothing of its own to tell.
    own = [check for check in bad if not as_mapping(check.get("details")).get("because")][:IN_FULL]
    for check in own:
        yield from failure(check)
    others = [check for check in bad if check not in own]
    if others:
        rows = [
            [code(name(check)), escape("; ".join(tables.places(check)[:2]), 60), prose(check.get("message"), 120)]
            for check in others[:LONGEST_TABLE]
        ]
        yield from (f"### And {len(others)} more", "")
        yield from table(["check", "where", "message"], rows)
        yield from rest(len(others), "checks")


def name(check: Row) -> str:
    """A check under its suite, with what varies: `structure/parameter-count,size=124M,tied=true`."""
    return wording.plain(f"{check.get('suite')}/{str(check.get('id') or '').split('::')[-1] or check.get('check')}")


def failure(check: Row) -> Iterator[str]:
    """One failed check: what was found and expected, where, with what, why, and how to run it again."""
    broke = check.get("verdict") == "error"
    title = f"### {escape(name(check))}"
    yield from (f"{title} (error)" if broke else title, "")
    value = f"{number(check.get('value'))} {wording.plain(check.get('unit') or '')}"
    told = {
        "error": prose(check.get("message")) if broke else "",
        "found": "" if broke else prose(check.get("found") or value),
        "expected": prose(check.get("expected_text") or wording.expectation(check.get("expected"))),
        "where": escape(wording.entries(tables.places(check), 6)),
        "likely": prose(as_mapping(check.get("details")).get("hint") or ""),
        "with": escape(wording.parameters(as_mapping(check.get("parameters")))),
        "why": prose(check.get("why") or ""),
        "source": prose(check.get("source") or ""),
        "again": code(check.get("rerun") or ""),
    }
    yield from (f"- **{key}**: {text}" for key, text in told.items() if text)
    yield ""


def skips(run: Run) -> Iterator[str]:
    """What was skipped, one line a reason; the reason says what would unskip it."""
    reasons: dict[str, list[Row]] = {}
    for check in run.of_verdict("skip"):
        reasons.setdefault(str(check.get("message") or "no reason given"), []).append(check)
    if reasons:
        yield from ("## What was skipped", "")
        for reason, checks in reasons.items():
            names = [code(each) for each in dict.fromkeys(f"{c.get('suite')}/{c.get('check')}" for c in checks)]
            yield f"- {plural(len(checks), 'check')} ({wording.entries(names, 5)}): {prose(reason)}"
        yield ""


def suites(run: Run) -> Iterator[str]:
    """The verdict by suite, what does not pass in bold."""
    yield from ("## Verdict by suite", "")
    rows, used = [], [v for v in VERDICTS if v != "declared" or run.counts[v]]
    for suite in dict.fromkeys(check.get("suite") for check in run.checks):
        own = [check for check in run.checks if check.get("suite") == suite]
        counts, total = count(own), sum(as_float(check.get("seconds")) or 0.0 for check in own)
        worst = next((v for v in ("fail", "error") if counts[v]), None)
        verdict = f"**{worst}**" if worst else "pass" if counts["pass"] or counts["declared"] else "skipped"
        rows.append([escape(suite), verdict, *(str(counts[v] or "") for v in used), wording.duration(total)])
    yield from table(["suite", "verdict", *used, "time"], rows, right=(*used, "time"))
    if rows:
        yield from (f"Every check, one row each: {csv('checks')}.", "")


def side_by_side(run: Run) -> Iterator[str]:
    """With several subjects: a column each, verdicts by suite, and every check that some subject fails."""
    subjects = list(dict.fromkeys(str(check.get("subject")) for check in run.checks))
    if len(subjects) < 2:
        return
    cells: dict[str, dict[str, list[Row]]] = {}
    for check in run.checks:
        for line in (str(check.get("suite")), f"{check.get('suite')}/{check.get('check')}"):
            cells.setdefault(line, {}).setdefault(str(check.get("subject")), []).append(check)
    bad = {f"{check.get('suite')}/{check.get('check')}" for check in run.of_verdict("fail", "error")}
    lines = [line for line in cells if "/" not in line] + [line for line in cells if line in bad]
    titles = [code(line) if line in bad else escape(line) for line in lines]
    tallies = [[tally(cells[line].get(subject, [])) for subject in subjects] for line in lines]
    rows = [[title, *told] for title, told in zip(titles, tallies, strict=True)]
    yield from ("## Side by side", "")
    yield from table(["", *map(code, subjects)], rows[:LONGEST_TABLE])
    yield from ("First the suites, then every check that one of them fails.", "")


def tally(checks: list[Row]) -> str:
    """How many of each verdict, what does not pass in bold."""
    told = [f"{counted} {verdict}" for verdict, counted in count(checks).items() if counted]
    return ", ".join(f"**{each}**" if each.endswith(("fail", "error")) else each for each in told) or "not run"


def parameter_counts(run: Run) -> Iterator[str]:
    """Parameter counts by component, one row a size and tying."""
    yield from ("## Parameters", "")
    rows = list(tables.components(run))
    if not rows:
        yield from missing("No parameters were counted in this run", COMMAND)
        return
    components = [each for each in dict.fromkeys(row["component"] for row in rows) if each != "total"]
    columns = [*(components if len(components) <= 8 else []), "total"]
    cells = []
    for (size, tied), group in groupby(rows, key=lambda row: (row["size"], row["tied"])):
        counted = {row["component"]: row["parameters"] for row in group}
        numbers = [escape(number(counted[each])) if counted.get(each) is not None else "" for each in columns]
        cells.append([escape(size), "tied" if tied is True else "untied" if tied is False else "", *numbers])
    titles = [escape(column) for column in columns]
    yield from table(["size", "head", *titles], cells, right=titles)
    yield from (f"Counted on the built model, each parameter once: {csv('parameters')}.", "")


def activations(run: Run, found: list[Plot]) -> Iterator[str]:
    """Activation std by stream and recipe: where it starts, where it ends, where theory puts it."""
    yield from ("## Activations at initialisation", "")
    rows = []
    for stream, lines in activation.lines(run).items():
        for line in lines:
            predicted = line.predicted.get(line.places[-1])
            numbers = [number(line.std[0]), number(line.std[-1]), number(predicted) if predicted else ""]
            title = escape(activation.STREAMS.get(stream, stream))
            rows.append([title, escape(line.recipe), *numbers, wording.factor(line.growth), escape(line.verdict)])
    if not rows:
        yield from missing("No activations were measured in this run", COMMAND)
        return
    for plot in found:
        yield from figure(plot)
    numeric = ["std at entry", "std at the end", "predicted", "growth"]
    yield from table(["stream", "recipe", *numeric, "verdict"], rows, right=numeric)
    yield from (f"Every block: {csv('activations')}.", "")


def noise(run: Run, found: list[Plot]) -> Iterator[str]:
    """The noise verdict of every check that has one, by its worst comparison."""
    yield from ("## Rounding or a bug", "")
    judged = [check for check in run.checks if tables.comparisons(check)]
    if not judged:
        yield from missing("Nothing was compared in float32 and float64 in this run", COMMAND)
        return
    for plot in found:
        yield from figure(plot)
    rows = []
    for check in judged[:LONGEST_TABLE]:
        compared = tables.comparisons(check)
        worst = max(compared, key=badness)
        verdict = escape(worst.get("verdict"))
        sides = [f"{small(worst.get(f'float{bits}'))} / {small(worst.get(f'floor{bits}'))}" for bits in (32, 64)]
        asked = escape(wording.parameters(as_mapping(check.get("parameters"))), 120)
        if verdict not in {"equal", "rounding"}:
            # A check may want a difference: that a known fault is caught, say.
            verdict = f"{verdict}, as expected" if check.get("verdict") == "pass" else f"**{verdict}**"
        rows.append(
            [
                code(f"{check.get('suite')}/{check.get('check')}"),
                asked,
                str(len(compared)),
                verdict,
                escape(worst.get("where"), 60),
                *sides,
            ]
        )
    numeric = ["float32 / floor", "float64 / floor"]
    yield from table(["check", "with", "compared", "verdict", "worst at", *numeric], rows, right=["compared", *numeric])
    yield from rest(len(judged), "parity", "Every component with its floors")


def badness(row: Row) -> tuple[int, float]:
    """Order of comparisons: by verdict, then by the float64 difference in floors; NaN is the worst."""
    rank = {"equal": 0, "rounding": 1}.get(str(row.get("verdict")), 2)
    difference, floor = as_float(row.get("float64")), as_float(row.get("floor64"))
    return rank, float("inf") if difference is None else difference / floor if floor else difference


def small(value: object) -> str:
    """A difference at two digits."""
    return wording.decimal(float(value), 2) if isinstance(value, int | float) else "–"


def slowest(run: Run) -> Iterator[str]:
    """The checks that took longest."""
    timed = [check for check in run.checks if as_float(check.get("seconds"))]
    ranked = sorted(timed, key=lambda check: -check["seconds"])[:SLOWEST]
    if not ranked:
        return
    total = sum(check["seconds"] for check in timed)
    share = sum(check["seconds"] for check in ranked) / total
    yield from (f"## The {plural(len(ranked), 'slowest check')}", "")
    yield from (f"Together {share:.0%} of the {wording.duration(total)} that the checks took.", "")
    rows = [
        [wording.duration(check["seconds"]), code(check.get("id") or name(check)), escape(check.get("verdict"))]
        for check in ranked
    ]
    yield from table(["time", "check", "verdict"], rows, right=["time"])
