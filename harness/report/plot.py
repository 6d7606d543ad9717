"""A plot: its headline, description, caption and canvas, in the size and style that all plots share."""

from __future__ import annotations

import io
import textwrap
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from harness.report.point_values import name_remaining_points

if TYPE_CHECKING:  # matplotlib is slow to import, so it is imported when a plot is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.0  # inches; at 900 pixels wide, 10 point text is 14 pixels high

# Okabe & Ito, "Color Universal Design" (2008): distinguishable with any colour vision. Vermilion marks what is wrong.
INK, GREY, WRONG = "#222222", "#7a7a7a", "#D55E00"
COLOURS = ("#0072B2", "#E69F00", "#009E73", "#CC79A7", "#56B4E9", "#8a7a00")

STYLE: Any = {  # matplotlib types the names of its settings one by one
    "font.family": "DejaVu Sans",  # comes with matplotlib, so the plot is the same on every machine
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
    """One plot: the section it belongs to, its result as a headline, a description, and how it is drawn.

    `name` is the stem of its files, `height` is in inches without the title.
    """

    section: str
    name: str
    headline: str
    description: str
    caption: str
    height: float
    draw: Callable[[Canvas], None]
    warning: str = ""  # precedes the headline on the plot itself

    @property
    def title(self) -> str:
        """The headline, after the warning if there is one."""
        return f"{self.warning}: {self.headline}" if self.warning else self.headline

    def save(self, folder: Path) -> list[Path]:
        """Draw the plot into `folder` as PNG and SVG, and return the two paths."""
        paths = [folder / f"{self.name}.png", folder / f"{self.name}.svg"]
        with self.drawn() as figure:
            # No version and no date: the same records give the same file.
            figure.savefig(paths[0], dpi=200, metadata={"Software": None})
            figure.savefig(paths[1], metadata={"Date": None})
        return paths

    def svg(self) -> str:
        """Return the plot as SVG whose text is text and whose points carry their values, see `point_values`."""
        import matplotlib

        with self.drawn(titled=False) as figure, matplotlib.rc_context({"svg.fonttype": "none"}), io.StringIO() as file:
            name_remaining_points(figure)
            figure.savefig(file, format="svg", metadata={"Date": None}, transparent=True)
            return file.getvalue()

    @contextmanager
    def drawn(self, *, titled: bool = True) -> Iterator[Figure]:
        """Give the finished figure in the style of all plots; the page may show title and caption itself."""
        import matplotlib

        with matplotlib.rc_context(STYLE), warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="Glyph .* missing from font")  # a name in another script
            yield self.render(titled=titled)

    def render(self, *, titled: bool = True) -> Figure:
        """Return the finished figure, with title and caption unless the page shows them itself."""
        from matplotlib.figure import Figure

        if not titled:
            figure = Figure(figsize=(WIDTH, self.height - 0.45), facecolor="white")
            self.draw(Canvas(figure, top=0.1, bottom=0.06))
            return figure
        title = wrap_evenly(self.title, 90)
        height = self.height + 0.21 * len(title)
        figure = Figure(figsize=(WIDTH, height), facecolor="white")
        self.draw(Canvas(figure, top=0.25 + 0.21 * len(title), bottom=0.36))
        left = 0.12 / WIDTH
        figure.text(left, 1 - 0.12 / height, "\n".join(title), size=12, weight="bold", va="top", linespacing=1.25)
        caption = textwrap.fill(self.caption, 180)
        figure.text(left, 0.09 / height, caption, size=7.2, color=GREY, va="bottom", linespacing=1.3)
        return figure


def wrap_evenly(text: str, longest: int) -> list[str]:
    """Return the text in as few lines as `longest` allows, of about equal length, so that no word stands alone."""
    lines = textwrap.wrap(text, longest)
    widths = range(max(1, len(text) // max(1, len(lines))), longest + 1)
    return next((tried for width in widths if len(tried := textwrap.wrap(text, width)) <= len(lines)), lines)


@dataclass(frozen=True)
class Canvas:
    """The area of a figure between title and caption, which take `top` and `bottom` inches."""

    figure: Figure
    top: float
    bottom: float

    def panels(
        self, label_widths: Sequence[float], *, left: float = 0.75, above: float = 0.32, below: float = 0.5
    ) -> list[Axes]:
        """Return axes of equal width side by side, each with that many inches for labels at its right."""
        width, height = self.figure.get_size_inches()
        inner = (width - sum(left + labels for labels in label_widths)) / len(label_widths)
        low, high = (self.bottom + below) / height, 1 - (self.top + above) / height
        starts = [
            left + sum(left + inner + labels for labels in label_widths[:index]) for index in range(len(label_widths))
        ]
        return [self.figure.add_axes((at / width, low, inner / width, high - low)) for at in starts]

    def rows(self, count: int) -> list[Canvas]:
        """Return the same area cut into `count` of equal height, from the top."""
        height = float(self.figure.get_size_inches()[1])
        each = (height - self.top - self.bottom) / count
        return [
            Canvas(self.figure, self.top + index * each, self.bottom + (count - 1 - index) * each)
            for index in range(count)
        ]
