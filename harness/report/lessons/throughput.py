"""The speed of the runs: tokens a second over steps."""

from __future__ import annotations

from functools import partial

from harness.report.axes import decades, label_points, log_axis, panel_title
from harness.report.formatting import per_second, short_name
from harness.report.lessons.curves import SECTION, caption, colours, linear_axis
from harness.report.lessons.training_runs import LessonRuns, TrainingRun, smooth
from harness.report.plot import Canvas, Plot


def plots(found: LessonRuns) -> list[Plot]:
    """Return the figure of the first run of each lesson."""
    runs: dict[str, TrainingRun] = {}
    for run in found.runs:
        if len(run.speed) > 1 and all(speed > 0 for _, speed in run.speed):
            runs.setdefault(short_name(run.lesson), run)
    if not runs:
        return []
    return [
        Plot(
            section=SECTION,
            name="lessons-tokens-per-second",
            headline=headline(runs),
            description=(
                "The first run of each lesson, a moving average on a logarithmic axis. Runs share the machine with "
                "each other, so a dip is often another run that starts or validates."
            ),
            caption=caption(found),
            height=3.4,
            draw=partial(draw, runs),
        )
    ]


def headline(runs: dict[str, TrainingRun]) -> str:
    """Return the median speed of each lesson."""
    parts = [f"{lesson} {per_second(run.number('tokens_per_second') or 0.0)}" for lesson, run in runs.items()]
    return f"Tokens a second: {', '.join(parts)}"


def draw(runs: dict[str, TrainingRun], canvas: Canvas) -> None:
    """Draw a line for each lesson."""
    (axes,) = canvas.panels([0.3 + 0.075 * max(len(lesson) for lesson in runs)], left=0.65)
    panel_title(axes, "tokens a second")
    palette = colours(list(runs))
    lines = {lesson: smooth(run.speed) for lesson, run in runs.items()}
    every = [speed for line in lines.values() for _, speed in line]
    low, high = min(every) / 1.3, max(every) * 1.3
    log_axis(axes.yaxis, low, high, ticks=decades(low, high, fewest=3), words=lambda value: f"{value:,.0f}")
    ends = []
    for lesson, line in lines.items():
        share = [(100 * index / (len(line) - 1), speed) for index, (_, speed) in enumerate(line)]
        axes.plot(*zip(*share, strict=True), color=palette[lesson])
        ends.append((*share[-1], lesson, palette[lesson]))
    linear_axis(axes.xaxis, 0, 100, words=lambda value: f"{value:.0f}")
    axes.set_xlabel("% of the run")
    label_points(axes, ends)
