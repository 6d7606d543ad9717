"""Which failures the causes found explain: each is judged again, with the causes declared as deviations."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.core.limits import Limits
from harness.core.record_files import Row
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
    """
    causes = {
        number: Deviation(str(each.get("fault")), (), "found by the diagnosis", "", number)
        for number, each in enumerate(findings)
        if (named := kind(str(each.get("fault")))) is not None and named.computed
    }
    small = [row for row in rows if _is_small(row) and not row.get("claim")] if causes else []
    again = _Again(judge, limits, tuple(declared), tuple(causes.values()))
    until = time.monotonic() + seconds
    checks, judged, needed = [], 0, Counter[int]()
    for row in small:
        if time.monotonic() > until:
            break
        judged += 1
        if found := again.causes_of(Check.from_row(row)):
            checks.append(row["id"])
            needed.update(each.line for each in found)
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
    _needed: dict[tuple[str, str], list[Deviation]] = field(default_factory=dict)  # by measure: it takes long to find

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
        if self._gpt2(check, ()) != "pass" or self._gpt2(check, self.causes) != "fail":
            return []
        return [each for each in self.causes if self._gpt2(check, (each,)) == "fail"] or list(self.causes)

    def _passes(self, check: Check, causes: Sequence[Deviation]) -> bool:
        return self.judge.judge(check, self.limits, [*self.declared, *causes]).verdict == "pass"

    def _gpt2(self, check: Check, causes: Sequence[Deviation]) -> str:
        return self.judge.judge_gpt2(check, self.limits, [*self.declared, *causes]).verdict
