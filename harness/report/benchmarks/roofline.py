"""The roofline: what the machine was measured to allow, and how near every verified arm comes to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.report import tables, wording
from harness.report.figure import COLOURS, GREY, INK, Canvas, Plot, beside, darker, decades, log_axis, short
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, plain

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.transforms import Bbox

MARKERS = "osD^vPX"  # with the colours, enough to tell some forty comparisons apart
NAMED = 10  # dots that have their name beside them at most; all are in the tables
# Where a name may stand, in points from its dot: beside, above or below it, or further off with a line to it.
CORNERS = ((24, 14), (24, -14), (-24, 14), (-24, -14))
NEAR = 10  # points; a name further off gets a line to its dot
LEADER = {"arrowstyle": "-", "linewidth": 0.6, "shrinkA": 2, "shrinkB": 3}
SIDES = ((7, 0), (-7, 0), (0, 6), (0, -6), *((far * x, far * y) for far in (1, 1.8, 2.6, 4) for x, y in CORNERS))
UNITS = {"compute": "FLOP/s", "bandwidth": "B/s"}


@dataclass(frozen=True)
class Roof:
    """One ceiling of the machine over a run: the median of its measurements, and how far they spread."""

    name: str
    kind: str  # compute, bandwidth or launch
    rate: float  # FLOP/s, byte/s, or seconds a launch
    spread: float
    times: int

    @property
    def words(self) -> str:
        """`143 GFLOP/s`, `11.9 GB/s`, `9.8 µs`."""
        return wording.prefixed(self.rate, UNITS[self.kind]) if self.kind in UNITS else wording.timing(self.rate)


@dataclass(frozen=True)
class Dot:
    """One verified arm at one point: what it computes for each byte it moves, and how fast."""

    comparison: str
    label: str
    intensity: float  # FLOP for each byte
    rate: float  # FLOP/s
    fraction: float | None
    regime: str


def plots(bench: Run) -> list[Plot]:
    """One figure for each machine setting (device and threads) that has both ceilings and arms with known work."""
    settings: dict[tuple[str, str], list[Row]] = {}
    for comparison in bench.comparisons:
        if comparison.get("ceilings"):  # what older runs measured was not held against any
            settings.setdefault((str(comparison.get("device")), str(comparison.get("threads"))), []).append(comparison)
    found = []
    for setting, comparisons in settings.items():
        device, threads = (plain(value, longest=30) for value in setting)
        roofs, dots = roofs_of(comparisons), dots_of(comparisons)
        if not dots or {roof.kind for roof in roofs} < {"compute", "bandwidth"}:
            continue
        where = [*([device] if device != "None" else []), *([f"{threads} threads"] if threads != "None" else [])]
        lone = len(settings) == 1
        found.append(
            Plot(
                section="roofline",
                name="roofline" if lone else f"roofline-{tables.slug(' '.join(where))}",
                finding=finding(dots) + ("" if lone else f" ({', '.join(where)})"),
                look=(
                    "Every verified arm by what it computes for each byte that it has to move, and how fast; lines are "
                    "the ceilings measured in this run. Below the slope memory is the limit, below a flat line "
                    "arithmetic; a hollow mark is an arm that spends its time on launching operations."
                ),
                caption=machine(bench),
                height=5.2,
                draw=partial(draw, roofs, dots),
            )
        )
    return found


def roofs_of(comparisons: Sequence[Row]) -> list[Roof]:
    """The ceilings of these comparisons, each over all the times it was measured, the arithmetic ones first."""
    rates: dict[tuple[str, str], list[float]] = {}
    for row in tables.ceilings(Run(comparisons=tuple(comparisons))):
        if (rate := as_float(row["rate"])) and rate > 0:
            rates.setdefault((row["kind"], plain(row["ceiling"], longest=40)), []).append(rate)
    found = [
        Roof(name, kind, tables.middle(sorted(seen)) or 0.0, tables.spread(sorted(seen)) or 0.0, len(seen))
        for (kind, name), seen in rates.items()
    ]
    return sorted(found, key=lambda roof: (("compute", "bandwidth", "launch").index(roof.kind), -roof.rate))


def dots_of(comparisons: Sequence[Row]) -> list[Dot]:
    """Every verified arm of which FLOPs, bytes and time are known; twins are left out."""
    found = []
    for comparison in comparisons:
        for row in tables.arms(comparison):
            flops, moved, seconds = (as_float(row[key]) for key in ("flops", "moved_bytes", "median_seconds"))
            if flops and moved and seconds and not row["twin_of"] and min(flops, moved, seconds) > 0:
                found.append(
                    Dot(
                        comparison=plain(comparison.get("comparison"), longest=30),
                        label=f"{short(row['arm'])}, {plain(row['metric'], longest=24)}",
                        intensity=flops / moved,
                        rate=flops / seconds,
                        fraction=as_float(row["fraction"]),
                        regime=plain(row["regime"], longest=20),
                    )
                )
    return found


def finding(dots: Sequence[Dot]) -> str:
    """Who comes nearest to its ceiling, and what bounds how many.

    What was measured above it came from a time that moved more than its ceiling did, and is nobody's record.
    """
    known = [dot for dot in dots if dot.fraction is not None and dot.fraction <= 1 and dot.regime != "launch"]
    counts = {regime: sum(dot.regime == regime for dot in dots) for regime in ("compute", "bandwidth", "launch")}
    bound = ", ".join(f"{count} by {regime}" for regime, count in counts.items() if count)
    said = f"{len(dots):,} measurements" + (f", bound {bound}" if bound else "")
    if not known:
        return said
    best = max(known, key=lambda dot: dot.fraction or 0.0)
    return f"{said}; nearest to its ceiling: {best.label}, at {wording.share(best.fraction)} of {best.regime}"


def draw(roofs: list[Roof], dots: list[Dot], canvas: Canvas) -> None:
    """Roofs, dots and a legend of comparisons."""
    (axes,) = canvas.panels([2.35], left=0.95, above=0.1)
    flat, slopes = (outermost([roof for roof in roofs if roof.kind == kind]) for kind in ("compute", "bandwidth"))
    left = min(0.1, *(dot.intensity / 2 for dot in dots))
    right = max(flat[0].rate / slopes[-1].rate * 4, *(dot.intensity * 2 for dot in dots))
    low = min(dot.rate for dot in dots) / 3
    high = max(flat[0].rate, *(dot.rate for dot in dots)) * 2.2
    log_axis(axes.xaxis, left, right, ticks=decades(left, right), words=lambda value: f"{value:g}")
    words = partial(wording.prefixed, unit="FLOP/s")
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=words)
    axes.set_xlabel("arithmetic intensity (FLOP for each byte moved)")
    draw_roofs(axes, flat, slopes, dots)
    marks = {name: (COLOURS[index % len(COLOURS)], MARKERS[(index // len(COLOURS)) % len(MARKERS)])
             for index, name in enumerate(dict.fromkeys(dot.comparison for dot in dots))}  # fmt: skip
    for dot in dots:
        colour, marker = marks[dot.comparison]
        face = "white" if dot.regime == "launch" else colour
        axes.plot(
            dot.intensity, dot.rate, marker, color=colour, markerfacecolor=face, markersize=6, alpha=0.9, zorder=4
        )
    name_dots(axes, dots, {name: colour for name, (colour, _) in marks.items()})
    handles = [axes.plot([], [], marker, color=colour, label=name)[0] for name, (colour, marker) in marks.items()]
    if any(dot.regime == "launch" for dot in dots):
        handles += axes.plot([], [], "o", color=INK, markerfacecolor="white", label="hollow: launches")
    axes.legend(handles=handles, loc="lower left", bbox_to_anchor=(1.02, -0.02), frameon=False, handletextpad=0.1,
                fontsize=8.5 if len(marks) <= 16 else 7, borderpad=0, labelspacing=0.35)  # fmt: skip


def outermost(roofs: list[Roof]) -> list[Roof]:
    """The highest roof of each type of product, and of reading and copying; the others are in the table.

    A ceiling may have been measured for each shape of the products and for several amounts of bytes, which its name
    ends in: `gemm float32 head`, `read 512 MiB`.
    """
    by_type: dict[str, Roof] = {}
    for roof in roofs:
        name = " ".join(roof.name.split()[: 2 if roof.kind == "compute" else 1])
        by_type.setdefault(name, replace(roof, name=name))
    return list(by_type.values())


def draw_roofs(axes: Axes, flat: list[Roof], slopes: list[Roof], dots: list[Dot]) -> None:
    """Flat lines from the steepest slope on, slopes up to the highest flat line; the outermost are heavy."""
    left, right = axes.get_xlim()
    for roof in flat:
        start = roof.rate / slopes[0].rate
        axes.plot([start, right], [roof.rate] * 2, color=INK, linewidth=1.6 if roof is flat[0] else 1.0, zorder=2)
    for roof in reversed(slopes):
        ends, colour, width = (left, flat[0].rate / roof.rate), INK, 1.6
        if roof is not slopes[0]:
            colour, width = GREY, 1.0
        axes.plot(ends, [x * roof.rate for x in ends], color=colour, linewidth=width, zorder=2)
    beside(axes, [(right, roof.rate, f"{roof.name}  {roof.words}", INK) for roof in flat])
    for roof, side in zip(slopes, ("bottom", *["top"] * len(slopes)), strict=False):
        name_slope(axes, roof, flat[0].rate, dots, side)


def name_slope(axes: Axes, roof: Roof, top: float, dots: list[Dot], side: str) -> None:
    """Write a slope's name along it, from the bottom, where the fewest dots are in the way."""
    words = f"{roof.name}  {roof.words}"
    first = max(axes.get_xlim()[0], axes.get_ylim()[0] / roof.rate)
    ends = [(x, x * roof.rate) for x in (first, top / roof.rate)]
    (x0, y0), (x1, y1) = axes.transData.transform(ends)
    angle, length = math.atan2(y1 - y0, x1 - x0), 7.5 * len(words)
    across, up = math.cos(angle), math.sin(angle)

    def hidden(share: float) -> int:
        """How many dots lie within a line's height of the name, if it starts at this share of the slope."""
        found = 0
        for x, y in axes.transData.transform([(dot.intensity, dot.rate) for dot in dots]):
            dx, dy = x - x0 - share * (x1 - x0), y - y0 - share * (y1 - y0)
            found += -8 < dx * across + dy * up < length and abs(dy * across - dx * up) < 20
        return found

    start = first * (ends[1][0] / first) ** min((0.04, 0.15, 0.3, 0.45, 0.6), key=hidden)
    axes.annotate(words, (start, start * roof.rate), rotation=math.degrees(angle), rotation_mode="anchor", va=side,
                  xytext=(0, 3 if side == "bottom" else -3), textcoords="offset points", size=9)  # fmt: skip


def name_dots(axes: Axes, dots: list[Dot], colours: dict[str, str]) -> None:
    """Write the names of the dots that leave room for it: of each arm the best, the nearest to a ceiling first."""
    best: dict[tuple[str, str], Dot] = {}
    for dot in sorted(dots, key=lambda dot: -(dot.fraction or 0.0)):
        best.setdefault((dot.comparison, dot.label), dot)
    foremost = {dot.comparison: dot for dot in reversed(best.values())}  # each comparison's best comes before all else
    ranked = [*reversed(foremost.values()), *(dot for dot in best.values() if dot not in foremost.values())]
    taken = [text.get_window_extent() for text in axes.texts]
    taken += [square(*at) for at in axes.transData.transform([(dot.intensity, dot.rate) for dot in dots])]
    # In the order of drawing: flat roofs from the highest, slopes up to the steepest.
    lines = [along(*axes.transData.transform(line.get_xydata())) for line in axes.lines[: -len(dots)]]
    named = 0
    for dot in ranked:
        if named == NAMED:
            return
        boxes = name_dot(axes, dot, darker(colours[dot.comparison]), taken, lines)
        named += bool(boxes)
        taken += boxes


def name_dot(axes: Axes, dot: Dot, colour: str, taken: Sequence[Bbox], roofs: Sequence[list[Bbox]]) -> list[Bbox]:
    """Write a dot's name on the first side of it that is free, and say what that covers; nothing where none is.

    A name stays clear of all that is `taken` and of the `roofs`, the line to it of what is taken and the outer roofs.
    """
    inside, at = axes.get_window_extent(), axes.transData.transform((dot.intensity, dot.rate))
    outer, scale = [*taken, *roofs[0], *roofs[-1]], axes.figure.dpi / 72
    for right, above in SIDES:
        across = "left" if right > 0 else "right" if right < 0 else "center"
        up = "center" if right else "bottom" if above > 0 else "top"
        place: Any = {"xy": (dot.intensity, dot.rate), "xytext": (right, above), "textcoords": "offset points"}
        text = axes.annotate(dot.label, **place, ha=across, va=up, size=8, color=colour, zorder=5)
        box, far = text.get_window_extent(), abs(right) > NEAR
        line = along(at, (at[0] + right * scale, at[1] + above * scale), steps=24)[2:] if far else []
        clear = not box.count_overlaps([*taken, *(part for roof in roofs for part in roof)])
        clear = clear and not any(part.count_overlaps(outer) for part in line)
        if clear and all(inside.contains(*corner) for corner in box.corners()):
            if far:
                axes.annotate("", **place, arrowprops={**LEADER, "color": colour})
            return [box, *line]
        text.remove()
    return []


def along(start: Any, end: Any, steps: int = 100) -> list[Bbox]:
    """Small boxes of pixels that follow a line."""
    (x0, y0), (x1, y1) = start, end
    return [
        square(x0 + (x1 - x0) * step / (steps - 1), y0 + (y1 - y0) * step / (steps - 1), reach=2.0)
        for step in range(steps)
    ]


def square(across: float, up: float, reach: float = 4.0) -> Bbox:
    """The pixels that a mark there covers."""
    from matplotlib.transforms import Bbox

    return Bbox.from_extents(across - reach, up - reach, across + reach, up + reach)
