"""Activations at initialisation: the std of the residual stream after each block, by recipe, as section and plot."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from harness.core.record_files import Row
from harness.report.axes import decades, label_points, log_axis, panel_title
from harness.report.blocks import Beside
from harness.report.formatting import factor, number, short_name
from harness.report.json_values import as_float, as_mapping
from harness.report.markdown import csv_link, embed, escape, missing, table
from harness.report.plot import COLOURS, GREY, INK, WRONG, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance
from harness.report.verifications.check_rows import places, predictions

if TYPE_CHECKING:
    from matplotlib.axes import Axes

COMMAND = "pytest verifications/"
STREAMS = {"embedding": "From the embeddings", "normal": "From a normal stream, N(0, 0.8²)"}


@dataclass(frozen=True)
class StreamCurve:
    """One recipe in one stream: std by place, its prediction, and the tolerance of the check.

    `tolerance` is relative and absolute; `wrong` are the places where the check failed.
    """

    recipe: str
    places: tuple[str, ...]
    std: tuple[float, ...]
    predicted: dict[str, float]
    tolerance: tuple[float, float] | None
    wrong: frozenset[str]
    verdict: str

    @property
    def growth(self) -> float:
        """The std at the last place over the std at the first."""
        return self.std[-1] / self.std[0]


def section(run: RunRecords, drawn: list[Plot]) -> Iterator[str]:
    """Yield a table of the std by stream and recipe, at entry, at the end and as predicted, and the plot."""
    yield from ("## Activations at initialisation", "")
    rows = []
    for stream, curves in curves_by_stream(run).items():
        for curve in curves:
            predicted = curve.predicted.get(curve.places[-1])
            numbers = [number(curve.std[0]), number(curve.std[-1]), number(predicted) if predicted else ""]
            title = escape(STREAMS.get(stream, stream))
            rows.append([title, escape(curve.recipe), *numbers, factor(curve.growth), escape(curve.verdict)])
    if not rows:
        yield from missing("No activations were measured in this run", COMMAND)
        return
    for plot in drawn:
        yield from embed(plot)
    numeric = ["std at entry", "std at the end", "predicted", "growth"]
    yield from table(["stream", "recipe", *numeric, "verdict"], rows, right=numeric)
    yield from (Beside(f"Every block: {csv_link('activations')}."), "")


def plot(verify: RunRecords) -> Plot | None:
    """Return the plot for the largest size that was measured; None if nothing was."""
    streams = curves_by_stream(verify)
    if not streams:
        return None
    return Plot(
        section="activations",
        name="activations",
        headline=headline(streams),
        description=(
            "Each line is one initialisation recipe, from the stream's entry to the last block. Its prediction is "
            "dashed; its check accepts the band around the prediction. The normal stream stays flat with a recipe that "
            "preserves the scale."
        ),
        caption=provenance(verify),
        height=3.5,
        draw=partial(draw, streams),
    )


def curves_by_stream(verify: RunRecords) -> dict[str, list[StreamCurve]]:
    """Return the curves of each stream, at the size with the most places."""
    by_size: dict[str, dict[str, list[StreamCurve]]] = {}
    for size, stream, line in measured_curves(verify):
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


def measured_curves(verify: RunRecords) -> Iterator[tuple[str, str, StreamCurve]]:
    """Yield size, stream and curve of every activation check with at least two places above zero."""
    for check in verify.checks:
        if check.get("measure") != "activation_std":
            continue
        built_with = as_mapping(check.get("parameters"))
        std = drawable(as_mapping(check.get("value")))
        if len(std) >= 2:
            line = StreamCurve(
                recipe=short_name(built_with.get("recipe", "default")),
                places=tuple(std),
                std=tuple(std.values()),
                predicted=drawable(predictions(check)),
                tolerance=tolerance(check),
                wrong=frozenset(places(check)) if check.get("verdict") == "fail" else frozenset(),
                verdict=str(check.get("verdict")),
            )
            yield str(built_with.get("size")), str(built_with.get("stream", "embedding")), line


def drawable(values: Row) -> dict[str, float]:
    """Return the values that a logarithmic axis can show."""
    numbers = {place: as_float(value) for place, value in values.items()}
    return {place: value for place, value in numbers.items() if value is not None and 1e-99 < value < 1e99}


def tolerance(check: Row) -> tuple[float, float] | None:
    """Return the relative and absolute tolerance of the check around its prediction; None if it has none."""
    near = as_mapping(as_mapping(check.get("expected")).get("near_predicted"))
    share, absolute = as_float(near.get("rel")) or 0.0, as_float(near.get("abs")) or 0.0
    return (share, absolute) if share or absolute else None


def headline(streams: dict[str, list[StreamCurve]]) -> str:
    """Return the least and the most growth over the recipes, of the normal stream if it was measured."""
    name = "normal" if "normal" in streams else next(iter(streams))
    calm, *_, wild = sorted([*streams[name], *streams[name]], key=lambda line: line.growth)
    start = {"normal": "N(0, 0.8²)", "embedding": "the embeddings"}.get(name, short_name(name))
    grown = f"{factor(calm.growth)} with {calm.recipe}"
    if calm.recipe != wild.recipe:
        grown += f" and {factor(wild.growth)} with {wild.recipe}"
    return f"The residual stream grows {grown} over {max(1, len(calm.places) - 1)} blocks, from {start}"


def draw(streams: dict[str, list[StreamCurve]], canvas: Canvas) -> None:
    """Draw one panel for each stream, with one line for each recipe."""
    colours = {line.recipe: None for shown in streams.values() for line in shown}
    palette = {recipe: COLOURS[index % len(COLOURS)] for index, recipe in enumerate(colours)}
    longest = max(len(label(line)) for shown in streams.values() for line in shown)
    panels = canvas.panels([0.25 + 0.072 * longest] * len(streams), left=0.55)
    for axes, (stream, shown) in zip(panels, streams.items(), strict=True):
        draw_panel(axes, shown, palette)
        panel_title(axes, f"{STREAMS.get(stream, short_name(stream))}: std of activations")


def label(line: StreamCurve) -> str:
    """Return the label at the end of a line."""
    return f"{line.recipe} {line.std[-1]:#.3g}" + (" (fails)" if line.wrong else "")


def draw_panel(axes: Axes, shown: list[StreamCurve], palette: dict[str, str]) -> None:
    """Draw the lines of one stream."""
    longest = max((line.places for line in shown), key=len)
    at = {place: index for index, place in enumerate(longest)}
    everything = [value for line in shown for value in (*line.std, *line.predicted.values())]
    low, high = min(everything) / 1.35, max(everything) * 1.35
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=lambda value: f"{value:g}")
    axes.set_xlim(-0.4, len(longest) - 0.6)
    ticks = [index for index in range(len(longest)) if len(longest) <= 7 or index % 2 == 0 or index == len(longest) - 1]
    if len(longest) > 26:
        ticks = [index for index in range(len(longest)) if index % 6 == 0]
    axes.set_xticks(ticks, [tick_label(longest[index]) for index in ticks])
    axes.set_xlabel("after block")
    for line in shown:
        draw_line(axes, line, at, palette[line.recipe])
    ends = [
        (len(line.std) - 1.0, line.std[-1], label(line), WRONG if line.wrong else palette[line.recipe])
        for line in shown
    ]
    label_points(axes, ends)
    if any(line.predicted for line in shown):
        axes.text(0.015, 0.97, "- - -  predicted", transform=axes.transAxes, va="top", size=8, color=GREY)


def draw_line(axes: Axes, line: StreamCurve, at: dict[str, int], colour: str) -> None:
    """Draw one recipe: its std, its prediction, the band that its check accepts, and rings where it failed."""
    theory = [(at[place], value) for place, value in line.predicted.items() if place in at]
    if theory:
        x, y = zip(*sorted(theory), strict=True)
        axes.plot(x, y, color=INK, linestyle=(0, (3, 2)), linewidth=0.9, zorder=3)
        if line.tolerance:
            share, absolute = line.tolerance
            low = [max(value - value * share - absolute, 1e-99) for value in y]
            high = [value + value * share + absolute for value in y]
            axes.fill_between(x, low, high, color=colour, alpha=0.18, linewidth=0)
    shown = [place for place in line.places if place in at]
    std = dict(zip(line.places, line.std, strict=True))
    measured = [std[place] for place in shown]
    (curve,) = axes.plot([at[place] for place in shown], measured, color=colour, marker="o", markersize=3.6)
    name_points(curve, [f"{line.recipe}, {place}: std {number(std[place])}" for place in shown])
    wrong = [place for place in shown if place in line.wrong]
    axes.plot([at[place] for place in wrong], [std[place] for place in wrong], linestyle="", marker="o", markersize=10,
              markerfacecolor="none", markeredgecolor=WRONG)  # fmt: skip


def tick_label(place: str) -> str:
    """Return the tick of a place: `emb.` for the embedding, otherwise the number of the block."""
    return place.removeprefix("block ") if place.startswith("block ") else place[:3] + "."
