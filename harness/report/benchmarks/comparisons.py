"""The sections on a benchmark run: an overview of the results, then a plot and a table for each comparison."""

from __future__ import annotations

from collections.abc import Iterator

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks import arm_table, ceilings, expected_metrics, peers, setup
from harness.report.benchmarks.arm_rows import arms, by_comparison
from harness.report.benchmarks.curves import first_results
from harness.report.benchmarks.false_alarms import FalseAlarms
from harness.report.benchmarks.ratios import direction
from harness.report.blocks import Anchor
from harness.report.formatting import plural
from harness.report.json_values import as_float
from harness.report.markdown import embed, escape, missing, plot_anchor, table
from harness.report.plot import Plot
from harness.report.run_records import RunRecords

COMMAND = "pytest benchmarks/ --benchmark-autosave"
ALWAYS = ("precision", "attention", "generation")  # what `pytest benchmarks/` compares in any case


def summary(run: RunRecords) -> Iterator[str]:
    """Yield how far the run can be trusted, for the head of the page."""
    yield from decided(run)
    yield from peers.summary(run)
    yield f"{FalseAlarms.of(run).text}."
    yield from expected_metrics.summary(run)
    if any(comparison.get("quick") for comparison in run.comparisons):
        yield "This was a quick run: fewer points and shorter sequences than a full one."
    loads = [load for comparison in run.comparisons if (load := as_float(comparison.get("load"))) is not None]
    if loads:
        span = dict.fromkeys(f"{load:.1f}" for load in (min(loads), max(loads)))
        yield f"Processes that wanted a core before each comparison (load average): {' to '.join(span)}."


def decided(run: RunRecords) -> Iterator[str]:
    """Yield how many ratios of arms that are not identical the run could decide about."""
    rows = [row for comparison in run.comparisons for row in arms(comparison)]
    found = [direction(row) for row in rows if not row["twin_of"] and as_float(row["ratio"])]
    if found:
        same, decisions = found.count("same"), len(found) - found.count("")
        yield (
            f"{decisions} of {plural(len(found), 'ratio')} decided: {decisions - same} by a difference, {same} as the "
            f"same ({setup.LINK})."
        )


def sections(run: RunRecords | None, drawn: list[Plot]) -> Iterator[str]:
    """Yield the overview, the peers, the ceilings, the expected metrics, and every comparison of the run."""
    yield from ("## Benchmarks", "")
    if run is None or not run.comparisons:
        yield from missing("Nothing was compared yet", COMMAND)
        return
    yield from setup.lines(run)
    named = by_comparison(run)
    yield from overview(named, drawn)
    yield from peers.section(run)
    yield from ceilings.section(run, [plot for plot in drawn if plot.section == "roofline"])
    yield from expected_metrics.section(run)
    for name, comparisons in named.items():
        yield from (Anchor(anchor(name)), "", f"### {escape(title(name, comparisons), 120)}", "")
        if name.replace("-", "_").isidentifier():  # the name of a suite; a damaged record has any text
            yield from (f"Run this topic again: `{COMMAND} -k {name}`", "")
        yield from setup.arm_descriptions(comparisons)
        for plot in drawn:
            if plot.section == name:
                yield from embed(plot)
        yield from arm_table.lines(name, comparisons)
    for name in ALWAYS:
        if name not in named:
            yield from missing(f"This run has no comparison of {name}", f"{COMMAND} -k {name}")


def title(name: str, comparisons: list[Row]) -> str:
    """Return the heading of a comparison on the page."""
    return str(comparisons[0].get("title") or name.replace("-", " ").capitalize())


def anchor(name: str) -> str:
    """Return the anchor of a comparison on the page."""
    return f"comparison-{name}"


def overview(named: dict[str, list[Row]], drawn: list[Plot]) -> Iterator[str]:
    """Yield a table with a line for each result, and a link to its plot."""
    rows = []
    for name, comparisons in named.items():
        own = [row for comparison in comparisons for row in arms(comparison) if not row["twin_of"]]
        passed, skipped = (sum(row["verified"] == verdict for row in own) for verdict in ("pass", "skip"))
        verified = f"{passed} of {len(own) - skipped}"
        verified = verified if passed == len(own) - skipped else f"**{verified}**"
        verified += f", {skipped} skipped" if skipped else ""
        plots = [plot for plot in drawn if plot.section == name]
        results = [f"{escape(plot.headline)} ([figure](#{plot_anchor(plot)}))" for plot in plots]
        link = f"[{escape(title(name, comparisons), 60)}](#{anchor(name)})"
        rows += [[link, text, verified] for text in results or [escape(times(own))]]
    yield from table(["topic", "result", "arms verified"], rows)


def times(rows: list[Row]) -> str:
    """Return the times of the arms, as the result of a comparison without a plot."""
    timed = [(row, formatting.timing(row["median_seconds"], row["spread_seconds"])) for row in rows]
    texts = [f"{formatting.plain(row['arm'], 40)} {time}" for row, time in timed if time]
    return first_results(texts) or "no time: no arm was verified"
