"""Plots of a comparison over an axis (sequence length, say): time, memory and positions, on logarithmic axes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.axes import darker, decades, doublings, label_points, log_axis, mean, panel_title, seconds
from harness.report.benchmarks.arm_rows import arms, by_comparison
from harness.report.benchmarks.curves import (
    QUANTITY_NAMES,
    Curve,
    Laws,
    colours_of,
    curves_of,
    first_results,
    is_decode_latency,
    is_serving,
    is_speculation,
    laws_of,
    metrics_over_axis,
)
from harness.report.formatting import plain, slug
from harness.report.json_values import as_float
from harness.report.plot import Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 2  # panels side by side
QUANTITIES = {
    "median_seconds": "Time (median ± spread)",
    "peak_memory_bytes": "Peak memory of a call",
    "positions": "Token positions computed",
}


def plots(bench: RunRecords) -> list[Plot]:
    """Return one plot for each comparison and metric that was measured at two points or more."""
    found = []
    for name, comparisons in by_comparison(bench).items():
        metrics = metrics_over_axis(comparisons)
        for metric in metrics:
            drawn = [c for c in comparisons if str(c.get("metric")) == metric]
            curves = curves_of(drawn)
            shown = [q for q in QUANTITIES if any(len(curve.of(q)) >= 2 for curve in curves)]
            drawn_apart = is_decode_latency(drawn[0]) or is_serving(drawn[0]) or is_speculation(drawn[0])
            if not shown or drawn_apart:
                continue
            axis = plain(drawn[0].get("axis") or "size", longest=40)
            laws = laws_of(bench, drawn[0])
            found.append(
                Plot(
                    section=name,
                    name=name if len(metrics) == 1 else f"{name}-{slug(metric)}",
                    headline=headline(curves, laws, axis=axis, metric="" if len(metrics) == 1 else plain(metric)),
                    description=description(shown, fitted=bool(laws)),
                    caption=caption(drawn, bench),
                    height=3.5 * math.ceil(len(shown) / ACROSS),
                    draw=partial(draw, curves, laws, shown, axis),
                )
            )
    return found


def headline(curves: list[Curve], laws: Laws, *, axis: str, metric: str) -> str:
    """Return each arm's ratio to the control at the last point that both have, and how memory or time grows.

    `metric` opens the headline; it is empty if the comparison has only one.
    """
    control = next((curve for curve in curves if curve.control), None)
    others = [curve for curve in curves if not curve.control]
    shared = [x for x in control.rows if any(x in curve.rows for curve in others)] if control else []
    start = f"{metric[:1].upper()}{metric[1:]}, " if metric else ""
    if control is None or not shared:
        costs = [f"{curve.arm} {ends_of(curve, axis)}" for curve in curves]
        return as_sentence([f"{start}{first_results(costs)}", growth(laws, axis)])
    last = max(shared)
    ranked = sorted(
        (curve for curve in others if last in curve.rows),
        key=lambda curve: as_float(curve.rows[last]["ratio"]) or 1.0,
    )
    results = [f"{curve.arm} {against_control(curve.rows[last], control.rows[last])}" for curve in ranked]
    point = formatting.where(round(last), axis)
    return as_sentence([f"{start}{point}, against {control.arm}: {first_results(results)}", growth(laws, axis)])


def as_sentence(parts: list[str]) -> str:
    """Return the parts that are not empty, separated by full stops, with a capital letter in front."""
    text = ". ".join(part for part in parts if part)
    return text[:1].upper() + text[1:]


def ends_of(curve: Curve, axis: str) -> str:
    """Return the time of an arm at both ends of the axis, for a comparison without a control."""
    (low, cheap), *_, (high, dear) = curve.of("median_seconds") * 2
    ends = (f"{formatting.timing(each)} {formatting.where(round(x), axis)}" for x, each in ((low, cheap), (high, dear)))
    return ", ".join(dict.fromkeys(ends))


def growth(laws: Laws, axis: str) -> str:
    """Return `Memory grows as naive T^1.98, flash T^1.01`; the growth of the time if none of the memory was fitted."""
    for quantity in ("peak_memory_bytes", "median_seconds"):
        grown = [f"{arm} {symbol(axis)}^{law.exponent:.2f}" for (arm, what), law in laws.items() if what == quantity]
        if grown:
            return f"{QUANTITY_NAMES[quantity].capitalize()} grows as {', '.join(grown[:4])}"
    return ""


def symbol(axis: str) -> str:
    """Return the symbol of the axis in a formula: T for lengths in tokens, otherwise n."""
    return "T" if "token" in axis or "context" in axis else "n"


def against_control(row: Row, control: Row) -> str:
    """Return one arm's ratios to the control: `2.38x faster [2.22, 2.50], 31.9x less memory in a call`."""
    phrases = [formatting.ratio(row)]
    for quantity, fewer, noun in (
        ("peak_memory_bytes", "less", "memory in a call"),
        ("positions", "fewer", "positions"),
    ):
        mine, theirs = as_float(row.get(quantity)), as_float(control.get(quantity))
        if mine and theirs and not 0.9 < theirs / mine < 1.1:
            amount = formatting.factor(max(theirs / mine, mine / theirs))
            phrases.append(f"{amount} {fewer if theirs > mine else 'more'} {noun}")
    return ", ".join(phrases)


def description(shown: Sequence[str], *, fitted: bool) -> str:
    """Return how to read the panels that are there."""
    parts = ["Both axes are logarithmic, so work that grows as a power of the length is a straight line"]
    if fitted:
        parts.append("dashed lines are the power laws that the run fitted, with the 95% intervals of their exponents")
    if "positions" in shown:
        parts.append("positions are counted while the arm runs")
    return "; ".join(parts) + ". A point is missing if the arm's output was not verified."


def caption(comparisons: list[Row], bench: RunRecords) -> str:
    """Return the provenance of the run, and the ledger that the memory came from."""
    ledgers = {row["peak_memory_ledger"] for c in comparisons for row in arms(c) if row["peak_memory_ledger"]}
    return provenance(bench) + (f" · memory by {plain(', '.join(sorted(map(str, ledgers))))}" if ledgers else "")


def draw(curves: list[Curve], laws: Laws, shown: list[str], axis: str, canvas: Canvas) -> None:
    """Draw one panel for each quantity, `ACROSS` side by side."""
    colours = colours_of(curves)
    for index, row in enumerate(canvas.rows(math.ceil(len(shown) / ACROSS))):
        quantities = shown[index * ACROSS : (index + 1) * ACROSS]
        labels = [curve_labels(curves, quantity, laws, axis, colours) for quantity in quantities]
        longest = [max(len(line) for _, _, text, _ in each for line in text.split("\n")) for each in labels]
        widths = [0.3 + 0.068 * letters for letters in longest]
        drawn = row.panels([max(widths[0], 2.5)] if len(shown) == 1 else widths)
        for axes, quantity, written in zip(drawn, quantities, labels, strict=True):
            draw_panel(axes, curves, quantity, colours, most_ticks=7 if len(drawn) == 1 else 4)
            draw_laws(axes, curves, laws, quantity, colours)
            label_points(axes, written, gap=25.0 if any("\n" in text for _, _, text, _ in written) else 13.0)
            panel_title(axes, QUANTITIES[quantity])
            axes.set_xlabel(formatting.axis_title(axis))


def draw_panel(axes: Axes, curves: list[Curve], quantity: str, colours: dict[str, str], most_ticks: int) -> None:
    """Draw the arms' lines for one quantity, with at most `most_ticks` ticks along x."""
    points = {curve.arm: curve.of(quantity) for curve in curves}
    drawn = [curve for curve in curves if points[curve.arm]]
    values = [y for curve in drawn for _, y in points[curve.arm]]
    low, high = min(values) / 1.6, max(values) * 1.6
    ticks = doublings(low, high) if quantity == "peak_memory_bytes" else decades(low, high)
    words = {"median_seconds": seconds, "peak_memory_bytes": formatting.memory}
    log_axis(axes.yaxis, low, high, ticks=ticks, words=words.get(quantity, lambda value: f"{value:,.0f}"))
    xs = sorted({x for curve in drawn for x, _ in points[curve.arm]})
    ticks = xs[:: -math.ceil(len(xs) / most_ticks)]
    log_axis(axes.xaxis, xs[0] / 1.15, xs[-1] * 1.15, ticks=ticks, words=lambda value: f"{value:,.0f}")
    for curve in drawn:
        x, y = zip(*points[curve.arm], strict=True)
        colour = colours[curve.arm]
        (line,) = axes.plot(x, y, color=colour, marker="o", zorder=2 if curve.control else 3)
        name_points(line, [point_text(curve, quantity, at) for at in x])
        if quantity == "median_seconds":
            spread = [as_float(curve.rows[at].get("spread_seconds")) or 0.0 for at in x]
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5)


def point_text(curve: Curve, quantity: str, at: float) -> str:
    """Return an arm's time, memory or positions at a point, as text."""
    row = curve.rows[at]
    value = as_float(row[quantity]) or 0.0
    if quantity == "median_seconds":
        ratio = "the control" if curve.control else formatting.ratio(row)
        text = ", ".join(filter(None, (formatting.timing(value, row["spread_seconds"]), ratio)))
    else:
        text = formatting.memory(value) if quantity == "peak_memory_bytes" else f"{value:,.0f} positions"
    return f"{curve.arm} {formatting.where(round(at), row['axis'])}: {text}"


def draw_laws(axes: Axes, curves: list[Curve], laws: Laws, quantity: str, colours: dict[str, str]) -> None:
    """Draw the power laws as dashed lines through the centre of the points that they were fitted to."""
    for curve in curves:
        law = laws.get((curve.arm, quantity))
        points = [(x, y) for x, y in curve.of(quantity) if law and (not law.over or x in law.over)]
        if law and len(points) >= 2:
            x, y = zip(*points, strict=True)
            # A least-squares line in logarithms passes through their means.
            centre_x, centre_y = (math.exp(mean([math.log(value) for value in values])) for values in (x, y))
            ends = (axes.get_xlim()[0], x[-1])
            fitted = [centre_y * (end / centre_x) ** law.exponent for end in ends]
            axes.plot(ends, fitted, color=darker(colours[curve.arm]), linewidth=1.1, linestyle=(0, (4, 2)), zorder=4)


def curve_labels(
    curves: list[Curve], quantity: str, laws: Laws, axis: str, colours: dict[str, str]
) -> list[tuple[float, float, str, str]]:
    """Return (x, y, text, colour) for the end of each line: its arm, and below it the power law of the run."""
    found = []
    for curve in curves:
        if points := curve.of(quantity):
            law = laws.get((curve.arm, quantity))
            text = curve.arm if law is None else f"{curve.arm}\n{law.text(symbol(axis))}"
            found.append((*points[-1], text, colours[curve.arm]))
    return found
