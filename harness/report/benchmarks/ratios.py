"""Forest plots of a comparison at single points (precisions, peers): paired ratios to the control, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.axes import darker, log_axis
from harness.report.benchmarks.arm_rows import arms, by_comparison
from harness.report.benchmarks.curves import first_results, metrics_over_axis
from harness.report.formatting import entries, plain, short_name
from harness.report.json_values import as_float
from harness.report.plot import COLOURS, GREY, INK, WRONG, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SAME = 1.05  # the verdict SAME of short calls: the whole interval is within this factor of 1
LETTER = 5.5  # points that a letter of the columns takes
LONGEST_TICK = 66.0  # points that `1.05x slower` takes, with the space beside it
FURTHEST = 100.0  # a ratio beyond this is drawn at the edge; its number is beside it
DESCRIPTION = (
    "Times over that of the control, with 95% intervals, on a logarithmic axis. Coloured: a difference. Filled and "
    "grey: the same, within the grey band of 5% either way (10% for calls longer than a quarter of a second). Hollow: "
    "inconclusive. Diamond: an arm against its own twin, so its distance from 1 is noise."
)
STEPS = (1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class RatioLine:
    """One arm of one group: its time over the control's, with the interval; without a ratio it was not verified.

    `same` is a ratio that is conclusive because both take the same time.
    """

    arm: str
    twin: bool
    conclusive: bool
    same: bool
    ratio: float | None
    low: float | None
    high: float | None
    time: str
    text: str


def plots(bench: RunRecords) -> list[Plot]:
    """Return one plot for each comparison that has metrics at a single point."""
    found = []
    for name, comparisons in by_comparison(bench).items():
        over_axis = metrics_over_axis(comparisons)
        single = [c for c in comparisons if str(c.get("metric")) not in over_axis]
        lines = {heading(c): ratio_lines(c) for c in single}
        groups = {what: shown for what, shown in lines.items() if any(line.ratio and not line.twin for line in shown)}
        if groups:
            found.append(
                Plot(
                    section=name,
                    name=name if not over_axis else f"{name}-single",
                    headline=headline(single),
                    description=DESCRIPTION,
                    caption=provenance(bench),
                    height=1.0 + sum(0.36 + 0.27 * len(shown) for shown in groups.values()),
                    draw=partial(draw, groups),
                )
            )
    return found


def heading(comparison: Row) -> str:
    """Return the heading of a group of lines: the metric, its point, and the control with its time."""
    title, point = plain(comparison.get("metric") or comparison.get("title"), longest=60), comparison.get("point")
    where = title if point is None else f"{title} {formatting.where(point, comparison.get('axis'))}"
    control = next((row for row in arms(comparison) if row["arm"] == comparison.get("control")), None)
    time = formatting.timing(control["median_seconds"], control["spread_seconds"]) if control else ""
    return f"{where}  –  against {short_name(control['arm'])}, {time}" if control and time else where


def ratio_lines(comparison: Row) -> list[RatioLine]:
    """Return the arms that have a ratio, twins last, and those that were not verified."""
    shown = []
    for row in sorted(arms(comparison), key=lambda row: bool(row["twin_of"])):
        ratio, low, high = (as_float(row[key]) for key in ("ratio", "low", "high"))
        name, twin = short_name(row["arm"]), bool(row["twin_of"])
        time = formatting.timing(row["median_seconds"], row["spread_seconds"])
        if row["verified"] == "skip":  # the table has the arms that this machine cannot run
            continue
        if row["verified"] != "pass":
            text = f"not verified ({plain(row['verified'], 20)})"
            shown.append(RatioLine(name, twin, False, False, None, None, None, "no time", text))
        elif ratio and ratio > 0 and time:
            decided = direction(row)
            same = decided == "same"
            shown.append(RatioLine(name, twin, bool(decided), same, ratio, low, high, time, formatting.ratio(row)))
    return shown


def headline(comparisons: list[Row]) -> str:
    """Return each arm's ratios to its control, by `rank`: `Against fp32: bf16 1.36x faster in forward`."""
    found: dict[tuple[str, str], list[tuple[str, Row]]] = {}
    for comparison in comparisons:
        for row in arms(comparison):
            if row["arm"] != row["control"] and not row["twin_of"] and as_float(row["ratio"]):
                pair = short_name(row["arm"]), short_name(row["control"])
                found.setdefault(pair, []).append((plain(row["metric"], longest=40), row))
    controls = {control for _, control in found}
    results = [
        f"{arm} {over_metrics(rows)}" + (f", against {control}" if len(controls) > 1 else "")
        for (arm, control), rows in sorted(found.items(), key=lambda each: rank(each[1]))
    ]
    text = first_results(results)
    return text if len(controls) > 1 else f"Against {', '.join(controls)}: {text}"


def rank(rows: list[tuple[str, Row]]) -> tuple[bool, float]:
    """Return what an arm's place in a headline goes by: the subject before peers, the largest difference first."""
    decided = [row for _, row in rows if direction(row) in ("faster", "slower")]
    largest = max((abs(math.log(as_float(row["ratio"]) or 1.0)) for row in decided), default=0.0)
    return bool(rows[0][1]["peer"]), -largest


def over_metrics(rows: list[tuple[str, Row]]) -> str:
    """Return an arm's ratios over the metrics: one by one, or as a range if all agree."""
    if len(rows) == 1:
        return f"{formatting.ratio(rows[0][1])} in {rows[0][0]}"
    agreed = {direction(row) for _, row in rows}
    values = sorted(as_float(row["ratio"]) or 1.0 for _, row in rows)
    if agreed == {""}:
        return f"{span(values)} the time, inconclusive in all {len(rows)} metrics"
    if len(rows) >= 3 and agreed in ({"faster"}, {"slower"}):
        faster = agreed == {"faster"}
        return f"{span(sorted(1 / value for value in values) if faster else values)} {'faster' if faster else 'slower'}"
    return entries([f"{metric} {formatting.ratio(row)}" for metric, row in rows])


def direction(row: Row) -> str:
    """Return `faster` or `slower`, `same`, or an empty string if the ratio is inconclusive."""
    verdict = str(row.get("verdict") or "").lower()
    return verdict if verdict in {"faster", "slower", "same"} and not formatting.fails_adjustment(row) else ""


def span(values: list[float]) -> str:
    """Return `1.04x to 1.44x` for sorted ratios; one factor if the ends agree at the digits shown."""
    return " to ".join(dict.fromkeys((formatting.factor(values[0]), formatting.factor(values[-1]))))


def draw(groups: dict[str, list[RatioLine]], canvas: Canvas) -> None:
    """Draw marks with whiskers, group by group from the top, with the time and the ratio in two columns beside them."""
    every = [line for shown in groups.values() for line in shown]
    left = 0.3 + 0.075 * max(len(line.arm) for line in every)
    columns = (14, 26 + round(LETTER * max(len(line.time) for line in every)))
    width = (columns[1] + LETTER * max(len(line.text) for line in every)) / 72
    (axes,) = canvas.panels([width], left=min(2.4, left), above=0.05, below=0.42)
    draw_scale(axes, every)
    y, places = 0.0, []
    for title, shown in groups.items():
        axes.text(-0.02, y, title, size=9.5, weight="bold", va="center", zorder=5, transform=axes.get_yaxis_transform(),
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.plot([1, 1], [y + 0.5, y + len(shown) + 0.5], color=INK, linewidth=1.0, zorder=2)
        axes.fill_betweenx([y + 0.5, y + len(shown) + 0.5], 1 / SAME, SAME, color="#e4e4e4", zorder=1)
        for line in shown:
            y += 1
            places.append(y)
            if line.ratio:
                draw_line(axes, line, y)
            for column, text in zip(columns, (line.time, line.text), strict=True):
                colour = GREY if line.twin else INK if line.ratio else darker(WRONG)
                axes.annotate(text, (1, y), xytext=(column, 0), va="center", size=9, color=colour,
                              xycoords=axes.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
        y += 1.35
    axes.set_ylim(y - 0.7, -0.6)
    axes.set_yticks(places, [line.arm for line in every])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("time relative to the control")


def draw_line(axes: Axes, line: RatioLine, y: float) -> None:
    """Draw one ratio with its interval: coloured by its direction, grey if there is none, hollow if inconclusive."""
    ratio = within_axis(line.ratio or 1.0)
    low, high = within_axis(line.low or ratio), within_axis(line.high or ratio)
    # A conclusive difference between identical arms is a false alarm.
    different = WRONG if line.twin else COLOURS[0] if ratio < 1 else COLOURS[1]
    colour = different if line.conclusive and not line.same else GREY
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
    (mark,) = axes.plot(ratio, y, "D" if line.twin else "o", color=colour, markersize=5.5 if line.twin else 7,
              markerfacecolor=colour if line.conclusive else "white", markeredgewidth=1.5, zorder=4)  # fmt: skip
    name_points(mark, [f"{line.arm}: {line.time}, {line.text}"])


def within_axis(ratio: float) -> float:
    """Return the ratio, or the edge of the axis if it lies beyond."""
    return min(FURTHEST, max(1 / FURTHEST, ratio))


def draw_scale(axes: Axes, every: list[RatioLine]) -> None:
    """Make the x axis logarithmic, wide enough for 1 and every interval."""
    ends = [end for line in every for end in (line.ratio, line.low, line.high) if end and end > 0]
    low, high = within_axis(min(1 / 1.06, *ends)), within_axis(max(1.06, *ends))
    margin = (high / low) ** 0.06
    points = axes.get_window_extent().width * 72 / axes.figure.dpi
    marked = ticks(low, high, apart=max(0.2, LONGEST_TICK / points))
    log_axis(axes.xaxis, low / margin, high * margin, ticks=marked, words=tick_label)


def ticks(low: float, high: float, *, apart: float = 0.2) -> list[float]:
    """Return 1, and from there outwards the round factors with at least a share `apart` of the axis between two."""
    gap, chosen = math.log(high / low) * apart, [1.0]
    for step in STEPS:
        for tick in (step, 1 / step):
            if low <= tick <= high and all(abs(math.log(tick / other)) >= gap for other in chosen):
                chosen.append(tick)
    return sorted(chosen)


def tick_label(ratio: float) -> str:
    """Return a tick: `2x faster`, `same`, `1.1x slower`."""
    if math.isclose(ratio, 1):
        return "same"
    return f"{max(ratio, 1 / ratio):.3g}x {'faster' if ratio < 1 else 'slower'}"
