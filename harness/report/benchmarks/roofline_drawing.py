"""How a roofline is drawn: ceilings as lines, arms as dots, and names that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report import formatting
from harness.report.axes import darker, decades, label_points, log_axis
from harness.report.benchmarks.ceilings import Ceiling
from harness.report.plot import COLOURS, GREY, INK, Canvas
from harness.report.point_values import name_points

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

MARKERS = "osD^vPX"  # with the colours, enough to distinguish some forty comparisons
NAMED = 8  # at most so many dots have their name beside them; all are in the tables
# Possible positions of a name, in points from its dot: beside, above or below it, or further off with a line to it.
DIAGONALS = ((24, 14), (24, -14), (-24, 14), (-24, -14))
NEAR = 10  # points; a name further off gets a line to its dot
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 2, "shrinkB": 3}
SIDES = ((7, 0), (-7, 0), (0, 6), (0, -6), *((far * x, far * y) for far in (1, 1.8) for x, y in DIAGONALS))


@dataclass(frozen=True)
class Dot:
    """One verified arm at one point: its arithmetic intensity and its speed."""

    comparison: str
    label: str
    intensity: float  # FLOP for each byte
    rate: float  # FLOP/s
    fraction: float | None
    regime: str


def draw(ceilings: list[Ceiling], dots: list[Dot], canvas: Canvas) -> None:
    """Draw the ceilings, the dots and a legend of topics."""
    (axes,) = canvas.panels([2.35], left=0.95, above=0.1)
    flat, slopes = products_of_each_type(ceilings), fastest_and_slowest_read(ceilings)
    left = min(0.1, *(dot.intensity / 2 for dot in dots))
    right = max(flat[0].rate / slopes[-1].rate * 4, *(dot.intensity * 2 for dot in dots))
    low = min(dot.rate for dot in dots) / 3
    high = max(flat[0].rate, *(dot.rate for dot in dots)) * 2.2
    log_axis(axes.xaxis, left, right, ticks=decades(left, right), words=lambda value: f"{value:g}")
    words = partial(formatting.si_prefixed, unit="FLOP/s")
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=words)
    axes.set_xlabel("arithmetic intensity (FLOP for each byte moved)")
    draw_ceilings(axes, flat, slopes, dots)
    marks = {name: (COLOURS[index % len(COLOURS)], MARKERS[(index // len(COLOURS)) % len(MARKERS)])
             for index, name in enumerate(dict.fromkeys(dot.comparison for dot in dots))}  # fmt: skip
    for dot in dots:
        colour, marker = marks[dot.comparison]
        face = "white" if dot.regime == "launch" else colour
        (mark,) = axes.plot(
            dot.intensity, dot.rate, marker, color=colour, markerfacecolor=face, markersize=6, alpha=0.9, zorder=4
        )
        share = f", {formatting.percent(dot.fraction)} of {dot.regime}" if dot.fraction else ""
        name_points(mark, [f"{dot.comparison}, {dot.label}: {formatting.si_prefixed(dot.rate, 'FLOP/s')}{share}"])
    name_dots(axes, dots, {name: colour for name, (colour, _) in marks.items()})
    handles = [axes.plot([], [], marker, color=colour, label=name)[0] for name, (colour, marker) in marks.items()]
    if any(dot.regime == "launch" for dot in dots):
        handles += axes.plot([], [], "o", color=INK, markerfacecolor="white", label="hollow: launches")
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(1.02, -0.02), frameon=False, handletextpad=0.1,
                fontsize=8.5 if len(marks) <= 16 else 7, borderpad=0, labelspacing=0.35,
                title="topic", alignment="left", title_fontproperties={"size": 8.5, "weight": "bold"})  # fmt: skip


def products_of_each_type(ceilings: list[Ceiling]) -> list[Ceiling]:
    """Return the highest ceiling of products in each dtype; the table has the others.

    The shape of the products ends the name of a ceiling: `gemm float32 head`.
    """
    by_type: dict[str, Ceiling] = {}
    for ceiling in ceilings:
        if ceiling.kind == "compute":
            dtype = " ".join(ceiling.name.split()[1:2])
            by_type.setdefault(dtype, replace(ceiling, name=f"products in {dtype}"))
    return list(by_type.values())


def fastest_and_slowest_read(ceilings: list[Ceiling]) -> list[Ceiling]:
    """Return the bandwidths between which those of the comparisons lie: a cache contains a part of fewer bytes.

    Without a measured read, the bandwidth of copying.
    """
    moving = [ceiling for ceiling in ceilings if ceiling.kind == "bandwidth"]
    reads = [ceiling for ceiling in moving if ceiling.name.startswith("read")] or moving[:1]
    return [reads[0], *([reads[-1]] if len(reads) > 1 else [])]


def draw_ceilings(axes: Axes, flat: list[Ceiling], slopes: list[Ceiling], dots: list[Dot]) -> None:
    """Draw flat lines from the steepest slope on, and slopes up to the highest flat line; the outermost are heavy."""
    left, right = axes.get_xlim()
    for ceiling in flat:
        start = ceiling.rate / slopes[0].rate
        axes.plot([start, right], [ceiling.rate] * 2, color=INK, linewidth=1.6 if ceiling is flat[0] else 1.0, zorder=2)
    for ceiling in reversed(slopes):
        ends, colour, width = (left, flat[0].rate / ceiling.rate), INK, 1.6
        if ceiling is not slopes[0]:
            colour, width = GREY, 1.0
        axes.plot(ends, [x * ceiling.rate for x in ends], color=colour, linewidth=width, zorder=2)
    label_points(axes, [(right, ceiling.rate, f"{ceiling.name}  {ceiling.text}", INK) for ceiling in flat])
    for ceiling, side in zip(slopes, ("bottom", *["top"] * len(slopes)), strict=False):
        name_slope(axes, ceiling, flat[0].rate, dots, side)


def name_slope(axes: Axes, ceiling: Ceiling, top: float, dots: list[Dot], side: str) -> None:
    """Write a slope's name along it, from the bottom, where it covers the fewest dots."""
    words = f"{ceiling.name}  {ceiling.text}"
    first = max(axes.get_xlim()[0], axes.get_ylim()[0] / ceiling.rate)
    ends = [(x, x * ceiling.rate) for x in (first, top / ceiling.rate)]
    (x0, y0), (x1, y1) = axes.transData.transform(ends)
    angle, length = math.atan2(y1 - y0, x1 - x0), 7.5 * len(words)
    across, up = math.cos(angle), math.sin(angle)

    def covered(share: float) -> int:
        """Return how many dots lie within a line's height of the name if it starts at this share of the slope."""
        found = 0
        for x, y in axes.transData.transform([(dot.intensity, dot.rate) for dot in dots]):
            dx, dy = x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0)
            found += -8 < dx * across + dy * up < length and abs(dy * across - dx * up) < 20
        return found

    start = first * (ends[1][0] / first) ** min((0.1, 0.2, 0.3, 0.45, 0.6), key=covered)
    axes.annotate(words, (start, start * ceiling.rate), rotation=math.degrees(angle), rotation_mode="anchor", va=side,
                  xytext=(0, 3 if side == "bottom" else -3), textcoords="offset points", size=9)  # fmt: skip


def name_dots(axes: Axes, dots: list[Dot], colours: dict[str, str]) -> None:
    """Write the names of the dots with free space beside them: the best of each arm, the nearest to a ceiling first."""
    best: dict[tuple[str, str], Dot] = {}
    for dot in sorted(dots, key=lambda dot: -(dot.fraction or 0.0)):
        best.setdefault((dot.comparison, dot.label), dot)
    foremost = {dot.comparison: dot for dot in reversed(best.values())}  # the best of each comparison comes first
    ranked = [*reversed(foremost.values()), *(dot for dot in best.values() if dot not in foremost.values())]
    taken = [text.get_window_extent() for text in axes.texts]
    taken += [square(*at) for at in axes.transData.transform([(dot.intensity, dot.rate) for dot in dots])]
    # In the order of drawing: flat ceilings from the highest, slopes up to the steepest.
    lines = [along(*axes.transData.transform(line.get_xydata())) for line in axes.lines[: -len(dots)]]
    named = 0
    for dot in ranked:
        if named == NAMED:
            return
        boxes = name_dot(axes, dot, darker(colours[dot.comparison]), taken, lines)
        named += bool(boxes)
        taken += boxes


def name_dot(axes: Axes, dot: Dot, colour: str, taken: Sequence[Bbox], lines: Sequence[list[Bbox]]) -> list[Bbox]:
    """Write a dot's name at the first free position, and return the boxes that it covers; none if there is no position.

    A name overlaps nothing in `taken` and none of the `lines` of the ceilings; the line from the dot to a name
    further off overlaps nothing in `taken` and neither of the outer ceilings.
    """
    inside, at = axes.get_window_extent(), axes.transData.transform((dot.intensity, dot.rate))
    outer, scale = [*taken, *lines[0], *lines[-1]], axes.figure.dpi / 72
    for right, above in SIDES:
        across = "left" if right > 0 else "right" if right < 0 else "center"
        up = "center" if right else "bottom" if above > 0 else "top"
        place: Any = {"xy": (dot.intensity, dot.rate), "xytext": (right, above), "textcoords": "offset points"}
        text = axes.annotate(dot.label, **place, ha=across, va=up, size=8, color=colour, zorder=5)
        box, far = text.get_window_extent(), abs(right) > NEAR
        line = along(at, (at[0] + right * scale, at[1] + above * scale), steps=24)[2:] if far else []
        clear = not box.count_overlaps([*taken, *(part for each in lines for part in each)])
        clear = clear and not any(part.count_overlaps(outer) for part in line)
        if clear and all(inside.contains(*corner) for corner in box.corners()):
            if far:
                axes.annotate("", **place, arrowprops={**LEADER, "color": colour})
            return [box, *line]
        text.remove()
    return []


def along(start: Any, end: Any, steps: int = 100) -> list[Bbox]:
    """Return small boxes of pixels that follow a line."""
    (x0, y0), (x1, y1) = start, end
    return [
        square(x0 + (x1 - x0) * step / (steps - 1), y0 + (y1 - y0) * step / (steps - 1), reach=2.0)
        for step in range(steps)
    ]


def square(across: float, up: float, reach: float = 4.0) -> Bbox:
    """Return the box of pixels that a mark there covers."""
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(across - reach, up - reach, across + reach, up + reach)
