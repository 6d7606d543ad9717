"""Gradient norms before and after clipping, with an injected spike, and the same run without clipping."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.report.axes import decades, label_points, log_axis, panel_title
from harness.report.formatting import decimal
from harness.report.json_values import as_float
from harness.report.lessons.curves import SECTION, caption, colours, linear_axis, loss_axis, step_axis
from harness.report.lessons.training_runs import LessonRuns, TrainingRun
from harness.report.markdown import embed, table
from harness.report.plot import COLOURS, GREY, WRONG, Canvas, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = "clipping"
AROUND = 2  # steps before and after the spike that the table shows
BEFORE, AFTER = 20, 60  # and the right panel


def clipped_run(found: LessonRuns) -> TrainingRun | None:
    """Return the run that was clipped and has norms; None if there is none."""
    runs = [run for run in found.runs if run.lesson == LESSON and norms(run)]
    return next((run for run in runs if limit(run)), None)


def norms(run: TrainingRun) -> list[tuple[int, float, float, float | None]]:
    """Return (step, norm, norm after clipping, cosine or None) of the steps that have both norms."""
    return [
        (int(step), norm, after, cosine)
        for step, norm, after, cosine in run.clipping
        if step is not None and norm is not None and after is not None
    ]


def limit(run: TrainingRun) -> float:
    """Return the largest norm that the run allowed; 0 if it did not clip."""
    return as_float(run.settings.get("clip")) or 0.0


def spike_of(run: TrainingRun) -> tuple[int, float, float, float | None]:
    """Return the step of the injected spike, or the one with the largest norm."""
    rows = norms(run)
    injected = as_float(run.settings.get("inject_spike_at"))
    return next((row for row in rows if row[0] == injected), max(rows, key=lambda row: row[1]))


def plots(found: LessonRuns) -> list[Plot]:
    """Return the figure of the norms and of the losses beside the unclipped run."""
    run = clipped_run(found)
    if run is None:
        return []
    return [
        Plot(
            section=SECTION,
            name="lessons-clipping",
            headline=headline(run),
            description=(
                "Left: the global norm of the gradient before clipping, and after it, on a logarithmic axis; the "
                "dashed line is the limit. At the ring the batch was one token repeated. Right: the loss around it, of "
                "the same run with and without clipping."
            ),
            caption=caption(found),
            height=3.6,
            draw=partial(draw, run, found.arms(LESSON)),
        )
    ]


def headline(run: TrainingRun) -> str:
    """Return the usual norms, the spike, what clipping made of it, and its direction."""
    rows = norms(run)
    step, norm, after, cosine = spike_of(run)
    others = sorted(row[1] for row in rows if row[0] != step)
    usual = (
        f"Norms are usually {decimal(quantile(others, 0.1), 2)} to {decimal(quantile(others, 0.9), 2)}; "
        if others
        else ""
    )
    kept = f", its direction kept (cosine {cosine:.6f})" if cosine is not None else ""
    return f"{usual}the injected spike of {decimal(norm, 3)} is clipped to {decimal(after, 3)}{kept}"


def quantile(ordered: Sequence[float], share: float) -> float:
    """Return the value below which about that share of the ordered values lies."""
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))]


def draw(run: TrainingRun, arms: dict[str, list[TrainingRun]], canvas: Canvas) -> None:
    """Draw the norms at the left and the losses at the right."""
    room = 0.3 + 0.075 * max(len(arm) for arm in arms)
    left, right = canvas.panels([0.95, room], left=0.55)
    draw_norms(left, run)
    draw_losses(right, arms, at=spike_of(run)[0])


def draw_losses(axes: Axes, arms: dict[str, list[TrainingRun]], *, at: int) -> None:
    """Draw the loss of each arm around the spike, whose own loss leaves the axis."""
    panel_title(axes, "loss of training around the spike")
    palette = colours(list(arms))
    lines = {
        arm: [(step, loss) for step, loss in runs[0].losses if at - BEFORE <= step <= at + AFTER]
        for arm, runs in arms.items()
    }
    usual = [loss for line in lines.values() for step, loss in line if step != at] or [0.0, 1.0]
    loss_axis(axes, min(usual), max(usual))
    steps = [step for line in lines.values() for step, _ in line] or [0.0, 1.0]
    linear_axis(axes.xaxis, min(steps), max(steps), words=lambda value: f"{value:,.0f}")
    axes.set_xlabel("step")
    ends = []
    for arm, line in lines.items():
        if line:
            axes.plot(*zip(*line, strict=True), color=palette[arm], linewidth=1.2)
            ends.append((*line[-1], arm, palette[arm]))
    axes.axvline(at, color=WRONG, linestyle=(0, (3, 2)), linewidth=0.9)
    label_points(axes, ends)


def draw_norms(axes: Axes, run: TrainingRun) -> None:
    """Draw both norms over steps, a ring at the spike, a line at the limit."""
    rows = norms(run)
    panel_title(axes, "norm of the gradient")
    positive = [value for row in rows for value in row[1:3] if value > 0]
    low, high = min([*positive, limit(run)]) / 1.4, max(positive) * 1.6
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=lambda value: f"{value:g}")
    steps = [row[0] for row in rows]
    axes.plot(steps, [row[1] for row in rows], color=COLOURS[1], linewidth=1.2)
    axes.plot(steps, [row[2] for row in rows], color=COLOURS[0], linewidth=1.2)
    axes.axhline(limit(run), color=GREY, linestyle=(0, (3, 2)), linewidth=0.9)
    step, norm, _, _ = spike_of(run)
    axes.plot([step], [norm], "o", markersize=10, markerfacecolor="none", markeredgecolor=WRONG)
    step_axis(axes, [run])
    label_points(axes, [(steps[-1], rows[-1][1], "before", COLOURS[1]), (steps[-1], rows[-1][2], "after", COLOURS[0])])


def section(found: LessonRuns, drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield the figure, and the steps around the spike as a table."""
    for plot in drawn:
        yield from embed(plot)
    run = clipped_run(found)
    if run is None:
        return
    at = spike_of(run)[0]
    heads = ["step", "norm before", "norm after", "cosine of the two gradients"]
    rows = [
        [
            f"{step:,}" + (" (spike)" if step == at else ""),
            decimal(norm),
            decimal(after),
            f"{cosine:.8f}" if cosine is not None else "not clipped",
        ]
        for step, norm, after, cosine in norms(run)
        if abs(step - at) <= AROUND
    ]
    yield from table(heads, rows, right=heads)
    cosines = [row[3] for row in norms(run) if row[3] is not None]
    if cosines:
        yield from (
            f"{len(cosines)} of the {len(norms(run))} recorded steps were clipped. The smallest cosine between a "
            f"gradient and what clipping made of it is {min(cosines):.8f}.",
            "",
        )
