"""The figures of the claims: growth of the activations, positions with and without a cache, numbers after one."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from harness.report.axes import decades, label_points, log_axis, panel_title, power_of_ten
from harness.report.claims.agreement import agreement
from harness.report.claims.claim_rows import ClaimRow, claims_of, curve_of
from harness.report.formatting import factor, number, short_name
from harness.report.json_values import as_float, as_mapping
from harness.report.markdown import escape
from harness.report.plot import COLOURS, GREY, INK, WRONG, Canvas, Plot
from harness.report.run_records import RunRecords, provenance
from harness.report.verifications.activations import drawable

RECIPES = {"gpt2": "scaled by 1/sqrt(2N)", "unscaled": "std 0.02, not scaled", "pytorch": "PyTorch's defaults"}
CLAIMED_STD = (0.80, 0.85), 6.55  # the lessons': with scaling, and without
NEAR = 0.1  # of a claimed std


def plots(run: RunRecords) -> list[Plot]:
    """Return every figure that the claims of a run have data for; its section is the lesson that it belongs to."""
    claims, caption = claims_of(run), provenance(run)
    found = [agreement(claims, caption), growth(claims, caption), spacing(claims, caption), positions(claims, caption)]
    return [plot for plot in found if plot]


@dataclass(frozen=True)
class Line:
    """The std of the activations before the first block and after each, by one initialisation."""

    label: str
    stds: tuple[float, ...]


def growth(claims: Sequence[ClaimRow], caption: str) -> Plot | None:
    """Return the figure of the activations' std over the blocks, for each initialisation that was measured."""
    found: dict[str, Line] = {}
    for claim in claims:
        if claim.row.get("measure") != "activation_std":
            continue
        parameters = as_mapping(claim.row.get("parameters"))
        for reading in claim.readings:
            stds = drawable(reading.places)
            label = reading.setting or RECIPES.get(str(parameters.get("recipe")), str(parameters.get("recipe")))
            if len(stds) > 1:
                found[label] = Line(short_name(label), tuple(stds.values()))
    if not found:
        return None
    lines = list(found.values())
    return Plot(
        section="building",
        name="claims-growth",
        headline=growth_headline(lines),
        description="The std of the activations after each block, from N(0, 0.8²) fed into the first. The grey band "
        "and the ring are what the lessons claim with and without scaled residual projections.",
        caption=caption,
        height=3.4,
        draw=partial(draw_growth, lines),
    )


def growth_headline(lines: Sequence[Line]) -> str:
    """Return which initialisations end near the std that is claimed without scaling, or the nearest if none does."""
    claimed = CLAIMED_STD[1]
    ranked = sorted(lines, key=lambda line: abs(line.stds[-1] - claimed))
    found = [f"{line.label} ({line.stds[-1]:.2f})" for line in ranked]
    near = [text for line, text in zip(ranked, found, strict=True) if abs(line.stds[-1] - claimed) <= NEAR * claimed]
    if not near:
        return f"No measured initialisation is near {claimed} after 12 blocks; the nearest is {found[0]}"
    alone = " alone" if len(near) == 1 < len(lines) else ""
    return f"{claimed} after 12 blocks is near {' and '.join(near)}{alone}"


def draw_growth(lines: Sequence[Line], canvas: Canvas) -> None:
    """Draw a line for each initialisation, and the claimed values."""
    (axes,) = canvas.panels([0.35 + 0.075 * max(len(line.label) + 6 for line in lines)], left=0.55)
    panel_title(axes, "std of activations")
    values = [value for line in lines for value in line.stds]
    low, high = min(values) / 1.3, max(values) * 1.4
    log_axis(axes.yaxis, low, high, ticks=decades(low, high), words=lambda value: f"{value:g}")
    (flat_low, flat_high), wild = CLAIMED_STD
    axes.axhspan(flat_low, flat_high, color="#dddddd", zorder=1)
    ends = []
    for line, colour in zip(lines, itertools.cycle(COLOURS), strict=False):
        axes.plot(range(len(line.stds)), line.stds, color=colour, marker="o", markersize=3.5)
        ends.append((len(line.stds) - 1.0, line.stds[-1], f"{line.label} {line.stds[-1]:#.3g}", colour))
    last = max(len(line.stds) for line in lines) - 1
    axes.plot([last], [wild], "o", markersize=11, markerfacecolor="none", markeredgecolor=WRONG)
    axes.annotate(f"claimed {wild}", (last, wild), xytext=(4, -15), textcoords="offset points", ha="right", color=WRONG)
    axes.set_xticks(range(last + 1), ["in", *map(str, range(1, last + 1))])
    axes.set_xlabel("after block")
    label_points(axes, ends)


def positions(claims: Sequence[ClaimRow], caption: str) -> Plot | None:
    """Return the figure of the positions that went through the model over the new tokens."""
    counted = [claim for claim in claims if len(curve_of(claim, columns=3)) > 1]
    if not counted:
        return None
    longest = max(counted, key=lambda claim: curve_of(claim, columns=3)[-1][0])
    curve = curve_of(longest, columns=3)
    tokens, uncached, cached = curve[-1]
    prompt = number(as_mapping(longest.row.get("parameters")).get("prompt_length"))
    return Plot(
        section="scaling",
        name="claims-positions",
        headline=f"{number(int(tokens))} tokens after a prompt of {prompt} take {number(int(uncached))} positions "
        f"without a cache and {number(int(cached))} with one: {factor(uncached / cached)}",
        description="Positions that went through the model, counted where tokens are embedded, on real generations by "
        f"a model of {escape(longest.readings[0].details.get('size'))}. Rings are what the lessons claim.",
        caption=caption,
        height=3.4,
        draw=partial(draw_positions, curve, claimed_positions(counted)),
    )


def claimed_positions(claims: Sequence[ClaimRow]) -> list[tuple[float, float]]:
    """Return (new tokens, positions) of the claims that state a number of positions."""
    return [
        (tokens, claim.claimed_value)
        for claim in claims
        if (tokens := as_float(as_mapping(claim.row.get("parameters")).get("new_tokens")))
        and claim.readings[0].at in ("uncached", "cached")
        and claim.claimed_value is not None
    ]


def draw_positions(curve: Sequence[Sequence[float]], claimed: Sequence[tuple[float, float]], canvas: Canvas) -> None:
    """Draw both counts on logarithmic axes, and a ring at each claimed one."""
    (axes,) = canvas.panels([1.25], left=0.75)
    panel_title(axes, "positions through the model")
    tokens = [point[0] for point in curve]
    high = max(point[1] for point in curve) * 2
    log_axis(axes.yaxis, 5, high, ticks=decades(5, high), words=lambda value: f"{value:,.0f}")
    log_axis(axes.xaxis, 0.9, tokens[-1] * 1.05, ticks=decades(0.9, tokens[-1] * 1.05, 3), words=lambda v: f"{v:,.0f}")
    ends = []
    for column, label, colour in ((1, "without a cache", COLOURS[1]), (2, "with a cache", COLOURS[0])):
        counts = [point[column] for point in curve]
        axes.plot(tokens, counts, color=colour, marker="o", markersize=3)
        ends.append((tokens[-1], counts[-1], label, colour))
    for x, y in claimed:
        axes.plot([x], [y], "o", markersize=11, markerfacecolor="none", markeredgecolor=WRONG)
        axes.annotate(f"claimed {y:,.0f}", (x, y), xytext=(-9, 5), textcoords="offset points", ha="right", color=WRONG)
    axes.set_xlabel("new tokens")
    label_points(axes, ends)


def spacing(claims: Sequence[ClaimRow], caption: str) -> Plot | None:
    """Return the figure of the next number after 1 in each format, beside the update that is added."""
    found: dict[str, float] = {}
    step = 0.0
    for claim in claims:
        for reading in claim.readings:
            after, added = as_float(reading.details.get("spacing")), as_float(reading.details.get("step"))
            if after and added and after > 0 and added > 0:
                found[short_name(reading.details.get("dtype"))], step = after, added
    lost = [name for name, after in found.items() if step < after / 2]
    if not lost:
        return None
    return Plot(
        section="pretraining",
        name="claims-spacing",
        headline=f"1 + {step:g} is 1 in {' and '.join(lost)}: it is less than half of the way to the next number",
        description="For each format the way from 1 to half of the next number, below which a sum is rounded back to "
        "1. The dashed line is what is added.",
        caption=caption,
        height=1.9,
        draw=partial(draw_spacing, found, step),
    )


def draw_spacing(found: dict[str, float], step: float, canvas: Canvas) -> None:
    """Draw a bar for each format up to half of its spacing, and a line at the step."""
    (axes,) = canvas.panels([0.3], left=0.95, above=0.25, below=0.55)
    low, high = min(step, *found.values()) / 4, max(step, *found.values()) * 2
    log_axis(axes.xaxis, low, high, ticks=decades(low, high, 3), words=power_of_ten)
    names = sorted(found, key=found.__getitem__)
    for row, name in enumerate(names):
        lost = step < found[name] / 2
        axes.barh(row, found[name] / 2, left=0, color=WRONG if lost else COLOURS[0], height=0.55)
    axes.axvline(step, color=INK, linestyle=(0, (3, 2)), linewidth=1)
    axes.annotate(f" + {step:g}", (step, len(names) - 0.45), color=INK, size=8.5, va="bottom", annotation_clip=False)
    axes.set_yticks(range(len(names)), names)
    axes.set_ylim(-0.6, len(names) - 0.3)
    axes.set_xlabel("added to 1, rounded back to 1 within the bar", color=GREY)
