"""A mixture of experts: the share of a layer's tokens that each expert has, with and without the balance loss."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from harness.report.axes import label_points, panel_title
from harness.report.formatting import percent
from harness.report.lessons.curves import (
    SECTION,
    SMOOTHED,
    caption,
    colours,
    draw_arm,
    linear_axis,
    loss_axis,
    step_axis,
)
from harness.report.lessons.schedule import last_losses, mean_and_spread
from harness.report.lessons.training_runs import LessonRuns, TrainingRun
from harness.report.markdown import embed, escape, table
from harness.report.plot import COLOURS, Canvas, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = "experts"
LAST = 10  # of the recorded steps, whose mean is the share at the end
IDLE = 0.01  # of a layer's tokens: an expert with less is hardly used, where an even share of eight is 0.125
SHADES = (1.0, 0.62)  # of the colours, so that neighbouring areas differ


def plots(found: LessonRuns) -> list[Plot]:
    """Return the figure of the shares with and without the balance loss, and of the losses of all arms."""
    arms = {arm: runs for arm, runs in found.arms(LESSON).items() if runs[0].losses}
    routed = {arm: runs for arm, runs in arms.items() if runs[0].expert_shares}
    if not routed:
        return []
    return [
        Plot(
            section=SECTION,
            name="lessons-experts",
            headline=headline(arms, routed),
            description=(
                "First: the share of a layer's tokens that each expert has, stacked, for the first seed and the layer "
                f"that is least even at the end; dashed lines mark even shares. Last: the loss of training. {SMOOTHED}"
            ),
            caption=caption(found),
            height=3.6,
            draw=partial(draw, arms, routed),
        )
    ]


def headline(arms: Mapping[str, Sequence[TrainingRun]], routed: Mapping[str, Sequence[TrainingRun]]) -> str:
    """Return the share of the fullest expert of each arm at the end, and the losses."""
    parts = [f"{arm} {percent(fullest(runs))}" for arm, runs in routed.items()]
    losses = ", ".join(f"{arm} {mean_and_spread(last_losses(runs))}" for arm, runs in arms.items())
    return f"The fullest expert's share of a layer's tokens: {', '.join(parts)}. Loss at the end: {losses}"


def fullest(runs: Sequence[TrainingRun]) -> float:
    """Return the largest share of an expert at the end, the mean over layers and seeds."""
    return fmean(max(layer) for run in runs for layer in ends(run))


def idle(runs: Sequence[TrainingRun]) -> float:
    """Return how many experts of a layer have less than IDLE of its tokens at the end, a mean over layers and seeds."""
    return fmean(sum(share < IDLE for share in layer) for run in runs for layer in ends(run))


def ends(run: TrainingRun) -> list[list[float]]:
    """Return the mean shares of the last recorded steps, a list of experts for each layer."""
    last = [shares for _, shares, _ in run.expert_shares[-LAST:]]
    return [[fmean(values) for values in zip(*layer, strict=True)] for layer in zip(*last, strict=True)]


def draw(
    arms: Mapping[str, Sequence[TrainingRun]], routed: Mapping[str, Sequence[TrainingRun]], canvas: Canvas
) -> None:
    """Draw the stacked shares of each arm with experts, and the losses of all arms at the right."""
    room = 0.3 + 0.075 * max(len(arm) for arm in arms)
    *areas, right = canvas.panels([0.15] * len(routed) + [room], left=0.55)
    for axes, (arm, runs) in zip(areas, routed.items(), strict=True):
        draw_shares(axes, arm, runs[0])
    panel_title(right, "loss of training")
    every = [run for runs in arms.values() for run in runs]
    losses = [loss for run in every for _, loss in run.losses]
    loss_axis(right, min(losses), max(losses))
    palette, labels = colours(list(arms)), []
    for arm, runs in arms.items():
        drawn = draw_arm(right, [run.losses for run in runs], palette[arm])
        if drawn:
            labels.append((*drawn[-1], arm, palette[arm]))
    step_axis(right, every)
    label_points(right, labels)


def draw_shares(axes: Axes, arm: str, run: TrainingRun) -> None:
    """Stack the shares of the experts of the layer that is least even at the end; the lines mark even shares."""
    layer = max(range(len(ends(run))), key=lambda number: max(ends(run)[number]))
    steps = [step for step, _, _ in run.expert_shares]
    shares = list(zip(*(shares[layer] for _, shares, _ in run.expert_shares), strict=True))  # experts x steps
    names = [COLOURS[number % len(COLOURS)] for number in range(len(shares))]
    areas = axes.stackplot(steps, shares, colors=names, edgecolor="white", linewidth=0.4)
    for number, area in enumerate(areas):
        area.set_alpha(SHADES[number // len(COLOURS) % len(SHADES)])
    for number in range(1, len(shares)):
        axes.axhline(number / len(shares), color="white", linewidth=0.6, linestyle=(0, (4, 4)))
    axes.grid(visible=False)
    linear_axis(axes.yaxis, 0, 1, words=lambda value: f"{value:.0%}")
    axes.set_ylim(0, 1)
    step_axis(axes, [run])
    axes.set_xlim(min(steps), max(steps))
    panel_title(axes, f"share of tokens, {arm}")


def section(found: LessonRuns, drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield the figure, and a row for each arm."""
    for plot in drawn:
        yield from embed(plot)
    heads = ["parameters", "used by a token", "fullest expert", "experts below 1%", "balance loss", "loss at the end"]
    rows = []
    for arm, runs in found.arms(LESSON).items():
        counts = [runs[0].number(key) for key in ("parameters", "active_parameters")]
        cells = [f"{count:,.0f}" if count is not None else "" for count in counts]
        if runs[0].expert_shares:
            balance = [value for run in runs for _, _, value in run.expert_shares[-LAST:] if value is not None]
            cells += [percent(fullest(runs)), f"{idle(runs):.1f}", f"{fmean(balance):.2f}" if balance else ""]
        else:
            cells += ["", "", ""]
        rows.append([escape(arm), *cells, mean_and_spread(last_losses(runs))])
    if rows:
        yield from table(["arm", *heads], rows, right=heads)
