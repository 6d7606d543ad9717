"""Figures of a comparison over an axis (sequence length, say): time, memory and positions, log-log."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.report import tables, wording
from harness.report.figure import (
    COLOURS,
    GREY,
    Canvas,
    Plot,
    beside,
    decades,
    doublings,
    log_axis,
    panel_title,
    seconds,
    short,
)
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

QUANTITIES = {
    "median_seconds": "Time (median ± spread)",
    "peak_memory_bytes": "Peak memory",
    "positions": "Token positions computed",
}


@dataclass(frozen=True)
class Curve:
    """One arm over the axis: x to its row, verified points only."""

    arm: str
    control: bool
    rows: dict[float, Row]

    def of(self, quantity: str) -> list[tuple[float, float]]:
        """The points that have this quantity, by rising x."""
        values = ((x, as_float(row.get(quantity))) for x, row in sorted(self.rows.items()))
        return [(x, value) for x, value in values if value is not None and value > 0]


def plots(bench: Run) -> list[Plot]:
    """One figure a comparison and metric that was measured at two points or more."""
    found = []
    for name, comparisons in tables.by_comparison(bench).items():
        metrics = scaled(comparisons)
        for metric in metrics:
            drawn = [c for c in comparisons if c.get("metric") == metric]
            curves = curves_of(drawn)
            shown = [q for q in QUANTITIES if any(len(curve.of(q)) >= 2 for curve in curves)]
            if not shown:
                continue
            axis = plain(drawn[0].get("axis") or "size", longest=40)
            found.append(
                Plot(
                    section=name,
                    name=name if len(metrics) == 1 else f"{name}-{tables.slug(metric)}",
                    finding=finding(curves, axis=axis, metric=plain(metric), lone=len(metrics) == 1),
                    look=look(shown),
                    caption=caption(drawn, bench),
                    height=3.45,
                    draw=partial(draw, curves, shown, axis),
                )
            )
    return found


def scaled(comparisons: list[Row]) -> list[str]:
    """The metrics that were measured at two points or more."""
    points: dict[str, set[float]] = {}
    for comparison in comparisons:
        point = as_float(comparison.get("point"))
        if point is not None and point > 0:
            points.setdefault(str(comparison.get("metric")), set()).add(point)
    return [metric for metric, found in points.items() if len(found) >= 2]


def curves_of(comparisons: list[Row]) -> list[Curve]:
    """The arms but for twins (they are the A/A check), each with its verified rows by point."""
    by_arm: dict[str, dict[float, Row]] = {}
    for comparison in comparisons:
        for row in tables.arms(comparison):
            point = as_float(row["point"])
            if row["verified"] == "pass" and not row["twin_of"] and point:
                by_arm.setdefault(str(row["arm"]), {})[point] = row
    control = str(comparisons[0].get("control"))
    return [Curve(short(arm), arm == control, rows) for arm, rows in by_arm.items()]


def finding(curves: list[Curve], *, axis: str, metric: str, lone: bool) -> str:
    """What the last point that both have says of each arm against the control: time, memory and positions."""
    control = next((curve for curve in curves if curve.control), None)
    others = [curve for curve in curves if not curve.control]
    shared = [x for x in control.rows if any(x in curve.rows for curve in others)] if control else []
    if control is None or not shared:
        return f"{metric} over {axis}"
    last = max(shared)
    ranked = sorted(
        (curve for curve in others if last in curve.rows),
        key=lambda curve: as_float(curve.rows[last]["ratio"]) or 1.0,
    )
    said = [f"{curve.arm} {against(curve.rows[last], control.rows[last])}" for curve in ranked]
    start = "At" if lone else f"{metric[:1].upper()}{metric[1:]} at"
    return f"{start} {wording.at(round(last), axis)}, against {control.arm}: {'; '.join(said[:3])}"


def against(row: Row, control: Row) -> str:
    """One arm against the control in words: `2.38x faster, 31.9x less memory`."""
    phrases = [wording.ratio(row).split(" [")[0]]
    for quantity, fewer, noun in (
        ("peak_memory_bytes", "less", "memory"),
        ("positions", "fewer", "positions"),
    ):
        mine, theirs = as_float(row.get(quantity)), as_float(control.get(quantity))
        if mine and theirs and not 0.9 < theirs / mine < 1.1:
            amount = wording.factor(max(theirs / mine, mine / theirs))
            phrases.append(f"{amount} {fewer if theirs > mine else 'more'} {noun}")
    return ", ".join(phrases)


def look(shown: Sequence[str]) -> str:
    """What to see in the panels that are there."""
    said = ["Both axes are logarithmic, so work that grows as a power of the length is a straight line"]
    if "peak_memory_bytes" in shown:
        said.append("the exponents beside the memory lines are fitted to the upper half of the points")
    if "positions" in shown:
        said.append("positions are counted while the arm runs, not assumed")
    return "; ".join(said) + ". A point is missing where the arm's output was not verified."


def caption(comparisons: list[Row], bench: Run) -> str:
    """The machine's line, and which ledger the memory came from."""
    ledgers = {row["peak_memory_ledger"] for c in comparisons for row in tables.arms(c) if row["peak_memory_ledger"]}
    return machine(bench) + (f" · memory by {plain(', '.join(sorted(map(str, ledgers))))}" if ledgers else "")


def draw(curves: list[Curve], shown: list[str], axis: str, canvas: Canvas) -> None:
    """One panel a quantity."""
    rooms = [0.3 + 0.07 * max(len(label(curve, quantity)) for curve in curves) for quantity in shown]
    panels = canvas.panels([max(rooms[0], 2.5)] if len(shown) == 1 else rooms)
    colours = iter(COLOURS)
    palette = {curve.arm: GREY if curve.control else next(colours, COLOURS[0]) for curve in curves}
    for axes, quantity in zip(panels, shown, strict=True):
        panel(axes, curves, quantity, palette)
        panel_title(axes, QUANTITIES[quantity])
        axes.set_xlabel(axis)


def panel(axes: Axes, curves: list[Curve], quantity: str, palette: dict[str, str]) -> None:
    """The arms' lines for one quantity."""
    points = {curve.arm: curve.of(quantity) for curve in curves}
    drawn = [curve for curve in curves if points[curve.arm]]
    values = [y for curve in drawn for _, y in points[curve.arm]]
    low, high = min(values) / 1.6, max(values) * 1.6
    ticks = doublings(low, high) if quantity == "peak_memory_bytes" else decades(low, high)
    spelled = {"median_seconds": seconds, "peak_memory_bytes": wording.memory}
    log_axis(axes.yaxis, low, high, ticks=ticks, words=spelled.get(quantity, lambda value: f"{value:,.0f}"))
    xs = sorted({x for curve in drawn for x, _ in points[curve.arm]})
    kept = xs[:: math.ceil(len(xs) / 7)]
    log_axis(axes.xaxis, xs[0] / 1.15, xs[-1] * 1.15, ticks=kept, words=lambda value: f"{value:,.0f}")
    labels = []
    for curve in drawn:
        x, y = zip(*points[curve.arm], strict=True)
        colour = palette[curve.arm]
        axes.plot(x, y, color=colour, marker="o", zorder=2 if curve.control else 3)
        if quantity == "median_seconds":
            spread = [as_float(curve.rows[at].get("spread_seconds")) or 0.0 for at in x]
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5)
        labels.append((x[-1], y[-1], label(curve, quantity), colour))
    beside(axes, labels)


def label(curve: Curve, quantity: str) -> str:
    """An arm's name, and for memory, which has no noise, the power of n that it grows with."""
    exponent = slope(curve.of(quantity)) if quantity == "peak_memory_bytes" else None
    return curve.arm if exponent is None else f"{curve.arm}  n^{exponent:.2f}"


def slope(points: list[tuple[float, float]]) -> float | None:
    """The exponent of y ~ x^k, by least squares on the logarithms of the upper half of the points."""
    upper = points[-max(3, math.ceil(len(points) / 2)) :]
    if len(upper) < 3:
        return None
    x, y = ([math.log(point[axis]) for point in upper] for axis in (0, 1))
    middle_x, middle_y = sum(x) / len(x), sum(y) / len(y)
    variance = sum((a - middle_x) ** 2 for a in x)
    return sum((a - middle_x) * (b - middle_y) for a, b in zip(x, y, strict=True)) / variance
