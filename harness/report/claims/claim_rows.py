"""The claims of a run as rows: what was claimed, derived and measured, and the finding."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.core.record_files import Row
from harness.report.formatting import plain
from harness.report.json_values import as_float, as_list, as_mapping, mappings
from harness.report.run_records import RunRecords

# As the suite has them; the report reads records only.
HOLDS, CORRECTED, ELSEWHERE, DOES_NOT_HOLD = (
    "holds",
    "holds with a correction",
    "holds for another setting",
    "does not hold",
)
NOT_MEASURABLE = "not measurable here"
FINDINGS = (HOLDS, CORRECTED, ELSEWHERE, DOES_NOT_HOLD, NOT_MEASURABLE)
AS_THE_RUN_FINDS = "as the run finds"


@dataclass(frozen=True)
class MeasuredReading:
    """One reading of a claim: `setting` is empty for the claim's own, `value` is at the place that it is about."""

    setting: str
    at: str
    value: object
    unit: str
    places: Row
    details: Row

    @classmethod
    def of(cls, row: Row) -> MeasuredReading:
        """Return the reading of a row; what it lacks is empty."""
        return cls(
            setting=plain(row.get("setting") or ""),
            at=plain(row.get("at") or ""),
            value=row.get("value"),
            unit=plain(row.get("unit") or ""),
            places=as_mapping(row.get("places")),
            details=as_mapping(row.get("details")),
        )

    @property
    def spread(self) -> Row:
        """The lowest and highest value, and over what; empty if there is one value only."""
        return as_mapping(self.details.get("spread"))

    @property
    def by(self) -> str:
        """What gave it if the subject had no part in it, `arithmetic` or `torch alone`; empty for a measurement."""
        return plain(self.details.get("by") or "")

    @property
    def origin(self) -> Row:
        """The run that it was read from; empty for a measurement of this run."""
        return as_mapping(self.details.get("run"))


@dataclass(frozen=True)
class ClaimRow:
    """One claim: its words, its readings, the finding of the measurement and that of the ledger."""

    name: str
    lesson: str
    level: str
    figure: str
    says: str
    derived: str
    by: str
    ledger: str
    finding: str
    verdict: str
    message: str
    setting: str
    expected: Row = field(default_factory=dict)
    expected_text: Row = field(default_factory=dict)
    readings: tuple[MeasuredReading, ...] = ()
    row: Row = field(default_factory=dict)

    @classmethod
    def of(cls, check: Row) -> ClaimRow:
        """Return the claim of a check's record. A skipped one is not measurable here; a broken one has no finding."""
        claim, verdict = as_mapping(check.get("claim")), str(check.get("verdict"))
        found = NOT_MEASURABLE if verdict == "skip" else str(check.get("value") or "")
        words = {key: plain(claim.get(key) or "", longest=1000) for key in ("says", "derived", "figure", "setting")}
        return cls(
            name=plain(check.get("check")),
            lesson=plain(claim.get("lesson") or ""),
            level=plain(claim.get("level") or ""),
            by=plain(claim.get("by") or "here"),
            ledger=plain(claim.get("finding") or ""),
            finding=found if found in FINDINGS else "",
            verdict=verdict,
            message=plain(check.get("message") or "", longest=1000),
            expected=as_mapping(claim.get("expected")),
            expected_text=as_mapping(claim.get("expected_text")),
            readings=tuple(map(MeasuredReading.of, mappings(as_mapping(check.get("details")).get("readings")))),
            row=check,
            **words,
        )

    @property
    def deciding(self) -> MeasuredReading | None:
        """The reading that the finding rests on: of another setting if it holds there. None if nothing was measured."""
        if not self.readings:
            return None
        return self.readings[-1] if self.finding == ELSEWHERE else self.readings[0]

    @property
    def claimed_value(self) -> float | None:
        """The number that is claimed; None if the claim is no number."""
        expected = as_mapping(self.expected.get("claimed"))
        return as_float(as_mapping(expected.get("close_to")).get("value")) or as_float(expected.get("equals"))


def claims_of(run: RunRecords) -> list[ClaimRow]:
    """Return the claims of a run, of its first subject, in the order of the ledger."""
    checks = [check for check in run.checks if isinstance(check.get("claim"), dict)]
    first = checks[0].get("subject") if checks else None
    return [ClaimRow.of(check) for check in checks if check.get("subject") == first]


def tally(claims: Sequence[ClaimRow]) -> dict[str, int]:
    """Return how many claims have each finding; those that broke are under ""."""
    found = [claim.finding for claim in claims]
    return {finding: found.count(finding) for finding in (*FINDINGS, "") if finding in found}


def curve_of(claim: ClaimRow, *, columns: int) -> list[list[float]]:
    """Return the points of a claim's curve, positive numbers in so many columns; an empty list if it has none."""
    points = as_list(claim.readings[0].details.get("curve")) if claim.readings else []
    numbers = [[as_float(value) or 0.0 for value in as_list(point)] for point in points]
    return [point for point in numbers if len(point) == columns and min(point) > 0]
