"""The report of the kill matrix, a pure function of its records: a page, a table and a heat map."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

from harness.core.record_files import Row
from harness.report.markdown import escape, prose, table
from harness.report.page_files import write_page
from harness.report.verifications.fault_heat_map import heat_map
from harness.report.verifications.fault_tally import (
    FIGURES,
    GROUPS,
    RED,
    Tally,
    count,
    first_finding,
    in_order,
    is_counted_only,
    share,
    tally,
)

PAGE = "faults.md"


def write(folder: Path, rows: Sequence[Row]) -> list[Path]:
    """Write the page, the table and the heat map into `folder`; return their paths, the page first."""
    for name in ("tables", "plots"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    path = folder / PAGE
    write_page(path, page(rows))
    return [path, _write_table(folder / "tables" / "faults.csv", rows), *heat_map(rows).save(folder / "plots")]


def page(rows: Sequence[Row]) -> str:
    """Return the page in Markdown."""
    found = tally(rows)
    lines = ["# Known faults", ""]
    lines += [
        "Each fault is put into a correct GPT-2 (`harness/faults/specimen.py`). Every check of the debug size then "
        "judges it, and it is diagnosed, as a user's file is. A check that fails kills the fault.",
        "",
        *table(["", "found", "required"], _requirements(found)),
        "![the kill matrix](plots/faults.png)",
        "",
        "One column for each fault, one row for each check, from coarse to fine. Dark: the first check to kill it. "
        "Every cell is in [faults.csv](tables/faults.csv).",
        "",
    ]
    if found.missed:
        lines += ["## Missed requirements", "", *(f"- {escape(text)}" for text in found.missed), ""]
    lines += ["## Checks", ""]
    lines += table(
        ["check", "kills", "first to kill", "why it is kept"],
        [
            [f"`{check.name}`", str(len(check.kills)), str(len(check.first)), escape(check.keep_reason)]
            for check in found.checks
        ],
        right=["kills", "first to kill"],
    )
    lines += ["## Faults", ""]
    lines += table(
        ["fault", "what it changes", "killed by", "located at", "named"],
        [_fault_cells(row) for row in found.faults if not is_counted_only(row)],
        right=["killed by"],
    )
    lines += [
        f"{sum(map(is_counted_only, found.faults))} further faults, chosen by lot, are only counted, so that their "
        "misses are not mended one by one.",
        "",
    ]
    return "\n".join(lines).rstrip() + "\n"


def _requirements(found: Tally) -> list[list[str]]:
    """Return a row for each requirement: its name, what was found, what is required."""
    quiet = sum(not row["killed"] for row in found.controls)
    figures = [
        [f"{title}: {key}", share(count(rows, key), len(rows)), f"{least:.0%}"]
        for group, (title, shares) in GROUPS.items()
        if (rows := found.group(group))
        for key, least in zip(FIGURES, shares, strict=True)
    ]
    return [*figures, ["equivalent programs without an alarm", share(quiet, len(found.controls)), "100%"]]


def _fault_cells(row: Row) -> list[str]:
    """Return a fault as a row of the table; a cross marks a wrong location or cause."""
    first = first_finding(row)
    return [
        f"`{row['id']}`",
        prose(row["what"]),
        str(sum(check["verdict"] in RED for check in row["checks"])),
        escape(first.get("where", "")) + ("" if row["localised"] else " ✗"),
        escape(first.get("fault") or first.get("cause", "")) + ("" if row["named"] else " ✗"),
    ]


def _write_table(path: Path, rows: Sequence[Row]) -> Path:
    """Write the verdicts: one row for each fault that is not only counted, one column for each case of each check."""
    judged = in_order(rows)
    checks = list(dict.fromkeys(f"{check['suite']}::{check['id']}" for row in judged for check in row["checks"]))
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(
            ["id", "family", "control", "where", "killed", "localised", "named", "found_where", "found_fault",
             "source", *checks]
        )  # fmt: skip
        for row in (row for row in judged if not is_counted_only(row)):
            verdicts = {f"{check['suite']}::{check['id']}": check["verdict"] for check in row["checks"]}
            first = first_finding(row)
            writer.writerow(
                [row["id"], row["family"], row["control"], " ".join(row["where"]), row["killed"], row["localised"],
                 row["named"], first.get("where", ""), first.get("fault", ""), row["source"],
                 *(verdicts.get(check, "") for check in checks)]
            )  # fmt: skip
    return path
