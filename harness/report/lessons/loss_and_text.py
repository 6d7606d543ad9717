"""The loss from the first step to the end, with the text that the model wrote at chosen losses beside it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from functools import partial

from harness.report.axes import decades, label_points, log_axis, panel_title
from harness.report.formatting import plain, slug
from harness.report.lessons.curves import SECTION, SMOOTHED, caption, linear_axis, loss_axis, step_axis
from harness.report.lessons.training_runs import LessonRuns, Sample, TrainingRun, smooth
from harness.report.markdown import embed, escape, escape_line, table
from harness.report.plot import COLOURS, GREY, INK, Canvas, Plot

LESSON = "loss-and-text"
LOSSES = (4.0, 3.0, 2.5, 2.0)  # the lessons', after the loss of the first step
NEAR = 0.25  # a sample further than this from one of these losses is not shown for it
LONGEST = 400  # characters of a sample on the page


def runs_of(found: LessonRuns, lesson: str) -> list[TrainingRun]:
    """Return the runs of a lesson that have a curve."""
    return [run for run in found.runs if run.lesson == lesson and run.losses]


def plots(found: LessonRuns, lesson: str = LESSON) -> list[Plot]:
    """Return two figures for each run of the lesson: the loss with its samples, and training and validation parting."""
    drawn = []
    for number, run in enumerate(runs_of(found, lesson), start=1):
        ending = f"-{number}" if number > 1 else ""
        chosen = chosen_samples(run)
        drawn.append(
            Plot(
                section=SECTION,
                name=f"lessons-{slug(lesson)}{ending}",
                headline=headline(run, chosen),
                description=(
                    "The loss of each recorded step, and in front its moving average. The numbers are those of the "
                    "samples in the table."
                ),
                caption=caption(found),
                height=3.4,
                draw=partial(draw, run, chosen),
            )
        )
        if len(run.validation) > 1:
            drawn.append(
                Plot(
                    section=SECTION,
                    name=f"lessons-{slug(lesson)}-parting{ending}",
                    headline=parting_headline(run),
                    description=(
                        f"Training and validation of the same run. {SMOOTHED} A dot is a validation, on the same "
                        "windows each time."
                    ),
                    caption=caption(found),
                    height=3.4,
                    draw=partial(draw_parting, run),
                )
            )
    return drawn


def chosen_samples(run: TrainingRun) -> list[Sample]:
    """Return the first sample, and for each of LOSSES the nearest one, if it is near."""
    first = run.samples[:1]
    start = first[0].loss if first else 0.0
    found = list(first)
    for loss in LOSSES:
        if loss >= start or not run.samples:
            continue
        nearest = min(run.samples, key=lambda sample: abs(sample.loss - loss))
        if abs(nearest.loss - loss) <= NEAR and nearest not in found:
            found.append(nearest)
    return found


def headline(run: TrainingRun, chosen: Sequence[Sample]) -> str:
    """Return where the loss starts, beside the logarithm of the vocabulary, and where it ends."""
    first, last = run.number("first_loss"), run.number("last_loss")
    words = run.number("vocabulary_size")
    if first is None or last is None:
        return "The loss over the run"
    uniform = f", where ln {words:,.0f} is {math.log(words):.2f}" if words and words > 1 else ""
    return (
        f"The loss starts at {first:.2f}{uniform}, and ends at {last:.2f} after {run.number('steps') or 0:,.0f} steps"
    )


def parting_headline(run: TrainingRun) -> str:
    """Return where validation is lowest, how far it rises, and whether training falls on from there."""
    step, best = min(run.validation, key=lambda point: point[1])
    last_step, last = run.validation[-1]
    train = run.number("last_loss")
    if step >= last_step or train is None:
        return f"Validation is lowest at the end: {last:.2f} at step {last_step:,.0f}"
    there = training_at(run, step)
    text = f"Validation is lowest at step {step:,.0f} ({best:.2f}) and rises to {last:.2f}"
    if there is None or train >= there:
        return f"{text}, and training does not fall from there: {train:.2f} at the end"
    return f"{text}, while training falls from {there:.2f} to {train:.2f}: the model learns its text by heart"


def training_at(run: TrainingRun, step: float) -> float | None:
    """Return the loss of training at the recorded step that is nearest, smoothed; None if there is none."""
    return min(smooth(run.losses), key=lambda point: abs(point[0] - step), default=(step, None))[1]


def draw(run: TrainingRun, chosen: Sequence[Sample], canvas: Canvas) -> None:
    """Draw the loss over a logarithmic axis of steps, with numbered samples."""
    (axes,) = canvas.panels([0.4], left=0.55)
    panel_title(axes, "loss of training")
    shown = [(step + 1, loss) for step, loss in run.losses]  # the first step is 1: a logarithm has no 0
    axes.plot(*zip(*shown, strict=True), color=COLOURS[0], alpha=0.3, linewidth=0.9)
    axes.plot(*zip(*smooth(shown), strict=True), color=COLOURS[0])
    linear_axis(axes.yaxis, 0, 1.12 * max(loss for _, loss in shown), words=lambda value: f"{value:g}")
    high = max(2.0, shown[-1][0] * 1.1)
    log_axis(axes.xaxis, 0.9, high, ticks=decades(1, high), words=lambda value: f"{value:,.0f}")
    axes.set_xlabel("step, from 1")
    for number, sample in enumerate(chosen, start=1):
        point = (sample.step + 1, sample.loss)
        axes.plot(*point, "o", color=INK, markersize=5, zorder=4)
        axes.annotate(f"{number}", point, xytext=(5, 7), textcoords="offset points", weight="bold")


def draw_parting(run: TrainingRun, canvas: Canvas) -> None:
    """Draw training and validation over steps, with a line at the lowest validation."""
    (axes,) = canvas.panels([1.15], left=0.55)
    panel_title(axes, "loss")
    train = smooth(run.losses)
    axes.plot(*zip(*train, strict=True), color=COLOURS[0])
    axes.plot(*zip(*run.validation, strict=True), color=COLOURS[1], marker="o", markersize=3.5)
    best = min(run.validation, key=lambda point: point[1])
    axes.axvline(best[0], color=GREY, linestyle=(0, (3, 2)), linewidth=0.9)
    step_axis(axes, [run])
    every = [loss for _, loss in (*train, *run.validation)]
    loss_axis(axes, min(every), max(every))
    ends = [(*train[-1], "training", COLOURS[0]), (*run.validation[-1], "validation", COLOURS[1])]
    label_points(axes, ends)


def section(found: LessonRuns, drawn: Sequence[Plot], lesson: str = LESSON) -> Iterator[str]:
    """Yield the figures, and for each run the table of its samples."""
    for plot in drawn:
        yield from embed(plot)
    for run in runs_of(found, lesson):
        chosen = chosen_samples(run)
        rows = [
            [str(number), f"{sample.loss:.2f}", f"{sample.step:,}", sample_cell(sample.text)]
            for number, sample in enumerate(chosen, start=1)
        ]
        yield from table(["", "loss", "step", "text"], rows, right=["loss", "step"])
        not_shown = [f"{loss:g}" for loss in LOSSES if not any(abs(s.loss - loss) <= NEAR for s in chosen)]
        if not_shown and chosen:
            yield from (f"No sample of {escape(run.arm)} was taken near a loss of {', '.join(not_shown)}.", "")


def sample_cell(text: str) -> str:
    """Return a sample as a cell of a table: escaped, a line break where the text has one, cut at LONGEST characters."""
    lines = [escape_line(plain(line)) for line in text[:LONGEST].strip("\n").split("\n")]
    return "<br>".join(lines) + ("…" if len(text) > LONGEST else "")
