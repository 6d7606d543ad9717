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
from harness.report.run import Row, Run, machine
from harness.report.wording import as_float, factor

if TYPE_CHECKING:
    from matplotlib.axes import Axes

STREAMS = {"embedding": "From the embeddings", "normal": "From a normal stream, N(0, 0.8²)"}


@dataclass(frozen=True)
class StreamCurve:
    """One recipe in one stream: std by place, what theory says and how far from that the check lets it be."""

    recipe: str
    places: tuple[str, ...]
    std: tuple[float, ...]
    predicted: dict[str, float]
    reach: tuple[float, float] | None
    wrong: frozenset[str]
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
            "Each line is one initialisation recipe, from the stream's entry to the last block; its prediction is "
            "dashed, the band around that is what its check accepts. A recipe that keeps the scale leaves the normal "
            "stream flat."
        ),
        caption=machine(verify),
        height=3.5,
        draw=partial(draw, streams),
    )


def lines(verify: Run) -> dict[str, list[StreamCurve]]:
    """Stream to its lines, at the size with the most places."""
    by_size: dict[str, dict[str, list[StreamCurve]]] = {}
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


def found(verify: Run) -> Iterator[tuple[str, str, StreamCurve]]:
    """Size, stream and line of every activation check with at least two places above zero."""
    for check in verify.checks:
        if check.get("measure") != "activation_std":
            continue
        asked = tables.as_mapping(check.get("parameters"))
        std = drawable(tables.as_mapping(check.get("value")))
        if len(std) >= 2:
            line = StreamCurve(
                recipe=short(asked.get("recipe", "default")),
                places=tuple(std),
                std=tuple(std.values()),
                predicted=drawable(tables.predictions(check)),
                reach=reach(check),
                wrong=frozenset(tables.places(check)) if check.get("verdict") == "fail" else frozenset(),
                verdict=str(check.get("verdict")),
            )
            yield str(asked.get("size")), str(asked.get("stream", "embedding")), line


def drawable(values: Row) -> dict[str, float]:
    """The values that a logarithmic axis can show."""
    numbers = {place: as_float(value) for place, value in values.items()}
    return {place: value for place, value in numbers.items() if value is not None and 1e-99 < value < 1e99}


def reach(check: Row) -> tuple[float, float] | None:
    """How far from its prediction the check lets a value be: as a share of it, and absolutely."""
    near = tables.as_mapping(tables.as_mapping(check.get("expected")).get("near_predicted"))
    share, absolute = as_float(near.get("rel")) or 0.0, as_float(near.get("abs")) or 0.0
    return (share, absolute) if share or absolute else None


def finding(streams: dict[str, list[StreamCurve]]) -> str:
    """How much each recipe grows the stream, said of the stream that the lessons use where it is there."""
    name = "normal" if "normal" in streams else next(iter(streams))
    calm, *_, wild = sorted([*streams[name], *streams[name]], key=lambda line: line.growth)
    start = {"normal": "From N(0, 0.8²)", "embedding": "From the embeddings"}.get(name, short(name))
    grown = (
        f"{start} the stream grows {factor(calm.growth)} over {max(1, len(calm.places) - 1)} blocks with {calm.recipe}"
    )
    return grown if calm.recipe == wild.recipe else f"{grown}, {factor(wild.growth)} with {wild.recipe}"


def draw(streams: dict[str, list[StreamCurve]], canvas: Canvas) -> None:
    """One panel a stream, one line a recipe."""
    colours = {line.recipe: None for shown in streams.values() for line in shown}
    palette = {recipe: COLOURS[index % len(COLOURS)] for index, recipe in enumerate(colours)}
    longest = max(len(label(line)) for shown in streams.values() for line in shown)
    panels = canvas.panels([0.25 + 0.072 * longest] * len(streams), left=0.55)
    for axes, (stream, shown) in zip(panels, streams.items(), strict=True):
        panel(axes, shown, palette)
        panel_title(axes, f"{STREAMS.get(stream, short(stream))}: std of activations")


def label(line: StreamCurve) -> str:
    """What is written at the end of a line."""
    return f"{line.recipe} {line.std[-1]:#.3g}" + (" (fails)" if line.wrong else "")


def panel(axes: Axes, shown: list[StreamCurve], palette: dict[str, str]) -> None:
    """The lines of one stream."""
    places = max((line.places for line in shown), key=len)
    at = {place: index for index, place in enumerate(places)}
    everything = [value for line in shown for value in (*line.std, *line.predicted.values())]
    low, high = min(everything) / 1.35, max(everything) * 1.35
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=lambda value: f"{value:g}")
    axes.set_xlim(-0.4, len(places) - 0.6)
    ticks = [index for index in range(len(places)) if len(places) <= 7 or index % 2 == 0 or index == len(places) - 1]
    if len(places) > 26:
        ticks = [index for index in range(len(places)) if index % 6 == 0]
    axes.set_xticks(ticks, [name(places[index]) for index in ticks])
    axes.set_xlabel("after block")
    for line in shown:
        draw_line(axes, line, at, palette[line.recipe])
    ends = [
        (len(line.std) - 1.0, line.std[-1], label(line), WRONG if line.wrong else palette[line.recipe])
        for line in shown
    ]
    beside(axes, ends)
    if any(line.predicted for line in shown):
        axes.text(0.015, 0.97, "- - -  predicted", transform=axes.transAxes, va="top", size=8, color=GREY)


def draw_line(axes: Axes, line: StreamCurve, at: dict[str, int], colour: str) -> None:
    """One recipe: its std, its prediction, the band that its check accepts, and rings where it failed."""
    theory = [(at[place], value) for place, value in line.predicted.items() if place in at]
    if theory:
        x, y = zip(*sorted(theory), strict=True)
        axes.plot(x, y, color=INK, linestyle=(0, (3, 2)), linewidth=0.9, zorder=3)
        if line.reach:
            share, absolute = line.reach
            low = [max(value - value * share - absolute, 1e-99) for value in y]
            high = [value + value * share + absolute for value in y]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    places = [place for place in line.places if place in at]
    std = dict(zip(line.places, line.std, strict=True))
    axes.plot(
        [at[place] for place in places], [std[place] for place in places], color=colour, marker="o", markersize=3.6
    )
    wrong = [place for place in places if place in line.wrong]
    axes.plot([at[place] for place in wrong], [std[place] for place in wrong], linestyle="", marker="o", markersize=10,
              markerfacecolor="none", markeredgecolor=WRONG)  # fmt: skip


def name(place: str) -> str:
    """A tick for a place: `emb.` for the embedding, the number of a block."""
    return place.removeprefix("block ") if place.startswith("block ") else place[:3] + "."
