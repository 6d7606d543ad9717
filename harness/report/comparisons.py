"""The page's sections on a benchmark run: a figure and a table a comparison, and what speaks against its figures."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report import tables, wording
from harness.report.figure import Plot
from harness.report.markdown import LONGEST_TABLE, escape, figure, missing, prose, rest, table
from harness.report.run import Row, Run
from harness.report.wording import as_float, number

COMMAND = "pytest benchmarks/ --benchmark-autosave"
ALWAYS = ("precision", "attention", "generation")  # what `pytest benchmarks/` compares in any case
NUMERIC = ("time", "tokens/s", "positions", "peak memory")
DISAGREEMENT = 1.1  # memory ledgers further apart than this are printed side by side


def sections(run: Run | None, found: list[Plot]) -> Iterator[str]:
    """Every comparison of the run, and what of the standing ones it lacks."""
    yield from ("## Benchmarks", "")
    if run is None or not run.comparisons:
        yield from missing("Nothing was compared yet", COMMAND)
        return
    yield (
        "The arms of a comparison took turns, and a time is shown only where the arm's output was verified. Times are "
        "medians ± spread; a ratio has its 95% interval behind it, and `not resolved` says that this run cannot tell "
        "the two apart."
    )
    yield from ("", *false_alarms(run))
    named = tables.by_comparison(run)
    for name, comparisons in named.items():
        title = comparisons[0].get("title") or name.replace("-", " ").capitalize()
        yield from (f"### {escape(title, 120)}", "")
        for plot in found:
            if plot.section == name:
                yield from figure(plot)
        yield from arm_table(name, comparisons)
    for name in ALWAYS:
        if name not in named:
            yield from missing(f"This run has no comparison of {name}", f"{COMMAND} -k {name}")


def false_alarms(run: Run) -> Iterator[str]:
    """How often this run told an arm apart from itself: what its other verdicts are worth."""
    rows = [row for comparison in run.comparisons for row in tables.arms(comparison)]
    twins = [row for row in rows if row["twin_of"] and as_float(row["ratio"])]
    if twins:
        told_apart = sum(str(row["verdict"]).upper() in {"FASTER", "SLOWER"} for row in twins)
        yield (
            f"Arms that were built twice and timed against themselves: {len(twins)}; told apart, which is a false "
            f"alarm: {'**' if told_apart else ''}{told_apart}{'**' if told_apart else ''}."
        )
        yield ""


def arm_table(name: str, comparisons: list[Row]) -> Iterator[str]:
    """One row an arm at a point; a column that no arm fills is left out. Then what the rows do not say."""
    rows = [row for comparison in comparisons for row in tables.arms(comparison)]
    cells = [arm_cells(row) for row in rows]
    if len({row["metric"] for row in rows}) == 1:
        cells = [{head: text for head, text in row.items() if head != "metric"} for row in cells]
    heads = [head for head in (cells[0] if cells else {}) if any(row[head] for row in cells)]
    axis = escape(comparisons[0].get("axis") or "at", 40)
    titles = [axis if head == "point" else head for head in heads]
    shown = [[row[head] for head in heads] for row in cells[:LONGEST_TABLE]]
    yield from table(titles, shown, right=(*NUMERIC, axis))
    notes = list(dict.fromkeys(note for row in rows for note in remarks(row)))
    if notes:
        yield from (*(f"- {note}" for note in notes), "")
    yield from rest(len(rows), tables.file_name(name))


def arm_cells(row: Row) -> dict[str, str]:
    """An arm's row of the table, by column."""
    speed, positions = as_float(row["tokens_per_second"]), as_float(row["positions"])
    compared = "" if as_float(row["ratio"]) is None else wording.ratio(row)
    return {
        "metric": escape(row["metric"], 60),
        "point": "" if row["point"] is None else escape(number(row["point"])),
        "arm": escape(row["arm"], 60),
        "time": wording.timing(row["median_seconds"], row["spread_seconds"]),
        "against the control": "control" if row["arm"] == row["control"] else compared,
        "tokens/s": "" if speed is None else f"{speed:,.3g}" if speed < 1000 else f"{speed:,.0f}",
        "positions": "" if positions is None else f"{positions:,.0f}",
        "peak memory": wording.memory(row["peak_memory_bytes"]),
        "verified": "pass" if row["verified"] == "pass" else f"**{escape(row['verified'])}**",
    }


def remarks(row: Row) -> Iterator[str]:
    """Why an arm has no time, what a twin is, and where two accounts of the same thing disagree."""
    arm = escape(row["arm"], 60)
    if row["verified"] != "pass":
        yield f"no time for {arm} ({escape(row['verified'])}): {prose(row['message'] or 'its output was not verified')}"
        return
    if row["twin_of"]:
        yield f"{arm} is {escape(row['twin_of'], 60)} built once more, and its ratio is to that arm"
    at = "" if row["point"] is None else f" at {escape(number(row['point']))}"
    ledgers = {name: as_float(size) for name, size in row["ledgers"].items()}
    sizes = [size for size in ledgers.values() if size]
    if len(sizes) > 1 and max(sizes) > DISAGREEMENT * min(sizes):
        accounts = ", ".join(f"{escape(name)} {wording.memory(size)}" for name, size in ledgers.items())
        yield f"memory of {arm}{at}, by ledger: {accounts}"
    positions, derived = as_float(row["positions"]), as_float(row["positions_closed_form"])
    if positions and derived and positions != derived:
        yield f"positions of {arm}{at}: {positions:,.0f} counted, {derived:,.0f} by the closed form"
