"""The figure of a sweep: iso-FLOP curves with their parabolas, and the minima against compute."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from harness.core.record_files import Row
from harness.report.axes import decades, log_axis, panel_title, power_of_ten
from harness.report.json_values import as_float
from harness.report.plot import COLOURS, GREY, INK, Canvas, Plot
from harness.report.run_records import RunRecords, provenance
from harness.report.sweeps.sweep_rows import COLUMNS, ISO_FLOP, PARAMETRIC, Fit, Sweep

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SECTION = "sweep"
SQUARE_ROOT = 0.5
CURVE_POINTS = 60
MARGIN = 1.25  # of the axes beyond the outermost point, as a factor


def plots(sweep: Sweep) -> list[Plot]:
    """Return a figure for each source that has iso-FLOP curves."""
    drawn = []
    for number, source in enumerate(sweep.sources):
        fit = sweep.fit(source, ISO_FLOP)
        if fit is None or not fit.parabolas:
            continue
        drawn.append(
            Plot(
                section=SECTION,
                name=f"sweep-{number + 1}",
                headline=headline(fit),
                description=(
                    "Left: each point is a run at the end of its own schedule, each colour a budget 6·N·D; a parabola "
                    "is fitted over log N, and the ring is its minimum. Right: the minima with 95% intervals, "
                    "the power law through them, and one with the exponent 1/2 through their middle."
                ),
                caption=provenance(RunRecords(header=dict(sweep.header))),
                height=4.1,
                draw=partial(draw, sweep, source, fit),
            )
        )
    return drawn


def headline(fit: Fit) -> str:
    """Return the exponent of N_opt, and whether the square root is inside its interval."""
    exponent = fit.values["size_exponent"]
    against = "the square root is outside" if exponent.excludes(SQUARE_ROOT) else "the square root is inside"
    return f"{fit.source}: the best size grows as C^{exponent.text(2)}; {against}"


def draw(sweep: Sweep, source: str, fit: Fit, canvas: Canvas) -> None:
    """Draw both panels."""
    curves, frontier = canvas.panels([0.75, 0.35])
    colours = {flops: COLOURS[index % len(COLOURS)] for index, flops in enumerate(budgets(fit))}
    draw_curves(curves, sweep.of_source(source), fit, colours)
    draw_frontier(frontier, fit, sweep.fit(source, PARAMETRIC), colours)


def budgets(fit: Fit) -> list[float]:
    """Return the budgets of the parabolas, the smallest first."""
    return sorted(float(parabola["flops"]) for parabola in fit.parabolas)


def draw_curves(axes: Axes, runs: Sequence[Row], fit: Fit, colours: dict[float, str]) -> None:
    """Draw the runs and the parabola of each budget, with the minimum as a ring and the budget beside the curve."""
    column = COLUMNS[fit.count]
    sizes = [float(run[column]) for run in runs]
    for parabola in fit.parabolas:
        colour = colours[float(parabola["flops"])]
        own = [run for run in runs if close(as_float(run.get("budget") or run.get("flops")), float(parabola["flops"]))]
        axes.plot(
            [run[column] for run in own], [run["loss"] for run in own], ".", color=colour, markersize=7, alpha=0.75
        )
        low, high = float(parabola["low"]), float(parabola["high"])
        steps = [low * (high / low) ** (index / CURVE_POINTS) for index in range(CURVE_POINTS + 1)]
        curve = [parabola_at(parabola, size) for size in steps]
        axes.plot(steps, curve, color=colour, linewidth=1.5)
        axes.plot([parabola["parameters"]], [parabola["lowest"]], "o", color=colour, fillstyle="none", markersize=10)
        axes.annotate(
            f"{flops_text(float(parabola['flops']))}", (steps[-1], curve[-1]), xytext=(7, 0),
            textcoords="offset points", va="center", color=colour, size=9, annotation_clip=False,
        )  # fmt: skip
    low, high = min(sizes) / MARGIN, max(sizes) * MARGIN
    log_axis(axes.xaxis, low, high, ticks=decades(low, high), words=size_text)
    axes.set_xlabel("parameters N" + ("" if fit.count == "all" else " without embeddings"))
    panel_title(axes, "validation loss in nats, by budget in FLOPs")


def draw_frontier(axes: Axes, fit: Fit, law: Fit | None, colours: dict[float, str]) -> None:
    """Draw N_opt over C with intervals, the power law through the minima, the square root, and the parametric law's."""
    points = sorted((float(one["flops"]), float(one["parameters"])) for one in fit.parabolas)
    slope, scale = fit.values["size_exponent"], fit.number("log_scale") or 0.0
    low, high = points[0][0] / 2, points[-1][0] * 2
    at = [low, high]
    middle = [math.exp(sum(math.log(pair[axis]) for pair in points) / len(points)) for axis in (0, 1)]
    axes.plot(at, [middle[1] * (flops / middle[0]) ** SQUARE_ROOT for flops in at], "--", color=GREY, linewidth=1.3,
              label="exponent 1/2")  # fmt: skip
    axes.plot(at, [math.exp(scale) * flops**slope.value for flops in at], color=INK, linewidth=1.6,
              label=f"minima: {slope.text(2)}")  # fmt: skip
    if law is not None and "size_exponent" in law.values and (best := best_sizes(law, at)):
        axes.plot(at, best, ":", color=INK, linewidth=1.6, label=f"law: {law.values['size_exponent'].text(2)}")
    ends = [size for _, size in points]
    for flops, size in points:
        interval = fit.values.get(f"minimum {flops:g}")
        if interval is not None and interval.low and interval.high:
            axes.plot([flops, flops], [interval.low, interval.high], color=colours[flops], linewidth=2.2)
            ends += [interval.low, interval.high]
        axes.plot([flops], [size], "o", color=colours[flops], markersize=7)
    bottom, top = min(ends) / 1.6, max(ends) * 1.6
    log_axis(axes.xaxis, low, high, ticks=decades(low, high, fewest=2), words=flops_text)
    log_axis(axes.yaxis, bottom, top, ticks=decades(bottom, top), words=size_text)
    axes.set_xlabel("training compute C in FLOPs")
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, handlelength=2.4, title="N_opt ~ C^a, a:",
                title_fontsize=8.5, alignment="left")  # fmt: skip
    panel_title(axes, "parameters at the minimum, N_opt")


def parabola_at(parabola: Row, size: float) -> float:
    """Return the loss of a parabola's row at N."""
    off = math.log(size / float(parabola["parameters"]))
    return float(parabola["lowest"]) + float(parabola["curvature"]) * off**2


def best_sizes(law: Fit, flops: Sequence[float]) -> list[float]:
    """Return N_opt of a parametric fit at each budget; empty if its constants allow none."""
    A, B, alpha, beta = (law.values[name].value for name in ("A", "B", "alpha", "beta"))
    if min(A, B, alpha, beta) <= 0:
        return []
    log_scale = math.log(alpha * A / (beta * B)) / (alpha + beta)
    return [math.exp(log_scale + math.log(budget / 6) * beta / (alpha + beta)) for budget in flops]


def close(one: float | None, other: float) -> bool:
    """Return True for the same budget: a table of other people's has rounded ones."""
    return one is not None and abs(one / other - 1) < 0.05


def size_text(value: float) -> str:
    """Return a number of parameters as `11k` or `1.5M`."""
    scale, unit = next((each for each in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if value >= each[0] * 0.9995), (1.0, ""))
    return f"{value / scale:.3g}{unit}"


def flops_text(value: float) -> str:
    """Return FLOPs as `4·10¹⁰`."""
    exponent = math.floor(math.log10(value * 1.04))  # 9.99·10²⁰ is 10²¹ at the digits that are shown
    factor = value / 10**exponent
    return power_of_ten(10.0**exponent) if abs(factor - 1) < 0.05 else f"{factor:.2g}·{power_of_ten(10.0**exponent)}"
