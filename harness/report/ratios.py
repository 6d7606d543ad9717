"""Figures of a comparison at single points (precisions, peers): time relative to the control."""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

from harness.report import scaling, tables, wording
from harness.report.figure import COLOURS, GREY, INK, WRONG, Canvas, Plot, darker, short
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, entries, plain


@dataclass(frozen=True)
class Bar:
    """One arm of one group: its time over the control's, with the interval; the control's own bar is at 1."""

    arm: str
    control: bool
    relative: float
    low: float | None
    high: float | None
    time: str
    ratio: str


def plots(bench: Run) -> list[Plot]:
    """One figure a comparison that has metrics at a single point."""
    found = []
    for name, comparisons in tables.by_comparison(bench).items():
        over_axis = scaling.scaled(comparisons)
        single = [c for c in comparisons if str(c.get("metric")) not in over_axis]
        groups = {group(c): bars(c) for c in single}
        groups = {
            title: shown for title, shown in groups.items() if any(not bar.control and bar.relative for bar in shown)
        }
        if groups:
            found.append(
                Plot(
                    section=name,
                    name=name if not over_axis else f"{name}-single",
                    finding=finding(single),
                    look=(
                        "Bars are time relative to the control of the same run, so shorter is faster; whiskers "
                        "are the 95% intervals of the paired ratios. One that crosses the line at 1 leaves the "
                        "question open."
                    ),
                    caption=machine(bench),
                    height=0.95 + sum(0.34 + 0.25 * len(shown) for shown in groups.values()),
                    draw=partial(draw, groups),
                )
            )
    return found


def group(comparison: Row) -> str:
    """The heading of a group of bars: the metric, and where it was measured."""
    title, point = plain(comparison.get("metric") or comparison.get("title"), longest=60), comparison.get("point")
    return title if point is None else f"{title}, {wording.at(point, comparison.get('axis'))}"


def bars(comparison: Row) -> list[Bar]:
    """The control and the arms that have a ratio to it, and without a length those that were not verified."""
    shown = []
    for row in sorted(tables.arms(comparison), key=lambda row: row["arm"] != row["control"]):
        control, name = row["arm"] == row["control"], short(row["arm"])
        relative = 1.0 if control else as_float(row["ratio"])
        if row["verified"] != "pass":
            shown.append(Bar(name, control, 0.0, None, None, "no time", f"not verified ({plain(row['verified'], 20)})"))
        elif relative and as_float(row["median_seconds"]) and not row["twin_of"]:
            time = wording.timing(row["median_seconds"], row["spread_seconds"])
            ratio = "control" if control else wording.ratio(row)
            shown.append(Bar(name, control, relative, as_float(row["low"]), as_float(row["high"]), time, ratio))
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
    return f"Against {entries(list(controls))}: {'; '.join(said[:3])}"


def summary(found: list[tuple[str, Row]]) -> str:
    """An arm's ratios over the metrics: one by one, or in one where all say the same."""
    words = [wording.ratio(row).split(" [")[0] for _, row in found]
    verdicts = {str(row["verdict"]) for _, row in found}
    if len(found) >= 3 and verdicts in ({"FASTER"}, {"SLOWER"}):
        ordered = sorted(words, key=lambda text: float(text.split("x ")[0].replace(",", "")))
        return f"{ordered[0].split(' ')[0]} to {ordered[-1]}"
    if len(found) == 1:
        return f"{words[0]} in {found[0][0]}"
    if len(set(words)) == 1:
        return f"{words[0]} in all {len(words)}"
    return entries([f"{metric} {text}" for (metric, _), text in zip(found, words, strict=True)])


def draw(groups: dict[str, list[Bar]], canvas: Canvas) -> None:
    """Horizontal bars, group by group from the top, with the time and the ratio in two columns beside them."""
    every = [bar for shown in groups.values() for bar in shown]
    left = 0.3 + 0.075 * max(len(bar.arm) for bar in every)
    (axes,) = canvas.panels([3.25], left=min(2.9, left), above=0.05, below=0.42)
    arms = dict.fromkeys(bar.arm for bar in every if not bar.control)
    palette = {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}
    y, ticks = 0.0, []
    for title, shown in groups.items():
        box = {"facecolor": "white", "edgecolor": "none", "pad": 1.5}
        axes.text(0, y, title, size=9.5, weight="bold", va="center", bbox=box, zorder=5)
        for bar in shown:
            y += 1
            ticks.append(y)
            axes.barh(y, bar.relative, height=0.62, color=GREY if bar.control else palette[bar.arm], alpha=0.85)
            if bar.low is not None and bar.high is not None:
                error = [[max(0.0, bar.relative - bar.low)], [max(0.0, bar.high - bar.relative)]]
                axes.errorbar(bar.relative, y, xerr=error, fmt="none", ecolor=INK, elinewidth=1.3, capsize=3)
            for column, text in ((14, bar.time), (112, bar.ratio)):
                colour = GREY if bar.control else INK if bar.relative else darker(WRONG)
                axes.annotate(text, (1, y), xytext=(column, 0), va="center", size=9, color=colour,
                              xycoords=axes.get_yaxis_transform(), textcoords="offset points")  # fmt: skip
        y += 1.35
    axes.axvline(1, color=INK, linewidth=0.9, linestyle=(0, (3, 2)))
    # A whisker may leave the figure (its numbers stand beside it) rather than squeeze the bars.
    reach, longest = max(bar.high or bar.relative for bar in every), max(bar.relative for bar in every)
    axes.set_xlim(0, min(reach * 1.02, longest * 1.6))
    axes.set_ylim(y - 0.7, -0.6)
    axes.set_yticks(ticks, [bar.arm for bar in every])
    axes.grid(visible=False, axis="y")
    axes.spines["left"].set_visible(False)
    axes.set_xlabel("time relative to the control (shorter is faster)")
