"""The noise verdict: each component's difference and floor, in float32 and float64, as section and plot."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from harness.core.record_files import Row
from harness.report.axes import decades, label_points, log_axis, panel_title, power_of_ten
from harness.report.blocks import Cell
from harness.report.formatting import decimal, parameters, plain, short_name
from harness.report.json_values import as_float, as_mapping
from harness.report.markdown import LONGEST_TABLE, code, embed, escape, link_to_all_rows, missing, table
from harness.report.plot import COLOURS, GREY, WRONG, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance
from harness.report.verifications.check_rows import differences
from harness.report.verifications.failures import anchor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "pytest verifications/"
BLOCK = re.compile(r"(?:block |\bh\.|layers?\.)(\d+)")
FEWEST, MOST = 4, 3  # differences in a panel at least, panels in the plot at most


@dataclass(frozen=True)
class Point:
    """One component: differences and floors at both precisions; None for a number that is not finite."""

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


def section(run: RunRecords, drawn: list[Plot]) -> Iterator[str]:
    """Yield the plot, and a table of the worst difference of every check with a noise verdict."""
    yield from ("## Rounding or a bug", "")
    judged = [check for check in run.checks if differences(check)]
    if not judged:
        yield from missing("Nothing was compared in float32 and float64 in this run", COMMAND)
        return
    for plot in drawn:
        yield from embed(plot)
    numeric = ["float32 / floor", "float64 / floor"]
    heads = ["check", "parameters", "compared", "verdict", "worst at", *numeric]
    yield from table(
        heads,
        [cells(check) for check in judged],
        right=["compared", *numeric],
        ids=[anchor(check, "parity") for check in judged],
        most=LONGEST_TABLE,
    )
    yield from link_to_all_rows(len(judged), "parity", "Every component with its floors")


def cells(check: Row) -> list[str]:
    """Return a check as a row of the table."""
    compared = differences(check)
    worst = max(compared, key=badness)
    verdict = escape(worst.get("verdict"))
    if verdict not in {"equal", "rounding"}:
        # A check may expect a difference, for example that a known fault is caught.
        verdict = f"{verdict}, as expected" if check.get("verdict") == "pass" else f"**{verdict}**"
    return [
        code(f"{check.get('suite')}/{check.get('check')}"),
        escape(parameters(as_mapping(check.get("parameters"))), 120),
        str(len(compared)),
        verdict,
        escape(worst.get("where"), 60),
        *(
            Cell(
                f"{two_digits(worst.get(f'float{bits}'))} / {two_digits(worst.get(f'floor{bits}'))}",
                as_float(worst.get(f"float{bits}")),
            )
            for bits in (32, 64)
        ),
    ]


def badness(row: Row) -> tuple[int, float]:
    """Return the sort key of differences: the verdict, then the float64 difference in floors; NaN is the worst."""
    rank = {"equal": 0, "rounding": 1}.get(str(row.get("verdict")), 2)
    difference, floor = as_float(row.get("float64")), as_float(row.get("floor64"))
    return rank, float("inf") if difference is None else difference / floor if floor else difference


def two_digits(value: object) -> str:
    """Return a difference at two digits."""
    return decimal(float(value), 2) if isinstance(value, int | float) else "–"


def plot(verify: RunRecords) -> Plot | None:
    """Return the plot of the checks that compare most components; None if no check compares several."""
    panels = panels_of(verify)
    if not panels:
        return None
    return Plot(
        section="parity",
        name="parity",
        headline=headline(panels),
        description=(
            "Blue is the difference in float32, green in float64; grey is the noise floor measured for each. "
            "Rounding falls by eight orders of magnitude from float32 to float64; a bug does not, and is vermilion."
        ),
        caption=provenance(verify),
        height=0.6 + 2.5 * len(panels),
        draw=partial(draw, panels),
    )


def panels_of(verify: RunRecords) -> list[Panel]:
    """Return the checks of the parity suite with most components (of all suites if it has none), in the run's order.

    There is one panel for each kind of comparison (blocks, gradients): the check that found a bug, otherwise the one
    with most components.
    """
    large = [check for check in verify.checks if len(differences(check)) >= FEWEST and expects_agreement(check)]
    large = [check for check in large if "parity" in str(check.get("suite"))] or large
    kinds: dict[str, Row] = {}
    for check in sorted(large, key=lambda check: (check.get("verdict") != "fail", -len(differences(check)))):
        compared = as_mapping(check.get("parameters")).get("compare")
        kinds.setdefault(str(compared or check.get("check")), check)
    selected = {id(check) for check in list(kinds.values())[:MOST]}
    return [
        Panel(f"{title(check)}: largest difference", tuple(point(row) for row in differences(check)))
        for check in large
        if id(check) in selected
    ]


def expects_agreement(check: Row) -> bool:
    """Return True if a difference is a bug of the subject; a check may also expect one, for a known fault."""
    return "noise" in as_mapping(check.get("expected"))


def title(check: Row) -> str:
    """Return a check and its parameters."""
    with_parameters = parameters(as_mapping(check.get("parameters")))
    return plain(f"{check.get('check')} ({with_parameters})" if with_parameters else check.get("check"), longest=90)


def point(row: Row) -> Point:
    """Return a difference as a point of the plot."""
    return Point(
        where=short_name(row.get("where")),
        **{key: as_float(row.get(key)) for key in ("float32", "float64", "floor32", "floor64")},
        verdict=str(row.get("verdict")),
    )


def headline(panels: list[Panel]) -> str:
    """Return how many components differ by more than rounding, and where the first of them is."""
    points = [point for panel in panels for point in panel.points]
    wrong = [point for point in points if point.verdict == "different"]
    if wrong:
        first = wrong[0]
        size = f", by {decimal(first.float64, 2)} in float64" if first.float64 is not None else ""
        return (
            f"{len(wrong)} of {len(points)} components differ by more than rounding; the first is {first.where}{size}"
        )
    worst32, worst64 = (max(getattr(p, key) or 0.0 for p in points) for key in ("float32", "float64"))
    most = f"at most {decimal(worst32, 2)} in float32 and {decimal(worst64, 2)} in float64"
    return f"All {len(points)} comparisons agree up to rounding: {most}"


def draw(panels: list[Panel], canvas: Canvas) -> None:
    """Draw the panels below one another."""
    width, height = canvas.figure.get_size_inches()
    each = (height - canvas.top - canvas.bottom) / len(panels)
    for index, panel in enumerate(panels):
        top = height - canvas.top - index * each - 0.32
        bottom = height - canvas.top - (index + 1) * each + 0.5
        axes = canvas.figure.add_axes((0.65 / width, bottom / height, 1 - 1.5 / width, (top - bottom) / height))
        draw_panel(axes, panel)


def draw_panel(axes: Axes, panel: Panel) -> None:
    """Draw one check: components along x, differences and floors on a logarithmic y."""
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
    label_points(axes, labels)
    axes.grid(visible=False, axis="x")
    label_components(axes, [p.where for p in panel.points])
    panel_title(axes, panel.title)


def limits(points: Sequence[Point]) -> tuple[float, float, float]:
    """Return the bounds of the y axis, and the height below them for differences that are exactly 0."""
    values = [v for p in points for v in (p.float32, p.float64, p.floor32, p.floor64) if v]
    low = 10 ** math.floor(math.log10(min(values, default=1e-16)) - 0.3)
    high = 10 ** math.ceil(math.log10(max(values, default=1e-16)) + 0.3)
    return low, high, low / (high / low) ** 0.1


def draw_floors(axes: Axes, floors: list[float | None]) -> None:
    """Draw the noise floors as grey bars, the first of them labelled."""
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
    """Draw differences as dots. A bug is vermilion: a ring for float32, a diamond in it for float64; NaN is a cross."""
    fine = {"marker": "o", "markersize": size, "color": colour}
    styles: dict[str, dict[str, Any]] = {
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
        (line,) = axes.plot(*zip(*drawn, strict=True), linestyle="", zorder=3 if kind == "fine" else 4, **styles[kind])
        name_points(line, [point_text(points[index], precision) for index, _ in drawn])


def point_text(p: Point, precision: str) -> str:
    """Return the difference of a component in one precision, and its floor there."""
    value, floor = getattr(p, precision), getattr(p, precision.replace("float", "floor"))
    return f"{p.where}, {precision}: {two_digits(value)}, floor {two_digits(floor)} ({p.verdict})"


def label_components(axes: Axes, names: list[str]) -> None:
    """Write every component's name if there is room, otherwise the blocks' numbers below their components."""
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
    """Write the numbers of the blocks in even steps, and the names before and after them if they do not overlap."""
    groups: dict[str, list[int]] = {}
    for index, where in enumerate(names):
        block = BLOCK.search(where)
        groups.setdefault(block[1] if block else plain(where.split(".")[0], longest=12), []).append(index)
    middles = {group: sum(members) / len(members) for group, members in groups.items()}
    step = next(step for step in (1, 2, 4, 6, 12, 24, 10**6) if len(groups) <= 20 * step)
    labelled = [group for group in groups if group.isdigit() and int(group) % step == 0]
    for group in groups:
        near = 0.006 * (len(group) + 3) * len(names)
        if not group.isdigit() and all(abs(middles[group] - middles[other]) > near for other in labelled):
            labelled.append(group)
    axes.set_xticks([middles[group] for group in labelled], labelled, size=8.5)
