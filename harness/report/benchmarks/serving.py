"""Plots of serving: the time to the first token and the throughput over the rate at which requests arrive."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.report import formatting
from harness.report.axes import decades, label_points, log_axis, panel_title, seconds
from harness.report.benchmarks.arm_rows import by_comparison
from harness.report.benchmarks.curves import Curve, colours_of, curves_of, is_serving, metrics_over_axis
from harness.report.formatting import slug
from harness.report.json_values import as_float
from harness.report.plot import Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

P50, P99, THROUGHPUT = "first_token_p50_seconds", "first_token_p99_seconds", "served_tokens_per_second"
OCCUPANCY = "occupancy_share"

Points = list[tuple[float, float]]  # of a line: (requests a minute, value)


def plots(bench: RunRecords) -> list[Plot]:
    """Return one plot for each comparison and metric that was served at two rates or more."""
    found = []
    for name, comparisons in by_comparison(bench).items():
        for metric in metrics_over_axis([c for c in comparisons if is_serving(c)]):
            curves = curves_of([c for c in comparisons if str(c.get("metric")) == metric])
            curves = [curve for curve in curves if len(points_of(curve, P50)) >= 2]
            if not curves:
                continue
            found.append(
                Plot(
                    section=name,
                    name=f"{name}-{slug(metric)}",
                    headline=headline(curves),
                    description=DESCRIPTION,
                    caption=provenance(bench),
                    height=3.6,
                    draw=partial(draw, curves),
                )
            )
    return found


DESCRIPTION = (
    "The same requests, served by the same engine: solid, the time to the first token that half of the requests do not "
    "exceed; dashed, that 99% do not exceed. Time is a virtual clock that moves by the measured time of each step. "
    "Throughput counts the tokens of all requests, from the first arrival to the last token. Full is the share of "
    "slots that got a token in a step, at the highest rate."
)


def points_of(curve: Curve, figure: str) -> Points:
    """Return the points (rate, value) at which the arm has this figure, by rising rate."""
    values = ((x, as_float(row["extras"].get(figure))) for x, row in sorted(curve.rows.items()))
    return [(x, value) for x, value in values if value is not None and value > 0]


def headline(curves: Sequence[Curve]) -> str:
    """Return the waiting time and the throughput of the best arm and of the control at the highest rate."""
    control = next((curve for curve in curves if curve.control), curves[0])
    others = [curve for curve in curves if curve is not control] or [control]
    rate = max(x for curve in curves for x, _ in points_of(curve, P50))
    best = min(others, key=lambda curve: dict(points_of(curve, P50)).get(rate, float("inf")))
    parts = []
    for figure, words in ((P50, "half of the users wait"), (P99, "99% at most")):
        own, other = (dict(points_of(curve, figure)).get(rate) for curve in (best, control))
        if own and other:
            what = " for the first token" if figure == P50 else ""
            parts.append(f"{words} {formatting.timing(own)}{what} instead of {formatting.timing(other)}")
    own, other = (dict(points_of(curve, THROUGHPUT)).get(rate) for curve in (best, control))
    if own and other:
        parts.append(f"{own / other:.2f}x the tokens a second")
    return f"{best.arm} against {control.arm} at {rate:,.0f} requests a minute: {', '.join(parts)}".capitalize()


def draw(curves: list[Curve], canvas: Canvas) -> None:
    """Draw the waiting times, p50 solid and p99 dashed, and the throughput."""
    longest = max(len(curve.arm) for curve in curves)
    waiting, throughput = canvas.panels([0.6 + 0.07 * longest, 0.8 + 0.07 * longest], left=0.75)
    colours = colours_of(curves)
    lines = {(curve.arm, figure): points_of(curve, figure) for curve in curves for figure in (P50, P99)}
    values = [y for points in lines.values() for _, y in points]
    low, high = min(values) / 1.5, max(values) * 1.5
    log_axis(waiting.yaxis, low, high, ticks=decades(low, high), words=seconds)
    rates = sorted({x for points in lines.values() for x, _ in points})
    for axes in (waiting, throughput):
        log_axis(axes.xaxis, rates[0] / 1.15, rates[-1] * 1.15, ticks=rates, words=lambda value: f"{value:,.0f}")
        axes.set_xlabel("requests a minute")
    labels = []
    for (arm, figure), points in lines.items():
        style = "-" if figure == P50 else (0, (4, 2))
        (line,) = waiting.plot(*zip(*points, strict=True), color=colours[arm], marker="o", linestyle=style)
        wait = "p50" if figure == P50 else "p99"
        name_points(line, [f"{arm} {wait} at {x:,.0f} requests a minute: {formatting.timing(y)}" for x, y in points])
        labels.append((*points[-1], f"{arm} {'p50' if figure == P50 else 'p99'}", colours[arm]))
    panel_title(waiting, "Time to the first token")
    label_points(waiting, labels)
    labels = []
    for curve in curves:
        points = points_of(curve, THROUGHPUT)
        (line,) = throughput.plot(*zip(*points, strict=True), color=colours[curve.arm], marker="o")
        name_points(line, [f"{curve.arm} at {x:,.0f} requests a minute: {y:,.0f} tokens/s" for x, y in points])
        used = dict(points_of(curve, OCCUPANCY)).get(points[-1][0])
        labels.append((*points[-1], curve.arm + (f", {used:.0%} full" if used else ""), colours[curve.arm]))
    throughput.set_ylim(0, max(y for _, y, *_ in labels) * 1.25)
    panel_title(throughput, "Tokens a second, of all requests together")
    label_points(throughput, labels)
