"""The heat map of the kill matrix: checks by faults."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.core.record_files import Row
from harness.report.plot import COLOURS, GREY, WRONG, Canvas, Plot
from harness.report.verifications.fault_tally import RED, CheckTally, Tally, check_name, tally


def heat_map(rows: Sequence[Row]) -> Plot:
    """Return the plot of which check kills which fault, and which check is the first to do so."""
    found = tally(rows)
    missed = sum(not row["killed"] for row in found.faults)
    return Plot(
        section="faults",
        name="faults",
        headline=f"{len(found.faults) - missed} of {len(found.faults)} known faults are killed"
        + (f"; {missed} survive" if missed else ", each by the check that is dark"),
        description="One column for each fault, one row for each check.",
        caption="Dark blue: the first check, from coarse to fine, that turns red for the fault. Light blue: a later "
        "one. Orange: an alarm for an equivalent program, of which there must be none. Faults are in the order of "
        "the catalogue, harness/faults/catalogue.toml; the table faults.csv has their names.",
        height=2.2 + 0.155 * len(found.checks),
        draw=lambda canvas: _draw(canvas, found),
    )


def _draw(canvas: Canvas, found: Tally) -> None:
    """Draw the cells, with the names of the checks at the left and of the families of faults above."""
    from matplotlib.colors import ListedColormap

    columns = [*found.faults, *found.controls]
    (axes,) = canvas.panels([0.4], left=2.35, above=0.95, below=0.08)
    cells = [[_shade(check, row) for row in columns] for check in found.checks]
    colours = ListedColormap(["#ffffff", "#b9d7ea", COLOURS[0], WRONG])
    axes.imshow(cells, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_yticks(range(len(found.checks)), [check.name.replace("::", " · ") for check in found.checks], size=6.2)
    axes.set_xticks([])
    for row in range(1, len(found.checks)):
        axes.axhline(row - 0.5, color="#eeeeee", linewidth=0.4)
    start = 0
    for family, size in _families(columns):
        axes.axvline(start - 0.5, color="#bbbbbb", linewidth=0.6)
        axes.annotate(
            f"{family} ({size})", (start + size / 2 - 0.5, -0.5), xytext=(0, 4), textcoords="offset points",
            rotation=62, size=6.4, color=GREY, ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip
        start += size


def _shade(check: CheckTally, row: Row) -> int:
    """Return the colour of a cell: 0 passes, 1 kills, 2 is the first to kill, 3 is a false alarm."""
    red = any(check_name(c) == check.name and c["verdict"] in RED for c in row["checks"])
    if row["control"]:
        return 3 if red else 0
    return 2 if row["id"] in check.first else int(red)


def _families(columns: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """Yield each family and how many adjacent columns it has."""
    family, size = "", 0
    for row in columns:
        if row["family"] != family and size:
            yield family, size
            size = 0
        family, size = row["family"], size + 1
    if size:
        yield family, size
