"""The diagnosis on the page: the findings, and the figure of where the subject leaves GPT-2's way."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

from harness.report.figure import COLOURS, GREY, WRONG, Canvas, Plot, log_axis, panel_title, power_of_ten
from harness.report.markdown import code, escape, table
from harness.report.run import Row, Run, machine
from harness.report.tables import as_mapping
from harness.report.wording import as_float, decimal, plain

FLOOR = 1e-17  # what is exactly equal is drawn here
SHOWS = 1e-9  # relative, in float64: rounding is some 1e-15
WAYS = (("own", "as the subject runs", GREY), ("alone", "alone, given GPT-2's input", COLOURS[0]))


def sections(run: Run) -> Iterator[str]:
    """A table of findings for each subject that was diagnosed, in execution order."""
    for row in run.diagnoses:
        findings = [found for found in as_list(row.get("findings")) if isinstance(found, dict)]
        if not findings and not row.get("trouble"):
            continue
        yield from (f"## Diagnosis of {escape(row.get('subject', run.subject), 120)}", "")
        if findings:
            yield from table(["", "where", "what", "evidence", "look at"], [*rows(findings)])
            yield from ("In execution order: the first is the one to mend first. Each is masked for the next.", "")
        if row.get("trouble"):
            yield from (f"Not looked into: {escape(row['trouble'], 400)}", "")


def rows(findings: list[Row]) -> Iterator[list[str]]:
    """A row for each finding."""
    for number, found in enumerate(findings, 1):
        fault = f" {code(found['fault'])}" if found.get("fault") else ""
        declared = " (declared)" if found.get("declared") else ""
        line = f"{code(found['source'])} {code(plain(found.get('text'), longest=90))}" if found.get("source") else ""
        where = code(found.get("where", "")) + declared
        yield [str(number), where, f"{escape(found.get('cause', ''))}{fault}", escape(found.get("evidence", "")), line]


def as_list(value: object) -> list[object]:
    """A list as it is, anything else as an empty one: records are read leniently."""
    return value if isinstance(value, list) else []


def plot(run: Run) -> Plot | None:
    """The figure of the first diagnosis that has something to show."""
    for row in run.diagnoses:
        gaps = {str(place): as_mapping(found) for place, found in as_mapping(row.get("divergence")).items()}
        points = {place: {way: as_float(found.get(way)) for way, *_ in WAYS} for place, found in gaps.items()}
        if len(points) > 2:
            return Plot(
                section="diagnosis",
                name="diagnosis",
                finding=finding(points),
                look=(
                    "Each component in execution order. Grey is its answer as the subject runs, errors passed on from "
                    "what comes before; blue is its answer to GPT-2's own input, and vermilion where that is wrong: "
                    "the mistake is in that component itself."
                ),
                caption=machine(run),
                height=3.4,
                draw=partial(draw, points),
            )
    return None


def finding(points: dict[str, dict[str, float | None]]) -> str:
    """What the figure shows, in a sentence."""
    alone = {place: ways["alone"] or 0.0 for place, ways in points.items() if ways["alone"] is not None}
    # A block is wrong where a part of it is: the parts say it.
    parts = {place: gap for place, gap in alone.items() if place.count(".") > 1}
    wrong = [place for place, gap in (parts or alone).items() if gap > SHOWS]
    first = next((place for place, ways in points.items() if (ways["own"] or 0.0) > SHOWS), None)
    if not wrong:
        return f"The first component that differs is {first}" if first else "No component differs by itself"
    told = f"{len(wrong)} of {len(parts or alone)} components are wrong"
    return f"Given GPT-2's own input, {told}; the first is {wrong[0]}, by {decimal(alone[wrong[0]], 2)}"


def draw(points: dict[str, dict[str, float | None]], canvas: Canvas) -> None:
    """Two dots a component on a logarithmic scale."""
    axes = canvas.panels([0.35], below=0.95)[0]
    panel_title(axes, "largest difference from GPT-2 in float64, relative to the values there")
    places = list(points)
    for way, label, colour in WAYS:
        for wrong in (False, True):
            chosen = [
                (x, max(gap, FLOOR))
                for x, place in enumerate(places)
                if (gap := points[place][way]) is not None and (gap > SHOWS and way == "alone") == wrong
            ]
            if chosen:
                axes.plot(
                    *zip(*chosen, strict=True),
                    linestyle="none",
                    marker="o",
                    markersize=4 if way == "own" else 7,
                    color=WRONG if wrong else colour,
                    label=f"{label}: wrong" if wrong else label,
                    zorder=3 if way == "own" else 2,
                )
    largest = max((gap for ways in points.values() for gap in ways.values() if gap is not None), default=1.0)
    log_axis(axes.yaxis, FLOOR / 3, max(largest, 1.0) * 2e3, ticks=[1e-16, 1e-12, 1e-8, 1e-4, 1.0], words=power_of_ten)
    axes.axhspan(FLOOR / 3, 1e-12, color=GREY, alpha=0.08, linewidth=0)
    axes.annotate("rounding", (1, 0.02), xycoords="axes fraction", ha="right", va="bottom", size=8, color=GREY)
    axes.set_xlim(-0.6, len(places) - 0.4)
    axes.set_xticks(range(len(places)), [plain(place, longest=16) for place in places], rotation=50, ha="right")
    axes.legend(loc="upper left", frameon=False, fontsize=8.5, ncols=3, borderaxespad=0.2)
