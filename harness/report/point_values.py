"""The values of a plot's points, as text that a picture shows under the pointer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from harness.report.formatting import decimal, plain

if TYPE_CHECKING:  # matplotlib is slow to import, so it is imported when a plot is drawn
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

# matplotlib writes the gid of an artist into its SVG as an id, and `inline_svg` reads the texts from there.
MARK = "values:"


def name_points(artist: Any, texts: Sequence[str]) -> None:
    """Give each point of a line, or a bar its one text: `flash at 4,096 tokens: 12.3 ± 0.2 ms`."""
    artist.set_gid(MARK + json.dumps([plain(text, longest=200) for text in texts]))


def name_remaining_points(figure: Figure) -> None:
    """Give the points that no plot has named their coordinates, after the panel's title and the line's label."""
    import numpy as np

    for axes in figure.axes:
        for line in axes.lines:
            if line.get_gid() is None and line.get_marker() not in (None, "", " ", "None"):
                name_points(line, [_coordinates(axes, line, *xy) for xy in np.asarray(line.get_xydata())])


def _coordinates(axes: Axes, line: Line2D, x: Any, y: Any) -> str:
    label = str(line.get_label())
    words = [axes.get_title(loc="left"), "" if label.startswith("_") else label]
    across = axes.get_xlabel() or "x"
    return ", ".join([*filter(None, words), f"{across} {decimal(float(x))}: {decimal(float(y))}"])
