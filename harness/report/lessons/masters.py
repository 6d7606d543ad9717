"""Weights in float32, in bfloat16 over float32 masters, in bfloat16 alone: the loss, and the updates that are lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from statistics import fmean

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
from harness.report.plot import Canvas, Plot

LESSON = "masters"


def plots(found: LessonRuns) -> list[Plot]:
    """Return the figure of the losses and of the share of updates that are lost."""
    arms = {arm: runs for arm, runs in found.arms(LESSON).items() if runs[0].losses}
    if not arms:
        return []
    return [
        Plot(
            section=SECTION,
            name="lessons-masters",
            headline=headline(arms),
            description=(
                f"Left: the loss of training. {SMOOTHED} Right: the share of weights that a step left bitwise "
                "unchanged although their gradient was not zero."
            ),
            caption=caption(found),
            height=3.6,
            draw=partial(draw, arms),
        )
    ]


def headline(arms: dict[str, list[TrainingRun]]) -> str:
    """Return the loss at the end and the mean share of lost updates of each arm."""
    parts = []
    for arm, runs in arms.items():
        lost = mean_lost(runs)
        updates = f", {percent(lost)} of updates lost" if lost is not None else ""
        parts.append(f"{arm} {mean_and_spread(last_losses(runs))}{updates}")
    return f"Loss at the end: {'; '.join(parts)}"


def mean_lost(runs: Sequence[TrainingRun]) -> float | None:
    """Return the share of lost updates over all measured steps; None if none was measured."""
    shares = [share for run in runs for _, share in run.lost_updates]
    return fmean(shares) if shares else None


def draw(arms: dict[str, list[TrainingRun]], canvas: Canvas) -> None:
    """Draw the losses at the left and the lost updates at the right."""
    palette = colours(list(arms))
    room = 0.3 + 0.075 * max(len(arm) for arm in arms)
    left, right = canvas.panels([room, room], left=0.55)
    panel_title(left, "loss of training")
    panel_title(right, "updates that are lost")
    linear_axis(right.yaxis, 0, 1, words=lambda value: f"{value:.0%}")
    every = [run for runs in arms.values() for run in runs]
    losses = [loss for run in every for _, loss in run.losses]
    loss_axis(left, min(losses), max(losses))
    for axes, lines in (
        (left, {arm: [run.losses for run in runs] for arm, runs in arms.items()}),
        (right, {arm: [run.lost_updates for run in runs if run.lost_updates] for arm, runs in arms.items()}),
    ):
        ends = []
        for arm, points in lines.items():
            drawn = draw_arm(axes, points, palette[arm])
            if drawn:
                ends.append((*drawn[-1], arm, palette[arm]))
        step_axis(axes, every)
        label_points(axes, ends)


def section(found: LessonRuns, drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield the figure, and a row for each arm."""
    for plot in drawn:
        yield from embed(plot)
    heads = ["loss at the end", "best validation", "updates lost", "lost at the last step"]
    rows = []
    for arm, runs in found.arms(LESSON).items():
        best = [value for run in runs if (value := run.number("best_validation")) is not None]
        ends = [run.lost_updates[-1][1] for run in runs if run.lost_updates]
        lost = mean_lost(runs)
        cells = [mean_and_spread(last_losses(runs)), mean_and_spread(best)]
        cells += [percent(lost) if lost is not None else "", percent(fmean(ends)) if ends else ""]
        rows.append([escape(arm), *cells])
    if rows:
        yield from table(["weights", *heads], rows, right=heads)
