"""The figure of all claims that are numbers: how far the measured value is from the claimed one."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from harness.report.claims.claim_rows import CORRECTED, DOES_NOT_HOLD, ELSEWHERE, HOLDS, ClaimRow
from harness.report.claims.measured import short
from harness.report.formatting import plural
from harness.report.json_values import as_float
from harness.report.plot import COLOURS, GREY, INK, WRONG, Canvas, Plot

# Colour-blind people tell them apart by their marks.
MARKS = {
    HOLDS: (COLOURS[0], "o"),
    CORRECTED: (COLOURS[1], "s"),
    ELSEWHERE: (COLOURS[3], "^"),
    DOES_NOT_HOLD: (WRONG, "X"),
}
OVERVIEW = "overview"  # the part of the page before the lessons
LINEAR = 0.001  # below this difference the axis is linear, beyond it logarithmic
FARTHEST = 1e6  # a difference beyond this is no figure
TICKS = (-0.9, -0.1, -0.01, 0.0, 0.01, 0.1, 0.9)


def agreement(claims: Sequence[ClaimRow], caption: str) -> Plot | None:
    """Return the figure of how far each claim that is a number is from what was measured; None for fewer than two."""
    rows = [(claim, off) for claim in claims if (off := difference(claim)) is not None]
    if len(rows) < 2:
        return None
    kept = sum(claim.finding == HOLDS for claim, _ in rows)
    return Plot(
        section=OVERVIEW,
        name="claims",
        headline=f"{kept} of {plural(len(rows), 'figure')} are as the lessons state them",
        description="Each claim that is a number: how far what was measured, in the claim's own setting, is from what "
        "is claimed. At the right both, the claimed one first. The axis is logarithmic beyond 0.1%.",
        caption=caption,
        height=0.9 + 0.19 * len(rows),
        draw=partial(draw, rows),
    )


def difference(claim: ClaimRow) -> float | None:
    """Return the measured value over the claimed one, minus 1; None if either is no positive number.

    None also if the subject has no part in the value: agreement with arithmetic is no measurement.
    """
    found = as_float(claim.readings[0].value) if claim.readings else None
    claimed = claim.claimed_value
    if claim.readings and claim.readings[0].by:
        return None
    if claim.finding not in MARKS or not found or not claimed or found <= 0 or claimed <= 0:
        return None
    off = found / claimed - 1
    return off if abs(off) < FARTHEST else None


def draw(rows: Sequence[tuple[ClaimRow, float]], canvas: Canvas) -> None:
    """Draw a mark for each claim, its name at the left and its two values at the right."""
    (axes,) = canvas.panels([2.0], left=2.75, above=0.3, below=0.5)
    reach = 1.4 * max(0.05, *(abs(off) for _, off in rows))
    axes.set_xscale("symlog", linthresh=LINEAR, linscale=0.4)
    axes.set_xlim(-reach, reach)
    axes.set_xticks([tick for tick in TICKS if abs(tick) <= reach])
    axes.set_xticks([], minor=True)
    axes.xaxis.set_major_formatter(lambda value, _: f"{100 * value:+g}%" if value else "0")
    axes.axvline(0, color=GREY, linewidth=0.9)
    drawn = set()
    for row, (claim, off) in enumerate(rows):
        colour, mark = MARKS[claim.finding]
        label = claim.finding if claim.finding not in drawn else None
        drawn.add(claim.finding)
        axes.plot([off], [row], mark, color=colour, markersize=6, label=label, linestyle="none")
        reading = claim.readings[0]
        axes.annotate(
            f"{claim.figure}: {short(reading.value, reading.unit)}", (1, row), xycoords=("axes fraction", "data"),
            xytext=(6, 0), textcoords="offset points", va="center", size=7.5, color=INK, annotation_clip=False,
        )  # fmt: skip
    axes.set_yticks(range(len(rows)), [claim.name for claim, _ in rows], size=7.5)
    axes.set_ylim(len(rows) - 0.4, -0.6)
    axes.set_xlabel("measured, from what is claimed")
    axes.legend(loc="lower left", bbox_to_anchor=(0, 1), ncols=4, frameon=False, fontsize=8, handletextpad=0.1)
