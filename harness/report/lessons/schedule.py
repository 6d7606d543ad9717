"""The ablation of the learning rate: warm-up and cosine against constant rates, over seeds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import TYPE_CHECKING

from harness.report.axes import decades, label_points, log_axis, panel_title
from harness.report.formatting import decimal
from harness.report.json_values import as_float
from harness.report.lessons.curves import (
    SECTION,
    SMOOTHED,
    arm_losses,
    caption,
    colours,
    draw_arm,
    loss_axis,
    step_axis,
)
from harness.report.lessons.training_runs import LessonRuns, TrainingRun
from harness.report.markdown import embed, escape, table
from harness.report.plot import WRONG, Canvas, Plot

if TYPE_CHECKING:
    from matplotlib.axes import Axes

LESSON = "schedule"
Arms = Mapping[str, list[TrainingRun]]


def plots(found: LessonRuns) -> list[Plot]:
    """Return the figure of the arms that were run with several seeds, and that of the higher rates."""
    arms = found.arms(LESSON)
    compared = {arm: runs for arm, runs in arms.items() if len({run.seed for run in runs}) > 1}
    higher = {
        arm: runs
        for arm, runs in arms.items()
        if arm not in compared and highest_rate(runs) > highest_compared(compared)
    }
    drawn = []
    if compared:
        drawn.append(
            Plot(
                section=SECTION,
                name="lessons-schedule",
                headline=headline(compared),
                description=(
                    "The loss of training: a line is the mean over the seeds, the band around it their lowest and "
                    f"highest. {SMOOTHED} At the right the learning rate of each step."
                ),
                caption=caption(found),
                height=3.8,
                draw=partial(draw, compared, rates=True),
            )
        )
    if higher:
        drawn.append(
            Plot(
                section=SECTION,
                name="lessons-higher-rates",
                headline=explosion_headline({**compared, **higher}),
                description=(
                    "The same model at higher rates, one seed each. A cross marks the step at which the loss exploded."
                ),
                caption=caption(found),
                height=3.8,
                draw=partial(draw, higher, rates=False),
            )
        )
    return drawn


def full_size_plots(found: LessonRuns, lesson: str) -> list[Plot]:
    """Return the figure of a lesson that compares arms of one seed, if it has two or more."""
    arms = found.arms(lesson)
    if len(arms) < 2:
        return []
    return [
        Plot(
            section=SECTION,
            name=f"lessons-{lesson}-rates",
            headline=headline(arms),
            description=f"The loss of training and the learning rate of each arm, one seed each. {SMOOTHED}",
            caption=caption(found),
            height=3.8,
            draw=partial(draw, arms, rates=True),
        )
    ]


def highest_compared(arms: Arms) -> float:
    """Return the highest rate of the arms with several seeds: those above it are drawn apart."""
    return max((highest_rate(runs) for runs in arms.values()), default=0.0)


def highest_rate(runs: Sequence[TrainingRun]) -> float:
    """Return the highest learning rate that was used."""
    return max((rate or 0.0 for run in runs for _, rate in run.rates), default=0.0)


def headline(arms: Arms) -> str:
    """Return the loss at the end of each arm, the lowest first."""
    ends = {arm: last_losses(runs) for arm, runs in arms.items()}
    ranked = sorted((arm for arm in ends if ends[arm]), key=lambda arm: fmean(ends[arm]))
    parts = [f"{arm} {mean_and_spread(ends[arm])}" for arm in ranked]
    exploded = [f"{arm} exploded with {count}" for arm, runs in arms.items() if (count := exploded_seeds(runs))]
    return f"The loss of training ends at: {'; '.join(parts)}" + (f". {'; '.join(exploded)}" if exploded else "")


def exploded_seeds(runs: Sequence[TrainingRun]) -> str:
    """Return `2 of 3 seeds`, or nothing if no seed exploded."""
    exploded = sum(run.exploded_at is not None for run in runs)
    return f"{exploded} of {len(runs)} seeds" if exploded else ""


def explosion_headline(arms: Arms) -> str:
    """Return the lowest constant rate that exploded, and whether the same rate did with a warm-up."""
    constant = [(highest_rate(runs), arm, runs) for arm, runs in arms.items() if arm.startswith("constant")]
    exploded = [(rate, arm, runs) for rate, arm, runs in sorted(constant) if exploded_seeds(runs)]
    if not exploded:
        top = max((rate for rate, _, _ in constant), default=0.0)
        return f"No constant rate up to {decimal(top, 2)} exploded at this size"
    rate, _, runs = exploded[0]
    first = min(run.exploded_at for run in runs if run.exploded_at is not None)
    below = max((r for r, _, _ in constant if r < rate), default=None)
    text = f"A constant rate explodes at {decimal(rate, 2)} (at step {first}{recovery(runs)})"
    text += f"; at {decimal(below, 2)} it does not" if below else ""
    same = [runs for arm, runs in arms.items() if arm.startswith("cosine") and highest_rate(runs) == rate]
    if same:
        does = any(run.exploded_at is not None for run in same[0])
        text += f". With warm-up and cosine to the same peak it {'explodes too' if does else 'does not'}"
    return text


def recovery(runs: Sequence[TrainingRun]) -> str:
    """Return `, then recovers to 3.24` if every run that exploded ends below its first loss, or nothing."""
    exploded = [run for run in runs if run.exploded_at is not None]
    ends = [(run.number("last_loss"), run.number("first_loss")) for run in exploded]
    recovered = [last for last, first in ends if last is not None and first is not None and last < first]
    return f", then recovers to {fmean(recovered):.2f}" if len(recovered) == len(exploded) else ""


def last_losses(runs: Sequence[TrainingRun]) -> list[float]:
    """Return the loss at the end of each run that has one."""
    return [loss for run in runs if (loss := run.number("last_loss")) is not None]


def mean_and_spread(values: Sequence[float]) -> str:
    """Return `2.31 [2.29, 2.34]`: the mean, and the lowest and highest of several."""
    if not values:
        return ""
    spread = f" [{min(values):.2f}, {max(values):.2f}]" if len(values) > 1 else ""
    return f"{fmean(values):.2f}{spread}"


def draw(arms: Arms, canvas: Canvas, *, rates: bool) -> None:
    """Draw the losses, and at the right the rates of each arm's first run.

    Without the rates the losses are on a logarithmic axis, which has room for explosions.
    """
    palette = colours(list(arms))
    room = 0.3 + 0.075 * max(len(arm) for arm in arms)
    panels = canvas.panels([room, 0.2] if rates else [room], left=0.55)
    draw_losses(panels[0], arms, palette, logarithmic=not rates)
    if rates:
        draw_rates(panels[1], arms, palette)


def draw_losses(axes: Axes, arms: Arms, palette: Mapping[str, str], *, logarithmic: bool) -> None:
    """Draw the loss over steps, with a cross where a run exploded. A linear axis ends above the highest first loss."""
    panel_title(axes, "loss of training")
    every = [run for runs in arms.values() for run in runs]
    values = [loss for run in every for _, loss in run.losses if loss > 0]
    low, high = min(values, default=1.0), max(values, default=1.0)
    if logarithmic:
        low, high = low / 1.25, high * 1.25
        log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=lambda value: f"{value:g}")
    else:
        high = min(high, 1.25 * max((run.number("first_loss") or high for run in every), default=high))
        loss_axis(axes, low, high)
    step_axis(axes, every)
    ends = []
    for arm, lines in arm_losses(arms).items():
        drawn = draw_arm(axes, lines, palette[arm], smoothed=not logarithmic)
        if drawn:
            ends.append((drawn[-1][0], min(drawn[-1][1], high), arm, palette[arm]))
    for run in every:
        if run.exploded_at is not None:
            at = next((loss for step, loss in run.losses if step >= run.exploded_at), high)
            axes.plot([run.exploded_at], [min(at, high)], "X", color=WRONG, markersize=9, clip_on=False, zorder=5)
    label_points(axes, ends)


def draw_rates(axes: Axes, arms: Arms, palette: Mapping[str, str]) -> None:
    """Draw the learning rate of each arm over steps, on a logarithmic axis."""
    panel_title(axes, "learning rate")
    every = [(step, rate) for runs in arms.values() for step, rate in runs[0].rates if rate and rate > 0]
    if not every:
        return
    low, high = min(rate for _, rate in every) / 1.6, max(rate for _, rate in every) * 1.6
    log_axis(axes.yaxis, low, high, ticks=decades(low, high, fewest=2), words=lambda value: f"{value:g}")
    for arm, runs in arms.items():
        shown = [(step, rate) for step, rate in runs[0].rates if rate and rate > 0]
        axes.plot([step for step, _ in shown], [rate for _, rate in shown], color=palette[arm])
    step_axis(axes, [runs[0] for runs in arms.values()])


def section(found: LessonRuns, drawn: Sequence[Plot]) -> Iterator[str]:
    """Yield the figures and the table of the ablation, a row for each arm."""
    for plot in drawn:
        yield from embed(plot)
    numeric = ["seeds", "steps", "loss at step 0", "loss at the end", "best validation", "exploded at step"]
    rows = []
    for arm, runs in found.arms(LESSON).items():
        firsts = [value for run in runs if (value := run.number("first_loss")) is not None]
        best = [value for run in runs if (value := run.number("best_validation")) is not None]
        steps = {int(value) for run in runs if (value := as_float(run.row.get("steps"))) is not None}
        exploded = [str(run.exploded_at) for run in runs if run.exploded_at is not None]
        cells = [
            str(len(runs)),
            " / ".join(f"{value:,}" for value in sorted(steps)),
            mean_and_spread(firsts),
            mean_and_spread(last_losses(runs)),
            mean_and_spread(best),
            ", ".join(exploded) or "no",
        ]
        rows.append([escape(arm), *cells])
    if rows:
        yield from table(["arm", *numeric], rows, right=numeric)
