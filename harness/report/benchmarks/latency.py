"""The figure of decode latency: what one step costs as the context grows, and what memory alone would allow."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.report import tables, wording
from harness.report.benchmarks import scaling
from harness.report.benchmarks.roofline import Roof, roofs_of
from harness.report.benchmarks.scaling import Curve
from harness.report.figure import INK, Canvas, Plot, beside, decades, log_axis, panel_title, seconds
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, plain

FLAT = 12  # times apart, and the axis of the times becomes logarithmic


def plots(bench: Run) -> list[Plot]:
    """One figure a comparison and metric that decodes at two lengths of context or more."""
    found = []
    for name, comparisons in tables.by_comparison(bench).items():
        for metric in scaling.scaled([c for c in comparisons if scaling.is_latency(c)]):
            drawn = [c for c in comparisons if str(c.get("metric")) == metric]
            curves = [curve for curve in scaling.curves_of(drawn) if len(curve.of("median_seconds")) >= 2]
            if not curves:
                continue
            roof = bandwidth(drawn)
            ideals = {curve.arm: ideal(curve, roof) for curve in curves}
            axis = plain(drawn[0].get("axis"), longest=40)
            found.append(
                Plot(
                    section=name,
                    name=f"{name}-{tables.slug(metric)}-latency",
                    finding=finding(curves, ideals, metric=plain(metric, longest=40)),
                    look=look(ideals),
                    caption=machine(bench),
                    height=3.6,
                    draw=partial(draw, curves, ideals, roof.words if roof else "", axis),
                )
            )
    return found


def bandwidth(comparisons: Sequence[Row]) -> Roof | None:
    """The highest bandwidth that was measured beside these comparisons."""
    return next((roof for roof in roofs_of(comparisons) if roof.kind == "bandwidth"), None)


def ideal(curve: Curve, roof: Roof | None) -> list[tuple[float, float]]:
    """The seconds that moving the arm's bytes takes at that bandwidth."""
    return [(x, moved / roof.rate) for x, moved in curve.of("moved_bytes")] if roof else []


def finding(curves: Sequence[Curve], ideals: dict[str, list[tuple[float, float]]], *, metric: str) -> str:
    """What a step costs at the shortest and at the longest context, and what the best arm adds to its ideal."""
    ranked = sorted(curves, key=lambda curve: curve.of("median_seconds")[-1][1])
    ends = [(points[0], points[-1]) for points in (curve.of("median_seconds") for curve in ranked)]
    said = [
        f"{curve.arm} {wording.timing(short)} to {wording.timing(long)}"
        for curve, ((_, short), (_, long)) in zip(ranked, ends, strict=True)
    ]
    first, last = min(first for (first, _), _ in ends), max(last for _, (last, _) in ends)
    best, (longest, cost) = ranked[0].arm, ends[0][1]
    floor = dict(ideals[best]).get(longest)
    above = f"; {best} takes {wording.factor(cost / floor)} what its bytes need" if floor else ""
    start = f"{metric[:1].upper()}{metric[1:]} from {first:,.0f} to {last:,.0f} context"
    return f"{start}: {scaling.first(said)}{above}"


def look(ideals: dict[str, list[tuple[float, float]]]) -> str:
    """What to see in the figure."""
    said = "Time for one decoding step (median ± spread) against the positions before it"
    if any(ideals.values()):
        said += (
            ". Dashed: what the arm's bytes (weights and cached keys and values) take at the measured read bandwidth, "
            "so the gap to it is what the implementation adds"
        )
    return said + "."


def shared(ideals: dict[str, list[tuple[float, float]]]) -> dict[tuple[tuple[float, float], ...], list[str]]:
    """The arms that have the same ideal line, by that line."""
    found: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for arm, floor in ideals.items():
        if floor:
            found.setdefault(tuple(floor), []).append(arm)
    return found


def draw(
    curves: list[Curve], ideals: dict[str, list[tuple[float, float]]], rate: str, axis: str, canvas: Canvas
) -> None:
    """Measured lines with their spread, and the ideal ones dashed below."""
    (axes,) = canvas.panels([max(1.9, 0.3 + 0.08 * max(len(curve.arm) for curve in curves))], left=0.9)
    palette, labels, tallest = scaling.palette(curves), [], 0.0
    for curve in curves:
        x, y = zip(*curve.of("median_seconds"), strict=True)
        spread = [as_float(curve.rows[at].get("spread_seconds")) or 0.0 for at in x]
        colour = palette[curve.arm]
        axes.errorbar(x, y, yerr=spread, color=colour, marker="o", elinewidth=1.2, capsize=2.5, zorder=3)
        labels.append((x[-1], y[-1], curve.arm, colour))
        tallest = max(tallest, *y)
    for floor, arms in shared(ideals).items():
        colour = palette[arms[0]] if len(arms) < len(curves) or len(curves) == 1 else INK
        axes.plot(*zip(*floor, strict=True), color=colour, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
        labels.append((*floor[-1], f"its bytes at {rate}", colour))
    axes.set_xlim(0, max(x for x, *_ in labels) * 1.02)
    lowest = min(y for curve in curves for points in (curve.of("median_seconds"), ideals[curve.arm]) for _, y in points)
    if tallest > FLAT * lowest:  # a linear axis would press all but one arm flat
        low, high = lowest / 1.6, tallest * 1.6
        log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=seconds)
    else:
        axes.set_ylim(0, tallest * 1.12)
        axes.yaxis.set_major_formatter(lambda value, _: seconds(value) if value else "0")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(axis)
    panel_title(axes, "Time for one step")
    beside(axes, labels)
