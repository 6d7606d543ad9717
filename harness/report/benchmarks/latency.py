"""Plots of decode latency: the time of one step as the context grows, and what memory bandwidth alone allows."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.axes import decades, label_points, log_axis, panel_title, seconds
from harness.report.benchmarks.arm_rows import by_comparison
from harness.report.benchmarks.ceilings import Ceiling, ceilings_of
from harness.report.benchmarks.curves import (
    Curve,
    colours_of,
    curves_of,
    first_results,
    is_decode_latency,
    metrics_over_axis,
)
from harness.report.formatting import plain, slug
from harness.report.json_values import as_float
from harness.report.plot import INK, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

LINEAR = 12  # the axis of the times is linear up to this ratio between the largest and the smallest

Points = list[tuple[float, float]]  # of a line: (context, seconds)


def plots(bench: RunRecords) -> list[Plot]:
    """Return one plot for each comparison and metric that decodes at two lengths of context or more."""
    found = []
    for name, comparisons in by_comparison(bench).items():
        for metric in metrics_over_axis([c for c in comparisons if is_decode_latency(c)]):
            drawn = [c for c in comparisons if str(c.get("metric")) == metric]
            curves = [curve for curve in curves_of(drawn) if len(curve.of("median_seconds")) >= 2]
            if not curves:
                continue
            ceiling = bandwidth(drawn)
            lower_bounds = {curve.arm: lower_bound(curve, ceiling) for curve in curves}
            axis = plain(drawn[0].get("axis"), longest=40)
            found.append(
                Plot(
                    section=name,
                    name=f"{name}-{slug(metric)}-latency",
                    headline=headline(curves, lower_bounds, metric=plain(metric, longest=40)),
                    description=description(lower_bounds),
                    caption=provenance(bench),
                    height=3.6,
                    draw=partial(draw, curves, lower_bounds, ceiling.text if ceiling else "", axis),
                )
            )
    return found


def bandwidth(comparisons: Sequence[Row]) -> Ceiling | None:
    """Return the highest bandwidth that was measured with these comparisons."""
    return next((ceiling for ceiling in ceilings_of(comparisons) if ceiling.kind == "bandwidth"), None)


def lower_bound(curve: Curve, ceiling: Ceiling | None) -> Points:
    """Return the seconds that moving the arm's bytes takes at that bandwidth, by context."""
    return [(x, moved / ceiling.rate) for x, moved in curve.of("moved_bytes")] if ceiling else []


def headline(curves: Sequence[Curve], lower_bounds: dict[str, Points], *, metric: str) -> str:
    """Return the time of a step at the shortest and the longest context, and the best arm's ratio to its bound."""
    ranked = sorted(curves, key=lambda curve: curve.of("median_seconds")[-1][1])
    ends = [(points[0], points[-1]) for points in (curve.of("median_seconds") for curve in ranked)]
    results = [
        f"{curve.arm} {formatting.timing(short)} to {formatting.timing(long)}"
        for curve, ((_, short), (_, long)) in zip(ranked, ends, strict=True)
    ]
    first, last = min(first for (first, _), _ in ends), max(last for _, (last, _) in ends)
    best, (longest, cost) = ranked[0].arm, ends[0][1]
    least = dict(lower_bounds[best]).get(longest)
    above = f"; {best} takes {formatting.factor(cost / least)} the time that moving its bytes takes" if least else ""
    start = f"{metric[:1].upper()}{metric[1:]} with a context from {first:,.0f} to {last:,.0f} tokens"
    return f"{start}: {first_results(results)}{above}"


def description(lower_bounds: dict[str, Points]) -> str:
    """Return how to read the plot."""
    text = "Time for one decoding step (median ± spread) against the positions before it"
    if any(lower_bounds.values()):
        text += (
            ". Dashed: the time that moving the arm's bytes (weights and cached keys and values) takes at the measured "
            "read bandwidth, so the gap to it is what the implementation adds"
        )
    return text + "."


def arms_by_bound(lower_bounds: dict[str, Points]) -> dict[tuple[tuple[float, float], ...], list[str]]:
    """Return the arms that have the same lower bound, by that line."""
    found: dict[tuple[tuple[float, float], ...], list[str]] = {}
    for arm, points in lower_bounds.items():
        if points:
            found.setdefault(tuple(points), []).append(arm)
    return found


def draw(curves: list[Curve], lower_bounds: dict[str, Points], rate: str, axis: str, canvas: Canvas) -> None:
    """Draw the measured lines with their spread, and the lower bounds dashed."""
    (axes,) = canvas.panels([max(1.9, 0.3 + 0.08 * max(len(curve.arm) for curve in curves))], left=0.9)
    colours, labels, tallest = colours_of(curves), [], 0.0
    for curve in curves:
        x, y = zip(*curve.of("median_seconds"), strict=True)
        spread = [as_float(curve.rows[at].get("spread_seconds")) or 0.0 for at in x]
        colour = colours[curve.arm]
        line, *_ = axes.errorbar(x, y, yerr=spread, color=colour, marker="o", elinewidth=1.2, capsize=2.5, zorder=3)
        times = [formatting.timing(*each) for each in zip(y, spread, strict=True)]
        places = [formatting.where(round(at), axis) for at in x]
        name_points(line, [f"{curve.arm} {place}: {time}" for place, time in zip(places, times, strict=True)])
        labels.append((x[-1], y[-1], curve.arm, colour))
        tallest = max(tallest, *y)
    for points, arms in arms_by_bound(lower_bounds).items():
        colour = colours[arms[0]] if len(arms) < len(curves) or len(curves) == 1 else INK
        axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.3, linestyle=(0, (4, 2)), zorder=2)
        labels.append((*points[-1], f"its bytes at {rate}", colour))
    axes.set_xlim(0, max(x for x, *_ in labels) * 1.02)
    lowest = min(
        y for curve in curves for points in (curve.of("median_seconds"), lower_bounds[curve.arm]) for _, y in points
    )
    if tallest > LINEAR * lowest:  # a linear axis would press all but one arm flat
        low, high = lowest / 1.6, tallest * 1.6
        log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=seconds)
    else:
        axes.set_ylim(0, tallest * 1.12)
        axes.yaxis.set_major_formatter(lambda value, _: seconds(value) if value else "0")
    axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axes.set_xlabel(formatting.axis_title(axis))
    panel_title(axes, "Time for one step")
    label_points(axes, labels)
