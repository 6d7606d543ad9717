"""Axes of a plot: logarithmic scales with ticks in words, panel titles, and labels that do not overlap."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # matplotlib is slow to import, so it is imported when a plot is drawn
    from matplotlib.axes import Axes


def panel_title(axes: Axes, text: str) -> None:
    """Write what a panel shows above its top left corner, so that the y axis needs no label."""
    axes.set_title(text, loc="left", size=9.5, color="#444444", pad=9)


def log_axis(axis: Any, low: float, high: float, *, ticks: list[float], words: Callable[[float], str]) -> None:
    """Make an axis logarithmic from `low` to `high`, its ticks labelled by `words`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))


def decades(low: float, high: float, fewest: int = 4) -> list[float]:
    """Return round numbers between two bounds for a logarithmic axis: 1 10 100, else 1 3 10, else 1 2 5 10."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for step in (8, 6, 4, 3, 2):
        sparse = [10.0**e for e in exponents if e % step == 0 and low <= 10.0**e <= high]
        if len(sparse) >= fewest + 1:
            return sparse
    found: list[float] = []
    for leading in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
        found = [digit * 10.0**e for e in exponents for digit in leading if low <= digit * 10.0**e <= high]
        if len(found) >= fewest:
            break
    return found


def doublings(low: float, high: float, fewest: int = 4) -> list[float]:
    """Return powers of two between two bounds, as sparse as possible with at least `fewest` ticks."""
    exponents = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    found: list[float] = []
    for step in (10, 8, 6, 5, 4, 3, 2, 1):
        found = [2.0**e for e in exponents if e % step == 0 and low <= 2.0**e <= high]
        if len(found) >= fewest:
            break
    return found


def label_points(axes: Axes, labels: Sequence[tuple[float, float, str, str]], *, gap: float = 13.0) -> None:
    """Write each (x, y, text, colour) to the right of its point, moved up or down until no two overlap."""
    wanted = [axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi for x, y, _, _ in labels]
    for (x, y, text, colour), at, placed in zip(labels, wanted, spread_apart(wanted, gap), strict=True):
        axes.annotate(
            text, (x, y), xytext=(8, placed - at), textcoords="offset points", va="center",
            color=darker(colour), size=9, annotation_clip=False,
        )  # fmt: skip


def spread_apart(wanted: Sequence[float], gap: float) -> list[float]:
    """Return the nearest positions at least `gap` apart in the same order.

    Least squares by pooling adjacent violators: neighbours in the wrong order share the mean of their positions.
    """
    order = sorted(range(len(wanted)), key=lambda index: wanted[index])
    pools: list[list[float]] = []  # of `wanted - rank * gap`, which must not decrease
    for rank, index in enumerate(order):
        pools.append([wanted[index] - rank * gap])
        while len(pools) > 1 and mean(pools[-2]) > mean(pools[-1]):
            pools[-2:] = [pools[-2] + pools[-1]]
    level = [mean(pool) for pool in pools for _ in pool]
    placed = dict(zip(order, (value + rank * gap for rank, value in enumerate(level)), strict=True))
    return [placed[index] for index in range(len(wanted))]


def mean(values: Sequence[float]) -> float:
    """Return the arithmetic mean of one value or more."""
    return sum(values) / len(values)


def darker(colour: str, share: float = 0.28) -> str:
    """Return the colour mixed with black, so that text in it is easy to read on white."""
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * (1 - share)):02x}" for i in (1, 3, 5))


def power_of_ten(value: float) -> str:
    """Return a power of ten as `10⁻⁶`."""
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def seconds(value: float) -> str:
    """Return a tick of a time axis: `20 ms`."""
    scale, unit = next((s for s in ((1, "s"), (1e-3, "ms")) if value >= s[0] * 0.999), (1e-6, "µs"))
    return f"{value / scale:g} {unit}"
