"""Which failures the causes found explain: each is judged again, with the causes declared as deviations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.core.limits import Limits
from harness.core.record_files import Row
from harness.core.second_process import second_process
from harness.judging.judge import Judge
from harness.oracle.deviations import Deviation, kind
from harness.suites.check import Check

SECONDS = 20.0  # in which failures are judged again; those that are left are not known to be explained


@dataclass(frozen=True)
class Explained:
    """The failures that were judged again.

    Attributes:
        checks: The ids of those that the causes explain.
        judged: How many were judged again.
        by_finding: For each finding, how many of them need it.
    """

    checks: tuple[str, ...]
    judged: int
    by_finding: tuple[int, ...]


def explained(
    rows: Sequence[Row],
    findings: Sequence[Row],
    judge: Judge,
    limits: Limits,
    *,
    declared: Sequence[Deviation] = (),
    seconds: float = SECONDS,
    two_processes: bool = False,
) -> Explained:
    """Judge failures of the debug size again, with the findings declared, and return which of them these explain.

    A larger size takes long and a claim is about GPT-2 alone: neither is judged again.

    Args:
        rows: The records of the failed checks.
        findings: The findings; those that no GPT-2 can be computed for explain nothing.
        judge: The judge of the subject.
        limits: The limits of each check.
        declared: The deviations that the subject declares.
        seconds: The time after which no further check is judged.
        two_processes: Judge some of them in a second process, forked from this one.
    """
    causes = {
        number: Deviation(str(each.get("fault")), (), "found by the diagnosis", "", number)
        for number, each in enumerate(findings)
        if (named := kind(str(each.get("fault")))) is not None and named.computed
    }
    small = [row for row in rows if _is_small(row) and not row.get("claim")] if causes else []
    again = _Again(judge, limits, tuple(declared), tuple(causes.values()))
    until = time.monotonic() + seconds
    groups: dict[str, list[Row]] = {}  # of which one process judges all: the first says which causes are needed
    for row in small:
        groups.setdefault(f"{row['measure']} {row['parameters'].get('compare', '')}", []).append(row)

    def causes_in(group: str) -> list[list[int]]:
        """Return the numbers of each row's causes, until the time is up."""
        found = list[list[int]]()
        for row in groups[group]:
            if time.monotonic() > until:
                break
            found.append([each.line for each in again.causes_of(Check.from_row(row))])
        return found

    other = second_process(list(groups), causes_in, 2 * seconds) if two_processes else None
    checks, judged, needed = [], 0, Counter[int]()
    try:
        for group, rows_in in groups.items():
            found = other.answer(group) if other is not None else None
            for row, numbers in zip(rows_in, causes_in(group) if found is None else found, strict=False):
                judged += 1
                if numbers:
                    checks.append(row["id"])
                    needed.update(numbers)
    finally:
        if other is not None:
            other.close()
    return Explained(tuple(checks), judged, tuple(needed[number] for number in range(len(findings))))


def _is_small(row: Row) -> bool:
    return str(row["parameters"].get("size", "debug")).startswith("debug")


@dataclass
class _Again:
    """Judges failed checks again, with causes declared."""

    judge: Judge
    limits: Limits
    declared: tuple[Deviation, ...]
    causes: tuple[Deviation, ...]
    # By measure, since these take long to find: the causes that are needed, and those by which GPT-2 fails.
    _needed: dict[tuple[str, str], list[Deviation]] = field(default_factory=dict)
    _failing: dict[tuple[str, str], list[Deviation]] = field(default_factory=dict)

    def causes_of(self, check: Check) -> list[Deviation]:
        """Return the causes that explain the failure of a check; [] if they do not.

        They do if the check passes in comparison with the GPT-2 that has them, or if that GPT-2 fails the check as
        well, and the GPT-2 without them passes it.
        """
        measure = (check.measure, str(check.parameters.get("compare", "")))
        if self._passes(check, self.causes):
            if measure not in self._needed:
                without = {each: [other for other in self.causes if other is not each] for each in self.causes}
                needed = [each for each in self.causes if not (without[each] and self._passes(check, without[each]))]
                self._needed[measure] = needed or list(self.causes)
            return self._needed[measure]
        if self._gpt2(check, self.causes) != "fail":
            return []
        if measure not in self._failing:
            passes = self._gpt2(check, ()) == "pass"
            alone = [each for each in self.causes if len(self.causes) == 1 or self._gpt2(check, (each,)) == "fail"]
            self._failing[measure] = (alone or list(self.causes)) if passes else []
        return self._failing[measure]

    def _passes(self, check: Check, causes: Sequence[Deviation]) -> bool:
        return self.judge.judge(check, self.limits, [*self.declared, *causes]).verdict == "pass"

    def _gpt2(self, check: Check, causes: Sequence[Deviation]) -> str:
        return self.judge.judge_gpt2(check, self.limits, [*self.declared, *causes]).verdict
