"""The figure of the noise verdict: each component's difference beside its floor, in float32 and float64."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report import tables
from harness.report.figure import (
    COLOURS,
    GREY,
    WRONG,
    Canvas,
    Plot,
    beside,
    decades,
    log_axis,
    panel_title,
    power_of_ten,
    short,
)
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, decimal, parameters, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLOCK = re.compile(r"(?:block |\bh\.|layers?\.)(\d+)")
FEWEST, MOST = 4, 3  # comparisons that make a panel, panels in the figure


@dataclass(frozen=True)
class Point:
    """One component: differences and floors at both precisions; None where the number is not finite."""

    where: str
    float32: float | None
    float64: float | None
    floor32: float | None
    floor64: float | None
    verdict: str


@dataclass(frozen=True)
class Panel:
    """One check with the noise verdict, its components in execution order."""

    title: str
    points: tuple[Point, ...]


def plot(verify: Run) -> Plot | None:
    """The figure of the checks that compare most components; None where none compares several."""
    panels = chosen(verify)
    if not panels:
        return None
    return Plot(
        section="parity",
        name="parity",
        finding=finding(panels),
        look=(
            "Blue is the difference in float32, green in float64, each beside the noise floor that was measured for "
            "it (grey). Rounding falls by eight orders of magnitude from float32 to float64; a bug stays where it "
            "was, and is vermilion."
        ),
        caption=machine(verify),
        height=0.6 + 2.5 * len(panels),
        draw=partial(draw, panels),
    )


def chosen(verify: Run) -> list[Panel]:
    """The richest checks of the parity suite (of all suites where there is none), in the order of the run.

    One panel for each thing that is compared: the check that found a bug, else the one with most components.
    """
    rich = [check for check in verify.checks if len(tables.comparisons(check)) >= FEWEST and wants_agreement(check)]
    rich = [check for check in rich if "parity" in str(check.get("suite"))] or rich
    kinds: dict[str, Row] = {}
    for check in sorted(rich, key=lambda check: (check.get("verdict") != "fail", -len(tables.comparisons(check)))):
        compared = tables.as_mapping(check.get("parameters")).get("compare")
        kinds.setdefault(str(compared or check.get("check")), check)
    selected = {id(check) for check in list(kinds.values())[:MOST]}
    return [
        Panel(f"{title(check)}: largest difference", tuple(point(row) for row in tables.comparisons(check)))
        for check in rich
        if id(check) in selected
    ]


def wants_agreement(check: Row) -> bool:
    """Whether a difference is a bug of the subject; a check may also want one: that a known fault is caught."""
    return "noise" in tables.as_mapping(check.get("expected"))


def title(check: Row) -> str:
    """A check and its parameters."""
    asked = parameters(tables.as_mapping(check.get("parameters")))
    return plain(f"{check.get('check')} ({asked})" if asked else check.get("check"), longest=90)


def point(row: Row) -> Point:
    """A comparison as the figure needs it."""
    return Point(
        where=short(row.get("where")),
        **{key: as_float(row.get(key)) for key in ("float32", "float64", "floor32", "floor64")},
        verdict=str(row.get("verdict")),
    )


def finding(panels: list[Panel]) -> str:
    """How many components differ by more than rounding, and where the first of them is."""
    points = [point for panel in panels for point in panel.points]
    wrong = [point for point in points if point.verdict == "different"]
    if wrong:
        first = wrong[0]
        size = f", by {decimal(first.float64, 2)} in float64" if first.float64 is not None else ""
        return f"{len(wrong)} of {len(points)} differ by more than rounding; the first is {first.where}{size}"
    worst32, worst64 = (max(getattr(p, key) or 0.0 for p in points) for key in ("float32", "float64"))
    most = f"at most {decimal(worst32, 2)} in float32 and {decimal(worst64, 2)} in float64"
    return f"All {len(points)} comparisons agree up to rounding: {most}"


def draw(panels: list[Panel], canvas: Canvas) -> None:
    """The panels below one another."""
    width, height = canvas.figure.get_size_inches()
    room = (height - canvas.top - canvas.bottom) / len(panels)
    for index, panel in enumerate(panels):
        top = height - canvas.top - index * room - 0.32
        bottom = height - canvas.top - (index + 1) * room + 0.5
        axes = canvas.figure.add_axes((0.65 / width, bottom / height, 1 - 1.5 / width, (top - bottom) / height))
        draw_panel(axes, panel)


def draw_panel(axes: Axes, panel: Panel) -> None:
    """One check: components along x, differences and floors on a logarithmic y."""
    low, high, equal = limits(panel.points)
    exact = any(value == 0 for p in panel.points for value in (p.float32, p.float64))
    log_axis(axes.yaxis, equal / 3 if exact else low, high, ticks=decades(low, high), words=power_of_ten)
    if exact:
        ticks = list(axes.get_yticks())
        axes.set_yticks([*ticks, equal], [*map(power_of_ten, ticks), "equal"])
    axes.set_xlim(-0.7, len(panel.points) - 0.3)
    size = 5.5 if len(panel.points) <= 40 else 2.8
    labels = []
    for precision, colour in (("float32", COLOURS[0]), ("float64", COLOURS[2])):
        draw_floors(axes, [getattr(p, precision.replace("float", "floor")) for p in panel.points])
        draw_differences(axes, panel.points, precision, colour, size=size, missing=high / 2, equal=equal)
        last = next((getattr(p, precision) for p in reversed(panel.points) if getattr(p, precision)), None)
        if last:
            labels.append((len(panel.points) - 0.5, last, precision, colour))
    beside(axes, labels)
    axes.grid(visible=False, axis="x")
    label_components(axes, [p.where for p in panel.points])
    panel_title(axes, panel.title)


def limits(points: Sequence[Point]) -> tuple[float, float, float]:
    """Bounds of the y axis, and the height below them of the lane for differences that are exactly 0."""
    values = [v for p in points for v in (p.float32, p.float64, p.floor32, p.floor64) if v]
    low = 10 ** math.floor(math.log10(min(values, default=1e-16)) - 0.3)
    high = 10 ** math.ceil(math.log10(max(values, default=1e-16)) + 0.3)
    return low, high, low / (high / low) ** 0.1


def draw_floors(axes: Axes, floors: list[float | None]) -> None:
    """The noise floors as grey bars, the first of them labelled."""
    drawn = [(index, floor) for index, floor in enumerate(floors) if floor]
    if drawn:
        x, y = zip(*drawn, strict=True)
        axes.hlines(y, [i - 0.36 for i in x], [i + 0.36 for i in x], color="#b9b9b9", linewidth=3.2, zorder=2)
        axes.annotate(
            "noise floor", (x[0] - 0.36, y[0]), xytext=(0, 6), textcoords="offset points", size=7.5, color=GREY
        )


def draw_differences(
    axes: Axes, points: Sequence[Point], precision: str, colour: str, *, size: float, missing: float, equal: float
) -> None:
    """Differences as dots. A bug is vermilion: a ring for float32, a diamond in it for float64; NaN is a cross."""
    fine = {"marker": "o", "markersize": size, "color": colour}
    looks: dict[str, dict[str, Any]] = {
        "fine": fine,
        "equal": {**fine, "markerfacecolor": "white"},
        "missing": {"marker": "x", "markersize": size * 1.3, "color": WRONG},
        "wrong float32": {"marker": "o", "markersize": size * 1.7, "color": WRONG, "markerfacecolor": "none"},
        "wrong float64": {"marker": "D", "markersize": size * 0.8, "color": WRONG},
    }
    heights: dict[str, list[tuple[int, float]]] = {}
    for index, p in enumerate(points):
        value = getattr(p, precision)
        if value is None:
            heights.setdefault("missing", []).append((index, missing))
        elif value == 0:
            heights.setdefault("equal", []).append((index, equal))
        else:
            kind = f"wrong {precision}" if p.verdict == "different" else "fine"
            heights.setdefault(kind, []).append((index, value))
    for kind, drawn in heights.items():
        axes.plot(*zip(*drawn, strict=True), linestyle="", zorder=3 if kind == "fine" else 4, **looks[kind])


def label_components(axes: Axes, names: list[str]) -> None:
    """Every component's name where there is room, otherwise the blocks' numbers below their components."""
    names = [where.removeprefix("transformer.") for where in names]
    numbered = any(BLOCK.search(where) for where in names)
    if numbered:
        axes.set_xlabel("block", color=GREY, size=8.5)
    short_names = [where.removeprefix("block ") if numbered else where for where in names]
    if sum(map(len, short_names)) + len(names) <= 110 and len(set(short_names)) == len(names):
        axes.set_xticks(range(len(names)), short_names, size=8.5)
    elif numbered:
        label_blocks(axes, names)
    else:
        cut = [plain(where, longest=16) for where in names[:: max(1, len(names) // 20)]]
        ticks = range(0, len(names), max(1, len(names) // 20))
        axes.set_xticks(ticks, cut, size=7.5, rotation=20, ha="right")


def label_blocks(axes: Axes, names: list[str]) -> None:
    """The numbers of the blocks in even steps, and what comes before and after them, where it does not touch."""
    groups: dict[str, list[int]] = {}
    for index, where in enumerate(names):
        block = BLOCK.search(where)
        groups.setdefault(block[1] if block else plain(where.split(".")[0], longest=12), []).append(index)
    middles = {group: sum(members) / len(members) for group, members in groups.items()}
    step = next(step for step in (1, 2, 4, 6, 12, 24, 10**6) if len(groups) <= 20 * step)
    kept = [group for group in groups if group.isdigit() and int(group) % step == 0]
    for group in groups:
        near = 0.006 * (len(group) + 3) * len(names)
        if not group.isdigit() and all(abs(middles[group] - middles[other]) > near for other in kept):
            kept.append(group)
    axes.set_xticks([middles[group] for group in kept], kept, size=8.5)
