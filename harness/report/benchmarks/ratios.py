"""Forest plots of a comparison at single points (precisions, peers): paired ratios to the control, with intervals."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.report import tables, wording
from harness.report.benchmarks import scaling
from harness.report.figure import COLOURS, GREY, INK, WRONG, Canvas, Plot, darker, log_axis, short
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, entries, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

EQUIVALENCE = 1.02  # within this factor of 1 either way is what the verdict SAME means
LETTER = 5.5  # points that a letter of the columns takes
FURTHEST = 100.0  # a ratio beyond this is drawn at the edge; its number stands beside it
STEPS = (1.05, 1.1, 1.2, 1.5, 2, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class RatioLine:
    """One arm of one group: its time over the control's, with the interval; without a ratio it was not verified."""

    arm: str
    twin: bool
    told_apart: bool
    ratio: float | None
    low: float | None
    high: float | None
    time: str
    words: str


def plots(bench: Run) -> list[Plot]:
    """One figure a comparison that has metrics at a single point."""
    found = []
    for name, comparisons in tables.by_comparison(bench).items():
        over_axis = scaling.scaled(comparisons)
        single = [c for c in comparisons if str(c.get("metric")) not in over_axis]
        every = {heading(c): lines(c) for c in single}
        groups = {what: shown for what, shown in every.items() if any(line.ratio and not line.twin for line in shown)}
        if groups:
            found.append(
                Plot(
                    section=name,
                    name=name if not over_axis else f"{name}-single",
                    finding=finding(single),
                    look=(
                        "Paired ratios of time to the control of the same run, with their 95% intervals, on a "
                        "logarithmic axis. A filled mark is told apart from the control, a hollow one is not; within "
                        "the grey band, 2% either way, counts as the same. A grey diamond is an arm against its own "
                        "twin: how far it is from 1 is noise."
                    ),
                    caption=machine(bench),
                    height=1.0 + sum(0.36 + 0.27 * len(shown) for shown in groups.values()),
                    draw=partial(draw, groups),
                )
            )
    return found


def heading(comparison: Row) -> str:
    """What a group of lines is: the metric, where it was measured, and the control with its time."""
    title, point = plain(comparison.get("metric") or comparison.get("title"), longest=60), comparison.get("point")
    where = title if point is None else f"{title}, {wording.at(point, comparison.get('axis'))}"
    control = next((row for row in tables.arms(comparison) if row["arm"] == comparison.get("control")), None)
    time = wording.timing(control["median_seconds"], control["spread_seconds"]) if control else ""
    return f"{where}  –  against {short(control['arm'])}, {time}" if control and time else where


def lines(comparison: Row) -> list[RatioLine]:
    """The arms that have a ratio, twins last, and those that were not verified."""
    shown = []
    for row in sorted(tables.arms(comparison), key=lambda row: bool(row["twin_of"])):
        ratio, low, high = (as_float(row[key]) for key in ("ratio", "low", "high"))
        name, twin = short(row["arm"]), bool(row["twin_of"])
        time = wording.timing(row["median_seconds"], row["spread_seconds"])
        if row["verified"] == "skip":  # what this machine does not have is in the table
            continue
        if row["verified"] != "pass":
            told = f"not verified ({plain(row['verified'], 20)})"
            shown.append(RatioLine(name, twin, False, None, None, None, "no time", told))
        elif ratio and ratio > 0 and time:
            apart = wording.resolved(row) and not wording.unsettled(row)
            shown.append(RatioLine(name, twin, apart, ratio, low, high, time, wording.ratio(row)))
    return shown


def finding(comparisons: list[Row]) -> str:
    """What each arm is against the control, by metric: `Against fp32: bf16 forward 1.36x faster, ...`."""
    arms: dict[str, list[tuple[str, Row]]] = {}
    for comparison in comparisons:
        for row in tables.arms(comparison):
            if row["arm"] != row["control"] and not row["twin_of"] and as_float(row["ratio"]):
                arms.setdefault(short(row["arm"]), []).append((plain(row["metric"], longest=40), row))
    controls = dict.fromkeys(short(comparison.get("control")) for comparison in comparisons)
    said = [f"{arm} {summary(found)}" for arm, found in arms.items()]
    return f"Against {entries(list(controls))}: {scaling.first(said)}"


def summary(found: list[tuple[str, Row]]) -> str:
    """An arm's ratios over the metrics: one by one, or in one where all say the same."""
    words = [wording.claim(row) for _, row in found]
    if len(found) >= 3 and {text.split(" ")[-1] for text in words} in ({"faster"}, {"slower"}):
        ordered = sorted(words, key=lambda text: float(text.split("x ")[0].replace(",", "")))
        return f"{ordered[0].split(' ')[0]} to {ordered[-1]}"
    if len(found) == 1:
        return f"{words[0]} in {found[0][0]}"
    if len(set(words)) == 1:
        return f"{words[0]} in all {len(words)}"
    return entries([f"{metric} {text}" for (metric, _), text in zip(found, words, strict=True)])


def draw(groups: dict[str, list[RatioLine]], canvas: Canvas) -> None:
    """Marks with whiskers, group by group from the top, with the time and the ratio in two columns beside them."""
    every = [line for shown in groups.values() for line in shown]
    left = 0.3 + 0.075 * max(len(line.arm) for line in every)
    columns = (14, 26 + round(LETTER * max(len(line.time) for line in every)))
    room = (columns[1] + LETTER * max(len(line.words) for line in every)) / 72
    (axes,) = canvas.panels([room], left=min(2.4, left), above=0.05, below=0.42)
    scale(axes, every)
    y, places = 0.0, []
    for title, shown in groups.items():
        axes.text(-0.02, y, title, size=9.5, weight="bold", va="center", zorder=5, transform=axes.get_yaxis_transform(),
                  bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5})  # fmt: skip
        axes.plot([1, 1], [y + 0.5, y + len(shown) + 0.5], color=INK, linewidth=1.0, zorder=2)
        axes.fill_betweenx([y + 0.5, y + len(shown) + 0.5], 1 / EQUIVALENCE, EQUIVALENCE, color="#e4e4e4", zorder=1)
        for line in shown:
            y += 1
            places.append(y)
            if line.ratio:
                draw_line(axes, line, y)
            for column, text in zip(columns, (line.time, line.words), strict=True):
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
    """One ratio with its interval: coloured by its direction, hollow where it is not told apart."""
    ratio = within(line.ratio or 1.0)
    low, high = within(line.low or ratio), within(line.high or ratio)
    told = WRONG if line.twin else COLOURS[0] if ratio < 1 else COLOURS[1]  # a twin told apart is a false alarm
    colour = told if line.told_apart else GREY
    axes.plot([low, high], [y, y], color=colour, linewidth=2.2, solid_capstyle="butt", zorder=3)
    axes.plot(ratio, y, "D" if line.twin else "o", color=colour, markersize=5.5 if line.twin else 7,
              markerfacecolor=colour if line.told_apart else "white", markeredgewidth=1.5, zorder=4)  # fmt: skip


def within(ratio: float) -> float:
    """The ratio, or the edge of the axis that it lies beyond."""
    return min(FURTHEST, max(1 / FURTHEST, ratio))


def scale(axes: Axes, every: list[RatioLine]) -> None:
    """A logarithmic axis that holds 1 and every interval, with ticks in words, none too near to another."""
    ends = [end for line in every for end in (line.ratio, line.low, line.high) if end and end > 0]
    low, high = within(min(1 / 1.06, *ends)), within(max(1.06, *ends))
    margin = (high / low) ** 0.06
    log_axis(axes.xaxis, low / margin, high * margin, ticks=ticks(low, high), words=times)


def ticks(low: float, high: float) -> list[float]:
    """1, and from there outwards the round factors that leave a fifth of the axis between two."""
    room, kept = math.log(high / low) / 5, [1.0]
    for step in STEPS:
        for tick in (step, 1 / step):
            if low <= tick <= high and all(abs(math.log(tick / other)) >= room for other in kept):
                kept.append(tick)
    return sorted(kept)


def times(ratio: float) -> str:
    """A tick: `2x faster`, `same`, `1.1x slower`."""
    if math.isclose(ratio, 1):
        return "same"
    return f"{max(ratio, 1 / ratio):.3g}x {'faster' if ratio < 1 else 'slower'}"
