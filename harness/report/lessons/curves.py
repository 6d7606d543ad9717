"""What the lessons' figures share: colours of arms, curves with their spread over seeds, steps on an axis."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from harness.report.lessons.training_runs import LessonRuns, Points, TrainingRun, band, smooth
from harness.report.plot import COLOURS
from harness.report.run_records import RunRecords, provenance

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "lessons"
SMOOTHED = "Curves of training are moving averages over one fortieth of the points."


def caption(found: LessonRuns) -> str:
    """Return the line under every figure: machine, versions, date and commit; the subject is the trainer."""
    return provenance(RunRecords(header=dict(found.header)))


def colours(arms: Sequence[str]) -> dict[str, str]:
    """Return a colour for each arm, in their order."""
    return {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(arms)}


def draw_arm(axes: Axes, lines: Sequence[Points], colour: str, *, smoothed: bool = True) -> Points:
    """Draw the mean over seeds as a line and their lowest and highest as a band; return the line."""
    rows = band([smooth(line) if smoothed else line for line in lines])
    if not rows:
        return []
    steps, low, middle, high = (list(column) for column in zip(*rows, strict=True))
    if len(lines) > 1:
        axes.fill_between(steps, low, high, color=colour, alpha=0.22, linewidth=0)
    axes.plot(steps, middle, color=colour)
    return list(zip(steps, middle, strict=True))


def step_axis(axes: Axes, runs: Sequence[TrainingRun]) -> None:
    """Label the axis of the steps, which ends at the last one."""
    last = max((step for run in runs for step, _ in run.losses), default=1.0)
    linear_axis(axes.xaxis, 0, last, words=lambda value: f"{value:,.0f}")
    axes.set_xlabel("step")


def linear_axis(axis: Any, low: float, high: float, *, words: Callable[[float], str]) -> None:
    """Make an axis linear from `low` to `high` and a little more, with round ticks that are within."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator

    margin = 0.02 * (high - low) or 1.0
    axis.axes.set(**{f"{axis.axis_name}lim": (low - margin, high + margin)})
    ticks = MaxNLocator(6).tick_values(low, high)
    axis.set_major_locator(FixedLocator([tick for tick in ticks if low <= tick <= high]))
    axis.set_major_formatter(FuncFormatter(lambda value, _: words(value)))


def loss_axis(axes: Axes, low: float, high: float) -> None:
    """Make the y axis linear, with room below for labels at the ends of lines."""
    linear_axis(axes.yaxis, low - 0.08 * (high - low), high, words=lambda value: f"{value:.3g}")


def arm_losses(arms: Mapping[str, Sequence[TrainingRun]]) -> dict[str, list[Points]]:
    """Return the loss of training of each run, by arm."""
    return {arm: [run.losses for run in runs if run.losses] for arm, runs in arms.items()}
