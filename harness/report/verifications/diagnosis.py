"""The diagnosis: a table of its findings, and the plot of where the subject differs from GPT-2."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from harness.core.record_files import Row
from harness.report.axes import log_axis, panel_title, power_of_ten
from harness.report.blocks import Findings
from harness.report.formatting import decimal, plain
from harness.report.json_values import as_float, as_mapping, mappings
from harness.report.markdown import code, escape, table
from harness.report.plot import COLOURS, GREY, WRONG, Canvas, Plot
from harness.report.point_values import name_points
from harness.report.run_records import RunRecords, provenance

FLOOR = 1e-17  # an exactly equal component is drawn here
DIFFERS = 1e-9  # relative, in float64: rounding is some 1e-15
OF_A_GPT = (
    "The finding that explains most failures comes first; those that explain as many are in execution order. Fix the "
    "first one first. Each is masked while the next is searched."
)
OF_A_PROGRAM = "Findings are in the order of a run's events, each with the failures that follow from it."
INPUTS = (("own", "as the subject runs", GREY), ("alone", "alone, given GPT-2's input", COLOURS[0]))


def sections(run: RunRecords) -> Iterator[str]:
    """Yield a table of findings, in execution order, for each subject that was diagnosed."""
    for row in run.diagnoses:
        findings = in_order(row)
        if not findings and not row.get("trouble"):
            continue
        yield from (f"## Diagnosis of {escape(row.get('subject', run.subject), 120)}", "")
        if findings:
            shown = table(["", "where", "cause", "evidence", "source"], [*rows(findings)])
            yield from (Findings(shown[0], findings), "")
            yield from (OF_A_PROGRAM if row.get("in_order") else OF_A_GPT, "")
        if row.get("trouble"):
            yield from (f"Not diagnosed: {escape(row['trouble'], 400)}", "")


def in_order(row: Row) -> list[Row]:
    """Return the findings of a diagnosis in the order in which to fix them, the declared ones of a GPT last."""
    findings = mappings(row.get("findings"))
    if row.get("in_order"):
        return findings
    return sorted(findings, key=lambda found: (bool(found.get("declared")), -(as_float(found.get("explains")) or 0.0)))


def rows(findings: list[Row]) -> Iterator[list[str]]:
    """Yield a row for each finding."""
    for number, found in enumerate(findings, 1):
        fault = f" {code(found['fault'])}" if found.get("fault") else ""
        declared = " (declared)" if found.get("declared") else ""
        line = f"{code(found['source'])} {code(plain(found.get('text'), longest=90))}" if found.get("source") else ""
        where = code(found.get("where", "")) + declared
        yield [str(number), where, f"{escape(found.get('cause', ''))}{fault}", escape(found.get("evidence", "")), line]


def plot(run: RunRecords) -> Plot | None:
    """Return the plot of the first diagnosis with more than two components; None if there is none."""
    for row in run.diagnoses:
        gaps = {
            plain(place, longest=60): as_mapping(found) for place, found in as_mapping(row.get("divergence")).items()
        }
        points = {place: {key: as_float(found.get(key)) for key, *_ in INPUTS} for place, found in gaps.items()}
        if len(points) > 2:
            return Plot(
                section="diagnosis",
                name="diagnosis",
                headline=headline(points),
                description=(
                    "Each component in execution order. Grey is its output as the subject runs, which includes the "
                    "errors of earlier components. Blue is its output for GPT-2's own input; it is vermilion if it is "
                    "wrong, and then the bug is in that component itself."
                ),
                caption=provenance(run),
                height=3.4,
                draw=partial(draw, points),
            )
    return None


def headline(points: dict[str, dict[str, float | None]]) -> str:
    """Return which components are wrong by themselves, and where the first of them is."""
    alone = {place: gaps["alone"] or 0.0 for place, gaps in points.items() if gaps["alone"] is not None}
    # A block is wrong if a part of it is, so only the parts count.
    parts = {place: gap for place, gap in alone.items() if place.count(".") > 1}
    wrong = [place for place, gap in (parts or alone).items() if gap > DIFFERS]
    first = next((place for place, gaps in points.items() if (gaps["own"] or 0.0) > DIFFERS), None)
    if not wrong:
        return f"The first component that differs is {first}" if first else "No component differs by itself"
    count = f"{len(wrong)} of {len(parts or alone)} components are wrong"
    return f"Given GPT-2's own input, {count}; the first is {wrong[0]}, by {decimal(alone[wrong[0]], 2)}"


def draw(points: dict[str, dict[str, float | None]], canvas: Canvas) -> None:
    """Draw two dots for each component on a logarithmic scale."""
    axes = canvas.panels([0.35], below=0.95)[0]
    panel_title(axes, "largest difference from GPT-2 in float64, relative to the values there")
    places = list(points)
    for key, label, colour in INPUTS:
        for wrong in (False, True):
            chosen = [
                (x, max(gap, FLOOR))
                for x, place in enumerate(places)
                if (gap := points[place][key]) is not None and (gap > DIFFERS and key == "alone") == wrong
            ]
            if chosen:
                (line,) = axes.plot(
                    *zip(*chosen, strict=True),
                    linestyle="none",
                    marker="o",
                    markersize=4 if key == "own" else 7,
                    color=WRONG if wrong else colour,
                    label=f"{label}: wrong" if wrong else label,
                    zorder=3 if key == "own" else 2,
                )
                name_points(line, [f"{places[x]} {label}: differs by {decimal(gap, 2)}" for x, gap in chosen])
    largest = max((gap for gaps in points.values() for gap in gaps.values() if gap is not None), default=1.0)
    log_axis(axes.yaxis, FLOOR / 3, max(largest, 1.0) * 2e3, ticks=[1e-16, 1e-12, 1e-8, 1e-4, 1.0], words=power_of_ten)
    axes.axhspan(FLOOR / 3, 1e-12, color=GREY, alpha=0.08, linewidth=0)
    axes.annotate("rounding", (1, 0.02), xycoords="axes fraction", ha="right", va="bottom", size=8, color=GREY)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xticks(range(len(places)), [plain(place, longest=16) for place in places], rotation=50, ha="right")
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, ncols=3, borderaxespad=0.2)
