"""The report of the kill matrix, a pure function of its records: the tally, the page, the table and the heat map."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from harness.report.figure import COLOURS, GREY, WRONG, Canvas, Plot
from harness.report.markdown import escape, prose, table

Row = dict[str, Any]
RED = ("fail", "error")
PAGE = "faults.md"
# The requirements; see "Add a fault" in CONTRIBUTING.md.
LEAST_LOCALISED, LEAST_NAMED = 0.95, 0.85


@dataclass(frozen=True)
class CheckTally:
    """What one [[check]] of a suite kills: all, and those that no check before it, coarse to fine, kills."""

    name: str  # suite::check
    keep_reason: str
    kills: frozenset[str]
    first: frozenset[str]

    @property
    def earns_its_place(self) -> bool:
        """Whether it kills what no coarser check kills, or says why it stays."""
        return bool(self.first or self.keep_reason)


@dataclass(frozen=True)
class Tally:
    """The figures of a kill matrix, and what is missing from the requirements."""

    faults: list[Row]
    controls: list[Row]
    checks: list[CheckTally]
    seconds: float = math.nan
    whole: bool = True  # all faults of the catalogue, so that a check without a kill means something
    missed: list[str] = field(default_factory=list)

    def count(self, key: str) -> int:
        """Faults that are killed, localised or named."""
        return sum(bool(row[key]) for row in self.faults)


def in_order(rows: Sequence[Row]) -> list[Row]:
    """The rows of the faults in the catalogue's order, which the header has; they are recorded as they are done."""
    head = next((row for row in rows if row.get("kind") == "header"), {})
    number = {id: place for place, id in enumerate(head.get("faults", ()))}
    judged = [row for row in rows if row.get("kind") == "fault"]
    return sorted(judged, key=lambda row: number.get(row["id"], len(number)))


def tally(rows: Sequence[Row]) -> Tally:
    """The tally of the rows of a record file: header, faults as they were done, footer."""
    head = next((row for row in rows if row.get("kind") == "header"), {})
    foot = next((row for row in rows if row.get("kind") == "footer"), {})
    judged = in_order(rows)
    faults, controls = ([row for row in judged if bool(row["control"]) is is_control] for is_control in (False, True))
    found = Tally(
        faults,
        controls,
        list(_checks(head.get("checks", ()), judged)),
        seconds=float(foot.get("seconds", math.nan)),
        whole=bool(head.get("whole", True)),
    )
    found.missed.extend(_missed(found))
    return found


def _checks(order: Sequence[Row], judged: Sequence[Row]) -> Iterator[CheckTally]:
    """What each check kills, from coarse to fine: the order of the header."""
    kills: dict[str, set[str]] = {_name(check): set() for check in order}
    keep_reasons = {_name(check): str(check["keep_reason"]) for check in order}
    for row in judged:
        for check in row["checks"]:
            if check["verdict"] in RED and not row["control"]:
                kills[_name(check)].add(row["id"])
    seen: set[str] = set()
    for name, killed in kills.items():
        yield CheckTally(name, keep_reasons[name], frozenset(killed), frozenset(killed - seen))
        seen |= killed


def _missed(found: Tally) -> Iterator[str]:
    total = len(found.faults)
    if survivors := [row["id"] for row in found.faults if not row["killed"]]:
        yield f"not killed: {', '.join(survivors)}"
    if found.whole and found.count("localised") < LEAST_LOCALISED * total:
        yield f"localised {found.count('localised')} of {total}, expected {LEAST_LOCALISED:.0%}"
    if found.whole and found.count("named") < LEAST_NAMED * total:
        yield f"named {found.count('named')} of {total}, expected {LEAST_NAMED:.0%}"
    for row in found.controls:
        if row["killed"]:
            checks = [check["id"] for check in row["checks"] if check["verdict"] in RED]
            yield f"false alarm: {row['id']}, by {', '.join(checks[:3])}"
    if found.whole:
        for check in found.checks:
            if not check.earns_its_place:
                yield f"{check.name} kills nothing that a coarser check does not kill, and does not say why it stays"


def summary(found: Tally) -> str:
    """The tally as the terminal shows it."""
    total, controls = len(found.faults), len(found.controls)
    quiet = sum(not row["killed"] for row in found.controls)
    lines = [
        f"{total} faults, {controls} controls" + ("" if math.isnan(found.seconds) else f" in {found.seconds:.0f} s"),
        f"  killed     {_share(found.count('killed'), total)}",
        f"  localised  {_share(found.count('localised'), total)}",
        f"  named      {_share(found.count('named'), total)}",
        f"  controls without an alarm  {_share(quiet, controls)}",
    ]
    if found.whole:
        staying = [check for check in found.checks if not check.first]
        unique = len(found.checks) - len(staying)
        lines.append(f"  checks that kill what no coarser one kills  {_share(unique, len(found.checks))}")
        lines += [
            f"    {check.name} ({len(check.kills)} killed) stays: {check.keep_reason or 'it does not say why'}"
            for check in staying
        ]
    for row in found.faults:
        if not (row["localised"] and row["named"]) and row["killed"]:
            lines.append(f"  {row['id']}: {_told(row)}")
    return "\n".join([*lines, *(f"MISSED  {text}" for text in found.missed)])


def page(rows: Sequence[Row]) -> str:
    """The page in Markdown."""
    found = tally(rows)
    total = len(found.faults)
    lines = ["# Known faults", ""]
    lines += [
        "Each is put into a right GPT-2 (`harness/faults/specimen.py`), judged by every check of the debug size and "
        "diagnosed, as a user's file is. A check is red for a fault: it kills it.",
        "",
        *table(
            ["", "", ""],
            [
                ["killed", _share(found.count("killed"), total), "all of them, is required"],
                ["localised", _share(found.count("localised"), total), f"{LEAST_LOCALISED:.0%}"],
                ["cause named", _share(found.count("named"), total), f"{LEAST_NAMED:.0%}"],
                [
                    "equivalent programs without an alarm",
                    _share(sum(not row["killed"] for row in found.controls), len(found.controls)),
                    "all of them",
                ],
            ],
        ),
        "![the kill matrix](plots/faults.png)",
        "",
        "One column a fault, one row a check, from coarse to fine. Dark: the first check to kill it. "
        "Every cell is in [faults.csv](tables/faults.csv).",
        "",
    ]
    if found.missed:
        lines += ["## Missed", "", *(f"- {escape(text)}" for text in found.missed), ""]
    lines += ["## Checks", ""]
    lines += table(
        ["check", "kills", "first to kill", "why it stays"],
        [
            [f"`{check.name}`", str(len(check.kills)), str(len(check.first)), escape(check.keep_reason)]
            for check in found.checks
        ],
        right=["kills", "first to kill"],
    )
    lines += ["## Faults", ""]
    lines += table(
        ["fault", "what", "killed by", "found at", "named"],
        [
            [
                f"`{row['id']}`",
                prose(row["what"]),
                str(sum(check["verdict"] in RED for check in row["checks"])),
                escape(_first(row).get("where", "")) + ("" if row["localised"] else " ✗"),
                escape(_first(row).get("fault", "")) + ("" if row["named"] else " ✗"),
            ]
            for row in found.faults
        ],
        right=["killed by"],
    )
    return "\n".join(lines).rstrip() + "\n"


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """The page, the table and the heat map in `folder`; the page first."""
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    path.write_text(page(rows), encoding="utf-8")
    return [path, _write_table(folder / "tables" / "faults.csv", rows), *heat_map(rows).save(folder / "plots")]


def _write_table(path: Path, rows: Sequence[Row]) -> Path:
    """One row a fault, one column a check and its cases: the verdicts."""
    judged = in_order(rows)
    checks = list(dict.fromkeys(f"{check['suite']}::{check['id']}" for row in judged for check in row["checks"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "family", "control", "where", "killed", "localised", "named", "found_where", "found_fault",
             "source", *checks]
        )  # fmt: skip
        for row in judged:
            verdicts = {f"{check['suite']}::{check['id']}": check["verdict"] for check in row["checks"]}
            first = _first(row)
            writer.writerow(
                [row["id"], row["family"], row["control"], " ".join(row["where"]), row["killed"], row["localised"],
                 row["named"], first.get("where", ""), first.get("fault", ""), row["source"],
                 *(verdicts.get(check, "") for check in checks)]
            )  # fmt: skip
    return path


def heat_map(rows: Sequence[Row]) -> Plot:
    """Checks by faults: what kills what, and which is the first."""
    found = tally(rows)
    missed = len(found.faults) - found.count("killed")
    return Plot(
        section="faults",
        name="faults",
        finding=f"{found.count('killed')} of {len(found.faults)} known faults are killed"
        + (f"; {missed} survive" if missed else ", each by the check that is dark"),
        look="One column a fault, one row a check.",
        caption="Dark blue: the first check, from coarse to fine, that turns red for the fault. Light blue: a later "
        "one. Orange: an alarm for an equivalent program, of which there must be none. Faults stand in the order of "
        "the catalogue, harness/faults/catalogue.toml; the table faults.csv has their names.",
        height=2.2 + 0.155 * len(found.checks),
        draw=lambda canvas: _draw(canvas, found),
    )


def _draw(canvas: Canvas, found: Tally) -> None:
    from matplotlib.colors import ListedColormap

    columns = [*found.faults, *found.controls]
    (axes,) = canvas.panels([0.4], left=2.35, above=0.95, below=0.08)
    cells = [[_shade(check, row) for row in columns] for check in found.checks]
    colours = ListedColormap(["#ffffff", "#b9d7ea", COLOURS[0], WRONG])
    axes.imshow(cells, cmap=colours, vmin=0, vmax=3, aspect="auto", interpolation="nearest")
    axes.grid(False)
    axes.set_yticks(range(len(found.checks)), [check.name.replace("::", " · ") for check in found.checks], size=6.2)
    axes.set_xticks([])
    for number in range(1, len(found.checks)):
        axes.axhline(number - 0.5, color="#eeeeee", linewidth=0.4)
    start = 0
    for family, size in _families(columns):
        axes.axvline(start - 0.5, color="#bbbbbb", linewidth=0.6)
        axes.annotate(
            f"{family} ({size})", (start + size / 2 - 0.5, -0.5), xytext=(0, 4), textcoords="offset points",
            rotation=62, size=6.4, color=GREY, ha="left", va="bottom", annotation_clip=False,
        )  # fmt: skip
        start += size


def _shade(check: CheckTally, row: Row) -> int:
    red = any(_name(c) == check.name and c["verdict"] in RED for c in row["checks"])
    if row["control"]:
        return 3 if red else 0
    return 2 if row["id"] in check.first else int(red)


def _families(columns: Sequence[Row]) -> Iterator[tuple[str, int]]:
    """Runs of columns of one family, and how many."""
    family, size = "", 0
    for row in columns:
        if row["family"] != family and size:
            yield family, size
            size = 0
        family, size = row["family"], size + 1
    if size:
        yield family, size


def _name(check: Row) -> str:
    return f"{check['suite']}::{check['check']}"


def _first(row: Row) -> Row:
    return row["findings"][0] if row["findings"] else {}


def _told(row: Row) -> str:
    """What the diagnosis said of a fault that it did not place or did not name."""
    first = _first(row)
    if not first:
        return "the diagnosis found nothing"
    return (
        f"found at {first.get('where') or '?'} (is {' or '.join(row['where'])}), "
        f"named {first.get('fault') or 'nothing'}"
    )


def _share(count: int, total: int) -> str:
    return f"{count}/{total}" + (f"  {count / total:.1%}" if total else "")
