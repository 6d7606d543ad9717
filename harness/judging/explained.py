"""Which failures the causes found explain: those checks that pass once the causes are declared as deviations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from harness.core.record_files import Row
from harness.oracle.deviations import Deviation, kind
from harness.suites.check import Check
from harness.suites.record import Record

SECONDS = 20.0  # in which failures are judged again; those that are left are not known to be explained
FINDING = "finding"  # the `file` of a deviation that stands for a finding; its `line` is the finding's number


@dataclass(frozen=True)
class Explained:
    """The failures that were judged again.

    Attributes:
        checks: The ids of those that follow from the causes, larger sizes of them included.
        judged: How many were judged again.
        passing: How many of these the causes explain.
        by_finding: For each finding, how many of them need it.
    """

    checks: tuple[str, ...]
    judged: int
    passing: int
    by_finding: tuple[int, ...]


def as_deviations(findings: Sequence[Row]) -> list[Deviation]:
    """Return a declaration for each finding that has an id which can be declared."""
    return [
        Deviation(str(each["fault"]), (), "found by the diagnosis", FINDING, number)
        for number, each in enumerate(findings)
        if each.get("fault") and kind(str(each["fault"])) is not None
    ]


def explained(
    rows: Sequence[Row],
    findings: Sequence[Row],
    judge_declared: Callable[[Check, Record], Record],
    *,
    seconds: float = SECONDS,
) -> Explained:
    """Judge failures of the debug size again, with the findings declared, and return which of them then pass.

    Args:
        rows: The records of the failed checks.
        findings: The findings, in the order in which `as_deviations` numbered them.
        judge_declared: Returns the record of a failed check marked as declared if the findings explain it.
        seconds: The time after which no further check is judged.
    """
    until = time.monotonic() + seconds
    same: set[str] = set()
    needed: Counter[int] = Counter()
    small = [row for row in rows if str(row["parameters"].get("size", "debug")).startswith("debug")]
    judged = []
    for row in small:
        if time.monotonic() > until:
            break
        check = Check.from_row(row)
        record = judge_declared(check, Record.from_row(check, row))
        judged.append(row)
        if record.declared:
            same.add(row["id"])
            needed.update(set(_findings_of(record)))
    open_ = {(row["suite"], row["check"]) for row in small if row["id"] not in same}
    closed = {(row["suite"], row["check"]) for row in small if row["id"] in same} - open_
    # A larger size is not judged again: it takes long. It follows if every case of its check at the debug size does.
    larger = [row["id"] for row in rows if row not in small and (row["suite"], row["check"]) in closed]
    return Explained((*same, *larger), len(judged), len(same), tuple(needed[number] for number in range(len(findings))))


def _findings_of(record: Record) -> Iterator[int]:
    """Yield the numbers of the findings that a record needs to pass."""
    for place in record.details.get("deviations", ()):
        file, _, number = str(place).partition(":")
        if file == FINDING and number.isdigit():
            yield int(number)
