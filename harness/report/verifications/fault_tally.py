"""The tally of the kill matrix: which faults are killed, localised and named, and by which checks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from harness.core.record_files import Row

RED = ("fail", "error")
# Group of faults -> what it is called, and the least shares that are killed, localised and named; see "Add a fault" in
# CONTRIBUTING.md. Nobody is shown which faults of the counted half were missed, so nobody develops on them.
COUNTED = "counted"
GROUPS = {
    "listed": ("kinds that a table of the diagnosis lists", (1.0, 0.95, 0.85)),
    "unlisted": ("kinds that only the search finds", (0.95, 0.85, 0.70)),
    COUNTED: ("the half that is only counted", (0.95, 0.90, 0.80)),
    "technique": ("mistakes in speculation, batching, experts and ranks", (1.0, 0.0, 0.0)),
    "training": ("mistakes in training programs", (1.0, 0.85, 0.75)),
    "training-counted": ("mistakes in training programs that are only counted", (0.95, 0.85, 0.75)),
}
FIGURES = ("killed", "localised", "named")


@dataclass(frozen=True)
class CheckTally:
    """The faults that one [[check]] of a suite kills: all, and those that no coarser check kills (`first`)."""

    name: str  # suite::check
    keep_reason: str
    kills: frozenset[str]
    first: frozenset[str]

    @property
    def earns_its_place(self) -> bool:
        """True if it kills a fault that no coarser check kills, or gives a reason to keep it."""
        return bool(self.first or self.keep_reason)


@dataclass(frozen=True)
class Tally:
    """The figures of a kill matrix, and the requirements that it misses."""

    faults: list[Row]
    controls: list[Row]
    checks: list[CheckTally]
    seconds: float = math.nan
    whole: bool = True  # all faults of the catalogue; only then does a check without a kill mean anything
    missed: list[str] = field(default_factory=list)

    def group(self, name: str) -> list[Row]:
        """Return the faults of a group, a key of GROUPS."""
        return [row for row in self.faults if group_of(row) == name]


def in_order(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of the faults in the order of the catalogue, which is in the header.

    The record file has them in the order in which they were finished.
    """
    head = next((row for row in rows if row.get("kind") == "header"), {})
    position = {id: index for index, id in enumerate(head.get("faults", ()))}
    judged = [row for row in rows if row.get("kind") == "fault"]
    return sorted(judged, key=lambda row: position.get(row["id"], len(position)))


def tally(rows: Sequence[Row]) -> Tally:
    """Return the tally of the rows of a record file: header, faults, footer."""
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
    """Yield the kills of each check, from coarse to fine, which is the order of the header."""
    kills: dict[str, set[str]] = {check_name(check): set() for check in order}
    keep_reasons = {check_name(check): str(check["keep_reason"]) for check in order}
    for row in judged:
        for check in row["checks"]:
            if check["verdict"] in RED and not row["control"]:
                kills[check_name(check)].add(row["id"])
    seen: set[str] = set()
    for name, killed in kills.items():
        yield CheckTally(name, keep_reasons[name], frozenset(killed), frozenset(killed - seen))
        seen |= killed


def group_of(row: Row) -> str:
    """Return the group of a fault, a key of GROUPS."""
    return str(row.get("group", "listed"))


def is_counted_only(row: Row) -> bool:
    """Return True for a fault of which nobody is shown whether it was missed."""
    return group_of(row).endswith(COUNTED)


def count(rows: Sequence[Row], key: str) -> int:
    """Return how many faults are killed, localised or named."""
    return sum(bool(row[key]) for row in rows)


def _missed(found: Tally) -> Iterator[str]:
    """Yield the requirements that are missed, a line each."""
    if survivors := [row["id"] for row in found.group("listed") if not row["killed"]]:
        yield f"not killed: {', '.join(survivors)}"
    for group, (title, shares) in GROUPS.items() if found.whole else ():
        rows = found.group(group)
        for key, least in zip(FIGURES, shares, strict=True):
            if (reached := count(rows, key)) < least * len(rows) and (group, key) != ("listed", "killed"):
                yield f"{title}: {key} {reached} of {len(rows)}, expected {least:.0%}"
    for row in found.controls:
        if row["killed"]:
            checks = [check["id"] for check in row["checks"] if check["verdict"] in RED]
            yield f"false alarm: {row['id']}, by {', '.join(checks[:3])}"
    if found.whole:
        for check in found.checks:
            if not check.earns_its_place:
                yield f"{check.name} kills nothing that a coarser check does not kill, and has no keep_reason"


def summary(found: Tally) -> str:
    """Return the tally as the terminal shows it."""
    total, controls = len(found.faults), len(found.controls)
    quiet = sum(not row["killed"] for row in found.controls)
    lines = [
        f"{total} faults, {controls} controls" + ("" if math.isnan(found.seconds) else f" in {found.seconds:.0f} s")
    ]
    for group, (title, _) in GROUPS.items():
        if rows := found.group(group):
            lines.append(f"  {title}")
            lines += [f"    {key:11}{share(count(rows, key), len(rows))}" for key in FIGURES]
    lines.append(f"  controls without an alarm  {share(quiet, controls)}")
    if found.whole:
        kept_checks = [check for check in found.checks if not check.first]
        unique = len(found.checks) - len(kept_checks)
        lines.append(f"  checks that kill what no coarser one kills  {share(unique, len(found.checks))}")
        lines += [
            f"    {check.name} ({len(check.kills)} killed) is kept: {check.keep_reason or 'no reason given'}"
            for check in kept_checks
        ]
    for row in found.faults:
        if not (row["localised"] and row["named"]) and row["killed"] and not is_counted_only(row):
            lines.append(f"  {row['id']}: {_describe_miss(row)}")
    return "\n".join([*lines, *(f"MISSED  {text}" for text in found.missed)])


def check_name(check: Row) -> str:
    """Return suite and name of a check: `parity::logits`."""
    return f"{check['suite']}::{check['check']}"


def first_finding(row: Row) -> Row:
    """Return the first finding of the diagnosis; an empty mapping if it has none."""
    return row["findings"][0] if row["findings"] else {}


def _describe_miss(row: Row) -> str:
    """Return what the diagnosis found for a fault that it did not localise or did not name."""
    first = first_finding(row)
    if not first:
        return "the diagnosis found nothing"
    return (
        f"found at {first.get('where') or '?'} (is {' or '.join(row['where'])}), "
        f"named {first.get('fault') or first.get('cause') or 'nothing'}"
    )


def share(count: int, total: int) -> str:
    """Return `289/289  100.0%`."""
    return f"{count}/{total}" + (f"  {count / total:.1%}" if total else "")
