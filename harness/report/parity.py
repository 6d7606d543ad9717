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
    """The richest checks of the parity suite (of all suites where there is none), in the order of the run."""
    rich = [check for check in verify.checks if len(tables.comparisons(check)) >= FEWEST]
    rich = [check for check in rich if "parity" in str(check.get("suite"))] or rich
    kept = sorted(rich, key=lambda check: -len(tables.comparisons(check)))
    # One panel for each kind of check, and the largest model for each: the one with most components.
    kinds: dict[str, Row] = {}
    for check in kept:
        kinds.setdefault(str(check.get("check")), check)
    selected = [id(check) for check in list(kinds.values())[:MOST]]
    return [
        Panel(
            title=plain(f"{check.get('check')}  {parameters(tables.as_mapping(check.get('parameters')))}", longest=90),
            points=tuple(point(row) for row in tables.comparisons(check)),
        )
        for check in rich
        if id(check) in selected
    ]


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
    labels = []
    for precision, colour in (("float32", COLOURS[0]), ("float64", COLOURS[2])):
        draw_floors(axes, [getattr(p, precision.replace("float", "floor")) for p in panel.points])
        for index, p in enumerate(panel.points):
            draw_difference(axes, index, p, precision, colour, size=5.5 if len(panel.points) <= 40 else 2.8,
                            missing=high / 2, equal=equal)  # fmt: skip
        last = next((getattr(p, precision) for p in reversed(panel.points) if getattr(p, precision)), None)
        if last:
            labels.append((len(panel.points) - 0.5, last, precision, colour))
    beside(axes, labels)
    axes.grid(visible=False, axis="x")
    label_components(axes, [p.where for p in panel.points])
    panel_title(axes, f"{panel.title}: largest difference")


def limits(points: Sequence[Point]) -> tuple[float, float, float]:
    """Bounds of the y axis, and the height below them of the lane for differences that are exactly 0."""
    values = [v for p in points for v in (p.float32, p.float64, p.floor32, p.floor64) if v]
    low = 10 ** math.floor(math.log10(min(values, default=1e-16)) - 0.3)
    high = 10 ** math.ceil(math.log10(max(values, default=1e-16)) + 0.3)
    return low, high, low / (high / low) ** 0.1


def draw_floors(axes: Axes, floors: list[float | None]) -> None:
    """The noise floors as grey bars, the first of them labelled."""
    drawn = [(index, floor) for index, floor in enumerate(floors) if floor]
    for index, floor in drawn:
        axes.plot([index - 0.36, index + 0.36], [floor] * 2, color="#b9b9b9", linewidth=3.2, solid_capstyle="butt")
    if drawn:
        axes.annotate("noise floor", (drawn[0][0] - 0.36, drawn[0][1]), xytext=(0, 6), textcoords="offset points",
                      size=7.5, color=GREY)  # fmt: skip


def draw_difference(
    axes: Axes,
    index: int,
    p: Point,
    precision: str,
    colour: str,
    *,
    size: float,
    missing: float,
    equal: float,
) -> None:
    """A difference as a dot. A bug is vermilion: a ring for float32, a diamond in it for float64; NaN is a cross."""
    value = getattr(p, precision)
    wrong = p.verdict == "different" or value is None
    look: dict[str, Any] = {"marker": "o", "markersize": size, "color": colour, "zorder": 3, "linestyle": ""}
    if wrong:
        ring = precision == "float32"
        look |= {"color": WRONG, "marker": "o" if ring else "D", "zorder": 4}
        look |= {"markersize": size * 1.7, "markerfacecolor": "none"} if ring else {"markersize": size * 0.8}
    if value is None:
        look |= {"marker": "x", "markersize": size * 1.3}
    if value == 0:
        look |= {"markerfacecolor": "white"}
    axes.plot(index, missing if value is None else equal if value == 0 else value, **look)


def label_components(axes: Axes, names: list[str]) -> None:
    """Every component's name where there is room, otherwise the blocks' numbers at their first components."""
    names = [where.removeprefix("transformer.") for where in names]
    if len(names) <= 20:
        numbered = sum(where.startswith("block ") for where in names) > 1
        names = [where.removeprefix("block ") if numbered else where for where in names]
        slanted = sum(map(len, names)) > 110
        axes.set_xticks(range(len(names)), names, size=8.5, rotation=25 if slanted else 0,
                        ha="right" if slanted else "center")  # fmt: skip
        if numbered:
            axes.set_xlabel("block", color=GREY, size=8.5)
        return
    groups: dict[str, list[int]] = {}
    for index, where in enumerate(names):
        block = re.search(r"(?:block |\bh\.|layers?\.)(\d+)", where)
        groups.setdefault(block[1] if block else where.split(".")[0], []).append(index)
    kept: list[tuple[float, str]] = []
    for group, members in groups.items():
        middle = sum(members) / len(members)
        if not kept or (middle - kept[-1][0]) / len(names) > 0.006 * (len(kept[-1][1]) + len(group) + 1):
            kept.append((middle, group))
    axes.set_xticks([middle for middle, _ in kept], [group for _, group in kept], size=8.5)
    axes.set_xlabel("block", color=GREY, size=8.5)
