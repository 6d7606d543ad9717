"""The figure of the residual stream: its std after each block, by initialisation recipe."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.report import tables
from harness.report.figure import (
    COLOURS,
    GREY,
    INK,
    WRONG,
    Canvas,
    Plot,
    beside,
    decades,
    log_axis,
    panel_title,
    short,
)
from harness.report.run import Run, machine
from harness.report.wording import as_float, factor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMS = {"embedding": "From real embeddings", "normal": "From a normal stream, N(0, 0.8²)"}


@dataclass(frozen=True)
class Line:
    """One recipe in one stream: std by place, what theory says, and whether the check passed."""

    recipe: str
    places: tuple[str, ...]
    std: tuple[float, ...]
    predicted: dict[str, float]
    verdict: str

    @property
    def growth(self) -> float:
        """The last std over the first."""
        return self.std[-1] / self.std[0]


def plot(verify: Run) -> Plot | None:
    """The figure for the largest size that was measured; None where nothing was."""
    streams = lines(verify)
    if not streams:
        return None
    return Plot(
        section="activations",
        name="activations",
        finding=finding(streams),
        look=(
            "Each line is one initialisation recipe, from the stream's entry to the last block, with its prediction "
            "dashed. With a recipe that keeps the scale, the normal stream stays flat, and the embeddings' stream "
            "grows by what the blocks add and no more."
        ),
        caption=machine(verify),
        height=3.5,
        draw=partial(draw, streams),
    )


def lines(verify: Run) -> dict[str, list[Line]]:
    """Stream to its lines, at the size with the most places."""
    by_size: dict[str, dict[str, list[Line]]] = {}
    for size, stream, line in found(verify):
        by_size.setdefault(size, {}).setdefault(stream, []).append(line)
    deepest = max(
        by_size,
        key=lambda size: max(len(line.std) for s in by_size[size].values() for line in s),
        default=None,
    )
    if deepest is None:
        return {}
    order = {name: rank for rank, name in enumerate(STREAMS)}
    return dict(sorted(by_size[deepest].items(), key=lambda item: order.get(item[0], len(order)))[:2])


def found(verify: Run) -> Iterator[tuple[str, str, Line]]:
    """Size, stream and line of every activation check with at least two places above zero."""
    for check in verify.checks:
        if check.get("measure") != "activation_std":
            continue
        asked = tables.as_mapping(check.get("parameters"))
        values = {place: as_float(std) for place, std in tables.as_mapping(check.get("value")).items()}
        std = {place: value for place, value in values.items() if value is not None and value > 0}
        predicted = {place: as_float(value) for place, value in tables.predictions(check).items()}
        if len(std) >= 2:
            line = Line(
                recipe=short(asked.get("recipe", "default")),
                places=tuple(std),
                std=tuple(std.values()),
                predicted={place: value for place, value in predicted.items() if value and value > 0},
                verdict=str(check.get("verdict")),
            )
            yield str(asked.get("size")), str(asked.get("stream", "embedding")), line


def finding(streams: dict[str, list[Line]]) -> str:
    """How much each recipe grows the stream, said of the stream that the lessons use where it is there."""
    name = "normal" if "normal" in streams else next(iter(streams))
    calm, *_, wild = sorted([*streams[name], *streams[name]], key=lambda line: line.growth)
    over = f"over {max(1, len(calm.places) - 1)} blocks"
    if calm.recipe == wild.recipe:
        return f"{calm.recipe}: the residual stream grows {factor(calm.growth)} {over}"
    grown = f"The residual stream grows {factor(calm.growth)} {over} with {calm.recipe}"
    return f"{grown}, {factor(wild.growth)} with {wild.recipe}"


def draw(streams: dict[str, list[Line]], canvas: Canvas) -> None:
    """One panel a stream, one line a recipe."""
    colours = {line.recipe: None for shown in streams.values() for line in shown}
    palette = {recipe: COLOURS[index % len(COLOURS)] for index, recipe in enumerate(colours)}
    panels = canvas.panels([1.3] * len(streams), left=0.55)
    for axes, (stream, shown) in zip(panels, streams.items(), strict=True):
        panel(axes, shown, palette)
        panel_title(axes, f"{STREAMS.get(stream, short(stream))}: std of activations")


def panel(axes: Axes, shown: list[Line], palette: dict[str, str]) -> None:
    """The lines of one stream."""
    places = max((line.places for line in shown), key=len)
    at = {place: index for index, place in enumerate(places)}
    everything = [value for line in shown for value in (*line.std, *line.predicted.values())]
    low, high = min(everything) / 1.25, max(everything) * 1.25
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=lambda value: f"{value:g}")
    axes.set_xlim(-0.4, len(places) - 0.6)
    ticks = [index for index in range(len(places)) if len(places) <= 7 or index % 2 == 0 or index == len(places) - 1]
    if len(places) > 26:
        ticks = [index for index in range(len(places)) if index % 6 == 0]
    axes.set_xticks(ticks, [name(places[index]) for index in ticks])
    axes.set_xlabel("after block")
    labels = []
    for line in shown:
        colour = palette[line.recipe]
        x = [at[place] for place in line.places if place in at]
        y = [std for place, std in zip(line.places, line.std, strict=True) if place in at]
        theory = [(at[place], value) for place, value in line.predicted.items() if place in at]
        if theory:
            axes.plot(*zip(*sorted(theory), strict=True), color=INK, linestyle=(0, (3, 2)), linewidth=0.9, zorder=3)
        axes.plot(x, y, color=colour, marker="o", markersize=3.6)
        wrong = line.verdict in {"fail", "error"}
        if wrong:
            axes.plot(x[-1], y[-1], marker="o", markersize=11, markerfacecolor="none", markeredgecolor=WRONG)
        text = f"{line.recipe} {y[-1]:#.3g}" + (" (fails)" if wrong else "")
        labels.append((x[-1], y[-1], text, WRONG if wrong else colour))
    beside(axes, labels)
    if any(line.predicted for line in shown):
        axes.text(0.015, 0.97, "- - -  predicted", transform=axes.transAxes, va="top", size=8, color=GREY)


def name(place: str) -> str:
    """A tick for a place: `emb.` for the embedding, the number of a block."""
    return place.removeprefix("block ") if place.startswith("block ") else place[:3] + "."
