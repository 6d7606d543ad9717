"""What all figures share: size, colours, axes that speak in words, labels beside their lines, captions."""

from __future__ import annotations

import math
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report import wording

if TYPE_CHECKING:  # matplotlib is imported when a figure is drawn, not before
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches; at 900 pixels wide, 10 point text is 14 pixels high

# Okabe & Ito, "Color Universal Design" (2008): told apart with any colour vision. Vermilion is what is wrong.
INK, GREY, WRONG = "#222222", "#7a7a7a", "#D55E00"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8a7a00")

STYLE: Any = {  # matplotlib types the names of its settings one by one
    "font.family": "DejaVu Sans",  # comes with matplotlib: the same figure on every machine
    "font.size": 9.5,
    "text.parse_math": False,  # a dollar sign in a subject's name is a dollar sign
    "axes.edgecolor": "#b0b0b0",
    "axes.linewidth": 0.8,
    "axes.labelcolor": INK,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e9e9e9",
    "grid.linewidth": 0.8,
    "text.color": INK,
    "xtick.color": "#555555",
    "ytick.color": "#555555",
    "xtick.major.size": 0,
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.8,
    "lines.markersize": 5,
    "lines.solid_capstyle": "round",
    "svg.hashsalt": "gpt-harness",  # the same records give the same file
}


@dataclass(frozen=True)
class Plot:
    """One figure: where it belongs, what it found (its title), what to look for in it, and how it is drawn."""

    section: str
    name: str
    finding: str
    look: str
    caption: str
    height: float
    draw: Callable[[Canvas], None]
    stamp: str = ""  # what must be read before the finding, on the figure itself

    @property
    def title(self) -> str:
        """The finding, and before it what it is worth."""
        return f"{self.stamp}: {self.finding}" if self.stamp else self.finding

    def save(self, folder: Path) -> list[Path]:
        """Draw the figure into `folder` as PNG and SVG."""
        import matplotlib

        paths = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script
            figure = self.painted()
            figure.savefig(paths[0], dpi=200, metadata={"Software": None})
            figure.savefig(paths[1], metadata={"Date": None})
        return paths

    def painted(self) -> Figure:
        """The finished figure, title and caption included."""
        from matplotlib.figure import Figure

        title = balanced(self.title, 90)
        height = self.height + 0.21 * len(title)
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        self.draw(Canvas(figure, top=0.25 + 0.21 * len(title), bottom=0.36))
        left = 0.12 / WIDTH
        figure.text(left, 1 - 0.12 / height, "\n".join(title), size=12, weight="bold", va="top", linespacing=1.25)
        caption = textwrap.fill(self.caption, 180)
        figure.text(left, 0.09 / height, caption, size=7.2, color=GREY, va="bottom", linespacing=1.3)
        return figure


def balanced(text: str, longest: int) -> list[str]:
    """The text in as few lines as `longest` allows, all about as long, so that no word stands alone."""
    lines = textwrap.wrap(text, longest)
    widths = range(max(1, len(text) // max(1, len(lines))), longest + 1)
    return next((tried for width in widths if len(tried := textwrap.wrap(text, width)) <= len(lines)), lines)


@dataclass(frozen=True)
class Canvas:
    """The area of a figure between title and caption; `top` and `bottom` are the inches kept for these."""

    figure: Figure
    top: float
    bottom: float

    def panels(
        self, rooms: Sequence[float], *, left: float = 0.75, above: float = 0.32, below: float = 0.5
    ) -> list[Axes]:
        """Axes of one width side by side, each with so many inches of room for labels at its right."""
        width, height = self.figure.get_size_inches()
        inner = (width - sum(left + room for room in rooms)) / len(rooms)
        low, high = (self.bottom + below) / height, 1 - (self.top + above) / height
        starts = [left + sum(left + inner + room for room in rooms[:index]) for index in range(len(rooms))]
        return [self.figure.add_axes((at / width, low, inner / width, high - low)) for at in starts]

    def rows(self, count: int) -> list[Canvas]:
        """The same area cut into so many of one height, from the top."""
        height = float(self.figure.get_size_inches()[1])
        each = (height - self.top - self.bottom) / count
        return [
            Canvas(self.figure, self.top + index * each, self.bottom + (count - 1 - index) * each)
            for index in range(count)
        ]


def panel_title(axes: Axes, text: str) -> None:
    """What a panel shows, above its top left corner, so that the y axis needs no label."""
    axes.set_title(text, loc="left", size=9.5, color="#444444", pad=9)


def log_axis(axis: Any, low: float, high: float, *, ticks: list[float], words: Callable[[float], str]) -> None:
    """A logarithmic axis from `low` to `high` whose ticks are spelled by `words`."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    axis.axes.set(**{f"{axis.axis_name}scale": "log", f"{axis.axis_name}lim": (low, high)})
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))


def decades(low: float, high: float, fewest: int = 4) -> list[float]:
    """Round numbers between two bounds for a logarithmic axis: 1 10 100, else 1 3 10, else 1 2 5 10."""
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
    """Powers of two between two bounds, as sparse as still gives `fewest` ticks."""
    exponents = range(math.floor(math.log2(low)), math.ceil(math.log2(high)) + 1)
    found: list[float] = []
    for step in (10, 8, 6, 5, 4, 3, 2, 1):
        found = [2.0**e for e in exponents if e % step == 0 and low <= 2.0**e <= high]
        if len(found) >= fewest:
            break
    return found


def beside(axes: Axes, labels: Sequence[tuple[float, float, str, str]], *, gap: float = 13.0) -> None:
    """Write (x, y, text, colour) to the right of its point, moved up or down until no two overlap."""
    wanted = [axes.transData.transform((x, y))[1] * 72 / axes.figure.dpi for x, y, _, _ in labels]
    for (x, y, text, colour), at, placed in zip(labels, wanted, apart(wanted, gap), strict=True):
        axes.annotate(
            text, (x, y), xytext=(8, placed - at), textcoords="offset points", va="center",
            color=darker(colour), size=9, annotation_clip=False,
        )  # fmt: skip


def apart(wanted: Sequence[float], gap: float) -> list[float]:
    """The nearest positions at least `gap` apart that keep their order: least squares, by pooling."""
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
    """The arithmetic mean of one value or more."""
    return sum(values) / len(values)


def darker(colour: str, share: float = 0.28) -> str:
    """The colour mixed with black, so that text in it is read easily on white."""
    return "#" + "".join(f"{int(int(colour[i : i + 2], 16) * (1 - share)):02x}" for i in (1, 3, 5))


def power_of_ten(value: float) -> str:
    """`10⁻⁶` for a power of ten."""
    return "10" + str(round(math.log10(value))).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def seconds(value: float) -> str:
    """A tick of a time axis: `20 ms`."""
    scale, unit = next((s for s in ((1, "s"), (1e-3, "ms")) if value >= s[0] * 0.999), (1e-6, "µs"))
    return f"{value / scale:g} {unit}"


def short(name: object) -> str:
    """A name of an arm or recipe, cut to what fits beside a line."""
    return wording.plain(name, longest=24)
