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
    darker,
    decades,
    doublings,
    log_axis,
    mean,
    panel_title,
    seconds,
    short,
)
from harness.report.run import Row, Run, machine
from harness.report.tables import as_list
from harness.report.wording import as_float, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

ACROSS = 2  # panels beside each other
QUANTITIES = {
    "median_seconds": "Time (median ± spread)",
    "peak_memory_bytes": "Peak memory",
    "positions": "Token positions computed",
}


WORDS = {"median_seconds": "time", "peak_memory_bytes": "memory", "positions": "positions"}


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


@dataclass(frozen=True)
class Law:
    """A power law as the run fitted it to the points `over`: y grows as x to the `found`."""

    found: float
    low: float | None
    high: float | None
    over: tuple[float, ...]
    resolved: bool

    def words(self, symbol: str) -> str:
        """`T^1.98 [1.96, 2.00]`."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{symbol}^{self.found:.2f}{interval}"


Laws = dict[tuple[str, str], Law]  # by arm and quantity


def plots(bench: Run) -> list[Plot]:
    """One figure a comparison and metric that was measured at two points or more."""
    found = []
    for name, comparisons in tables.by_comparison(bench).items():
        metrics = scaled(comparisons)
        for metric in metrics:
            drawn = [c for c in comparisons if str(c.get("metric")) == metric]
            curves = curves_of(drawn)
            shown = [q for q in QUANTITIES if any(len(curve.of(q)) >= 2 for curve in curves)]
            if not shown or is_latency(drawn[0]):
                continue
            axis = plain(drawn[0].get("axis") or "size", longest=40)
            laws = laws_of(bench, drawn[0])
            found.append(
                Plot(
                    section=name,
                    name=name if len(metrics) == 1 else f"{name}-{tables.slug(metric)}",
                    finding=finding(curves, laws, axis=axis, metric=plain(metric), lone=len(metrics) == 1),
                    look=look(shown, fitted=bool(laws)),
                    caption=caption(drawn, bench),
                    height=3.5 * math.ceil(len(shown) / ACROSS),
                    draw=partial(draw, curves, laws, shown, axis),
                )
            )
    return found


def is_latency(comparison: Row) -> bool:
    """Whether a comparison is of decoding steps over the context, which has a figure of its own kind."""
    return "decode" in str(comparison.get("metric")) and "context" in str(comparison.get("axis"))


def laws_of(bench: Run, comparison: Row) -> Laws:
    """The exponents that the run fitted for this comparison and metric, by arm and quantity."""
    found: Laws = {}
    for row in bench.held:
        what, exponent = str(row.get("what")), as_float(row.get("found"))
        quantity = next((q for q, word in WORDS.items() if word in what), None)
        same = all(str(row.get(key)) == str(comparison.get(key)) for key in ("comparison", "metric"))
        if "exponent" in what and quantity and same and exponent is not None:
            points = [point[0] if isinstance(point, list) and point else point for point in as_list(row.get("points"))]
            over = tuple(x for point in points if (x := as_float(point)) is not None)
            low, high = as_float(row.get("low")), as_float(row.get("high"))
            found[short(row.get("arm")), quantity] = Law(exponent, low, high, over, row.get("verdict") != "unresolved")
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


def finding(curves: list[Curve], laws: Laws, *, axis: str, metric: str, lone: bool) -> str:
    """What the last point that both have says of each arm against the control, and how the memory or time grows."""
    control = next((curve for curve in curves if curve.control), None)
    others = [curve for curve in curves if not curve.control]
    shared = [x for x in control.rows if any(x in curve.rows for curve in others)] if control else []
    start = "" if lone else f"{metric[:1].upper()}{metric[1:]}, "
    if control is None or not shared:
        parts = [f"{curve.arm} {alone(curve, axis)}" for curve in curves]
        return sentence([f"{start}{first(parts)}", growth(laws, axis)])
    last = max(shared)
    ranked = sorted(
        (curve for curve in others if last in curve.rows),
        key=lambda curve: as_float(curve.rows[last]["ratio"]) or 1.0,
    )
    said = [f"{curve.arm} {against(curve.rows[last], control.rows[last])}" for curve in ranked]
    where = f"{start}at {wording.at(round(last), axis)}, against {control.arm}: {first(said)}"
    return sentence([where, growth(laws, axis)])


def first(said: list[str], most: int = 3) -> str:
    """The first few findings, and how many more there are."""
    return "; ".join(said[:most]) + (f"; {len(said) - most} more" if len(said) > most else "")


def sentence(parts: list[str]) -> str:
    """The parts that say something, with a capital letter in front where nothing else is there."""
    whole = ". ".join(part for part in parts if part)
    return whole[:1].upper() + whole[1:]


def alone(curve: Curve, axis: str) -> str:
    """What an arm without a control costs at the ends of the axis."""
    (low, cheap), *_, (high, dear) = curve.of("median_seconds") * 2
    ends = dict.fromkeys((f"{wording.timing(cheap)} at {low:,.0f}", f"{wording.timing(dear)} at {high:,.0f} {axis}"))
    return ", ".join(ends)


def growth(laws: Laws, axis: str) -> str:
    """`Memory grows as naive T^1.98, flash T^1.01`; of the time where no memory was fitted."""
    for quantity in ("peak_memory_bytes", "median_seconds"):
        grown = [
            f"{arm} {symbol(axis)}^{law.found:.2f}"
            for (arm, what), law in laws.items()
            if what == quantity and law.resolved
        ]
        if grown:
            return f"{WORDS[quantity].capitalize()} grows as {', '.join(grown[:4])}"
    return ""


def symbol(axis: str) -> str:
    """What stands for the axis in a formula: T for lengths in tokens."""
    return "T" if "token" in axis or "context" in axis else "n"


def against(row: Row, control: Row) -> str:
    """One arm against the control in words: `2.38x faster, 31.9x less memory`."""
    phrases = [wording.claim(row)]
    for quantity, fewer, noun in (
        ("peak_memory_bytes", "less", "memory"),
        ("positions", "fewer", "positions"),
    ):
        mine, theirs = as_float(row.get(quantity)), as_float(control.get(quantity))
        if mine and theirs and not 0.9 < theirs / mine < 1.1:
            amount = wording.factor(max(theirs / mine, mine / theirs))
            phrases.append(f"{amount} {fewer if theirs > mine else 'more'} {noun}")
    return ", ".join(phrases)


def look(shown: Sequence[str], *, fitted: bool) -> str:
    """What to see in the panels that are there."""
    said = ["Both axes are logarithmic, so work that grows as a power of the length is a straight line"]
    if fitted:
        said.append("dashed lines are the powers that the run fitted, their exponents with 95% intervals")
    if "positions" in shown:
        said.append("positions are counted while the arm runs, not assumed")
    return "; ".join(said) + ". A point is missing where the arm's output was not verified."


def caption(comparisons: list[Row], bench: Run) -> str:
    """The machine's line, and which ledger the memory came from."""
    ledgers = {row["peak_memory_ledger"] for c in comparisons for row in tables.arms(c) if row["peak_memory_ledger"]}
    return machine(bench) + (f" · memory by {plain(', '.join(sorted(map(str, ledgers))))}" if ledgers else "")


def draw(curves: list[Curve], laws: Laws, shown: list[str], axis: str, canvas: Canvas) -> None:
    """One panel a quantity, so many across."""
    colours = palette(curves)
    for index, row in enumerate(canvas.rows(math.ceil(len(shown) / ACROSS))):
        quantities = shown[index * ACROSS : (index + 1) * ACROSS]
        ends = [labels(curves, quantity, laws, axis, colours) for quantity in quantities]
        widest = [max(len(line) for _, _, text, _ in each for line in text.split("\n")) for each in ends]
        rooms = [0.3 + 0.068 * width for width in widest]
        drawn = row.panels([max(rooms[0], 2.5)] if len(shown) == 1 else rooms)
        for axes, quantity, written in zip(drawn, quantities, ends, strict=True):
            panel(axes, curves, quantity, colours, most=7 if len(drawn) == 1 else 4)
            draw_laws(axes, curves, laws, quantity, colours)
            beside(axes, written, gap=25.0 if any("\n" in text for _, _, text, _ in written) else 13.0)
            panel_title(axes, QUANTITIES[quantity])
            axes.set_xlabel(axis)


def palette(curves: Sequence[Curve]) -> dict[str, str]:
    """Arm to colour: the control grey, the others in the order of the colours."""
    others = [curve.arm for curve in curves if not curve.control]
    found = {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(others)}
    return found | {curve.arm: GREY for curve in curves if curve.control}


def panel(axes: Axes, curves: list[Curve], quantity: str, colours: dict[str, str], most: int) -> None:
    """The arms' lines for one quantity, with so many ticks below at most."""
    points = {curve.arm: curve.of(quantity) for curve in curves}
    drawn = [curve for curve in curves if points[curve.arm]]
    values = [y for curve in drawn for _, y in points[curve.arm]]
    low, high = min(values) / 1.6, max(values) * 1.6
    ticks = doublings(low, high) if quantity == "peak_memory_bytes" else decades(low, high)
    spelled = {"median_seconds": seconds, "peak_memory_bytes": wording.memory}
    log_axis(axes.yaxis, low, high, ticks=ticks, words=spelled.get(quantity, lambda value: f"{value:,.0f}"))
    xs = sorted({x for curve in drawn for x, _ in points[curve.arm]})
    kept = xs[:: -math.ceil(len(xs) / most)]
    log_axis(axes.xaxis, xs[0] / 1.15, xs[-1] * 1.15, ticks=kept, words=lambda value: f"{value:,.0f}")
    for curve in drawn:
        x, y = zip(*points[curve.arm], strict=True)
        colour = colours[curve.arm]
        axes.plot(x, y, color=colour, marker="o", zorder=2 if curve.control else 3)
        if quantity == "median_seconds":
            spread = [as_float(curve.rows[at].get("spread_seconds")) or 0.0 for at in x]
            axes.errorbar(x, y, yerr=spread, fmt="none", ecolor=colour, elinewidth=1.2, capsize=2.5)


def draw_laws(axes: Axes, curves: list[Curve], laws: Laws, quantity: str, colours: dict[str, str]) -> None:
    """The fitted powers as dashed lines through the middle of the points that they were fitted to."""
    for curve in curves:
        law = laws.get((curve.arm, quantity))
        points = [(x, y) for x, y in curve.of(quantity) if law and (not law.over or x in law.over)]
        if law and len(points) >= 2:
            x, y = zip(*points, strict=True)
            middle_x, middle_y = (math.exp(mean([math.log(value) for value in values])) for values in (x, y))
            ends = (axes.get_xlim()[0], x[-1])
            fitted = [middle_y * (end / middle_x) ** law.found for end in ends]
            axes.plot(ends, fitted, color=darker(colours[curve.arm]), linewidth=1.1, linestyle=(0, (4, 2)), zorder=4)


def labels(
    curves: list[Curve], quantity: str, laws: Laws, axis: str, colours: dict[str, str]
) -> list[tuple[float, float, str, str]]:
    """At the end of each line its arm's name, and below it the power that the run fitted."""
    found = []
    for curve in curves:
        if points := curve.of(quantity):
            law = laws.get((curve.arm, quantity))
            text = curve.arm if law is None else f"{curve.arm}\n{law.words(symbol(axis))}"
            found.append((*points[-1], text, colours[curve.arm]))
    return found
