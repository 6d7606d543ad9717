"""The plot of speculative decoding: its speed-up and its tokens a call of the target, against their closed forms."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.axes import label_points, log_axis, panel_title
from harness.report.benchmarks.arm_rows import arms, by_comparison
from harness.report.benchmarks.curves import is_speculation
from harness.report.formatting import slug
from harness.report.json_values import as_float
from harness.report.plot import COLOURS, INK, WRONG, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CALLS, CALLS_FORM = "tokens_per_target_call", "tokens_per_target_call_closed_form"
FORM, WITH_VERIFICATION = "speed_up_closed_form", "speed_up_with_verification"
DASHED, DOTTED = (0, (4, 2)), (0, (1, 1.6))


@dataclass(frozen=True)
class Series:
    """One arm with one draft over the lookahead; `rows` by lookahead, each verified and with a ratio."""

    metric: str
    arm: str
    rows: dict[float, Row]

    @property
    def acceptance(self) -> float | None:
        """The mean share of accepted drafts over the points."""
        shares = [share for row in self.rows.values() if (share := self.extra(row, "acceptance_share")) is not None]
        return sum(shares) / len(shares) if shares else None

    @staticmethod
    def extra(row: Row, name: str) -> float | None:
        """Return a figure that the arm measured beside its time."""
        return as_float(row["extras"].get(name))

    def of(self, name: str) -> list[tuple[float, float]]:
        """Return the points (lookahead, figure) of an extra that is known."""
        points = ((x, self.extra(row, name)) for x, row in sorted(self.rows.items()))
        return [(x, value) for x, value in points if value is not None]

    def speed_ups(self) -> list[tuple[float, float, float, float]]:
        """Return (lookahead, speed-up, low, high) over the target alone."""
        found = []
        for x, row in sorted(self.rows.items()):
            ratio, low, high = (as_float(row.get(key)) for key in ("ratio", "low", "high"))
            if ratio and low and high:
                found.append((x, 1 / ratio, 1 / high, 1 / low))
        return found

    @property
    def label(self) -> str:
        """`α = 0.68` for a draft with closed forms, the arm's name for others."""
        return self.arm if self.acceptance is None else f"α = {self.acceptance:.2f}"


def plots(bench: RunRecords) -> list[Plot]:
    """Return one plot for each comparison of speculative decoding that has a draft model at two lookaheads or more."""
    found = []
    for name, comparisons in by_comparison(bench).items():
        series = series_of([c for c in comparisons if is_speculation(c)])
        if series:
            found.append(
                Plot(
                    section=name,
                    name=f"{slug(name)}-speed-up",
                    headline=headline(series),
                    description=DESCRIPTION,
                    caption=provenance(bench),
                    height=4.0,
                    draw=partial(draw, series),
                )
            )
    return found


DESCRIPTION = (
    "Left: the speed-up over the target alone, by the number of drafts a round, with its 95% interval. Dashed: the "
    "closed form (1 - α^(γ+1)) / ((1 - α)(γc + 1)) with the measured acceptance α and cost ratio c of a draft's step; "
    "dotted: the same with the measured time of the target's call for all drafts, which the closed form takes to be "
    "that of one token. Below 1 speculation does not pay. Right: new tokens for each call of the target, against "
    "(1 - α^(γ+1)) / (1 - α)."
)


def series_of(comparisons: Sequence[Row]) -> list[Series]:
    """Return the draft models' series by falling acceptance, each with two points or more."""
    found: dict[tuple[str, str], dict[float, Row]] = {}
    for comparison in comparisons:
        for row in arms(comparison):
            point = as_float(row["point"])
            known = row["verified"] == "pass" and not row["twin_of"] and not row["peer"] and point
            if known and Series.extra(row, FORM) is not None and row["arm"] == "draft-model":
                found.setdefault((str(row["metric"]), str(row["arm"])), {})[float(point or 0)] = row
    series = [Series(metric, arm, rows) for (metric, arm), rows in found.items() if len(rows) >= 2]
    return sorted(series, key=lambda each: -(each.acceptance or 0.0))


def headline(series: Sequence[Series]) -> str:
    """Return the best speed-up of the best draft, and the worst of the worst, as sentences."""
    best, worst = series[0], series[-1]
    x, up, low, high = max(best.speed_ups(), key=lambda point: point[1])
    drafts = f"{x:.0f} drafts a round, of which {formatting.percent(best.acceptance)} are accepted"
    text = f"With {drafts}, {up:.2f}x the speed of the target alone [{low:.2f}, {high:.2f}]"
    if worst is not best:
        x, up, low, high = min(worst.speed_ups(), key=lambda point: point[1])
        pays = "it pays there too" if low > 1 else "it does not pay there" if high < 1 else "about even"
        drafts = f"{x:.0f}, of which {formatting.percent(worst.acceptance)} are accepted"
        text += f"; with {drafts}, {up:.2f}x [{low:.2f}, {high:.2f}]: {pays}"
    return text


def draw(series: Sequence[Series], canvas: Canvas) -> None:
    """Draw the two panels."""
    left, right = canvas.panels([1.05, 0.85], left=0.55)
    colours = dict(zip([each.metric for each in series], COLOURS, strict=False))
    labels: dict[str, list[tuple[float, float, str, str]]] = {"left": [], "right": []}
    points = sorted({x for each in series for x in each.rows})
    for each in series:
        colour = colours.get(each.metric, INK)
        x, up, low, high = (list(values) for values in zip(*each.speed_ups(), strict=True))
        errors = [[u - b for u, b in zip(up, low, strict=True)], [t - u for u, t in zip(up, high, strict=True)]]
        line, *_ = left.errorbar(x, up, yerr=errors, color=colour, marker="o", elinewidth=1.2, capsize=2.5, zorder=3)
        name_points(
            line,
            [f"{each.label}, {g:.0f} drafts: {u:.2f}x [{b:.2f}, {t:.2f}]" for g, u, b, t in each.speed_ups()],
        )
        for name, style in ((FORM, DASHED), (WITH_VERIFICATION, DOTTED)):
            if each.of(name):
                left.plot(*zip(*each.of(name), strict=True), color=colour, linewidth=1.3, linestyle=style, zorder=2)
        labels["left"].append((x[-1], up[-1], each.label, colour))
        measured, form = each.of(CALLS), each.of(CALLS_FORM)
        if measured and form:
            right.plot(*zip(*measured, strict=True), color=colour, marker="o", linewidth=0, zorder=3)
            right.plot(*zip(*form, strict=True), color=colour, linewidth=1.3, linestyle=DASHED, zorder=2)
            labels["right"].append((*form[-1], each.label, colour))
    left.axhline(1.0, color=WRONG, linewidth=1.2, zorder=1)
    labels["left"].append((points[-1], 1.0, "target alone", WRONG))
    _scale(left, points, "Speed-up over the target alone", lambda value: f"{value:g}x")
    _scale(right, points, "New tokens for each call of the target", lambda value: f"{value:g}")
    label_points(left, labels["left"])
    label_points(right, labels["right"])
    _legend(left)


def _scale(axes: Axes, points: Sequence[float], title: str, words: Callable[[float], str]) -> None:
    panel_title(axes, title)
    log_axis(axes.xaxis, points[0] / 1.12, points[-1] * 1.12, ticks=list(points), words=lambda value: f"{value:.0f}")
    axes.set_xlabel("drafts a round, γ")
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(lambda value, _: words(value))


def _legend(axes: Axes) -> None:
    from matplotlib.lines import Line2D

    kinds = (
        ("measured", {"marker": "o"}),
        ("closed form", {"linestyle": DASHED, "linewidth": 1.3}),
        ("with the measured verification", {"linestyle": DOTTED, "linewidth": 1.3}),
    )
    handles = [Line2D([], [], color="#555555", label=label, **style) for label, style in kinds]
    low, high = axes.get_ylim()
    axes.set_ylim(low, high * 1.32)  # room for the legend above the lines
    axes.legend(handles=handles, loc="upper left", frameon=False, fontsize=8.5, borderaxespad=0.1)
