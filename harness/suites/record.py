"""The result of one check: the reading, the expectation and the verdict."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from harness.core.record_files import Row
from harness.suites.check import Check

Verdict = Literal["pass", "fail", "error", "skip"]


@dataclass(frozen=True)
class Record:
    """One result: the check, the value that was measured, and the verdict.

    `found` and `expected` are both sides as text, and `where` lists the places that failed. `declared` is the reason
    of a deviation that the subject's author has declared; it does not change the verdict.
    """

    check: Check
    subject: str
    verdict: Verdict
    message: str
    seconds: float
    value: Any = None
    unit: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    found: str = ""
    expected: str = ""
    where: tuple[str, ...] = ()
    declared: str = ""

    def as_row(self, *, id: str = "", rerun: str = "") -> Row:
        """Return the record as a JSON row; `rerun` is the command that repeats the check."""
        return {
            "kind": "record",
            "id": id or f"{self.check.file}::{self.check.id}",
            "suite": self.check.suite,
            "check": self.check.name,
            "measure": self.check.measure,
            "parameters": dict(self.check.parameters),
            "subject": self.subject,
            "verdict": self.verdict,
            **({"declared": self.declared} if self.declared else {}),
            "message": self.message,
            "value": self.value,
            "unit": self.unit,
            "expected": dict(self.check.expected),
            "expected_text": self.expected,
            "found": self.found,
            "where": list(self.where),
            "why": self.check.why,
            "source": self.check.source,
            "rerun": rerun,
            "seconds": self.seconds,
            "details": self.details,
            **({"claim": self.check.claim.as_row()} if self.check.claim is not None else {}),
        }

    @classmethod
    def from_row(cls, check: Check, row: Row) -> Record:
        """Return the record of a row: the inverse of `as_row`, for a record from another process."""
        same = ("subject", "verdict", "message", "seconds", "value", "unit", "details", "found")
        return cls(
            check,
            **{key: row[key] for key in same},
            expected=row["expected_text"],
            where=tuple(row["where"]),
            declared=row.get("declared", ""),
        )
