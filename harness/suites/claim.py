"""A claim of the lessons: a figure with its derivation, and what a measurement finds of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from harness.core.errors import SuiteError, did_you_mean
from harness.core.record_files import Row
from harness.suites.expectations import describe, judge, show
from harness.suites.measure_registry import Reading

HOLDS = "holds"
CORRECTED = "holds with a correction"
ELSEWHERE = "holds for another setting"
DOES_NOT_HOLD = "does not hold"
FINDINGS = (HOLDS, CORRECTED, ELSEWHERE, DOES_NOT_HOLD)
NOT_MEASURABLE = "not measurable here"
# Of a claim that depends on the machine, or on the size of a training run: every finding is an answer.
AS_THE_RUN_FINDS = "as the run finds"

LESSONS = ("building", "pretraining", "scaling", "weights")
# Where the measurement is made: by the check itself, or by a run whose records the check reads.
SOURCES = ("here", "lessons", "sweep", "bench", "pretrained")
# The levels of the lessons' verification chain.
LEVELS = ("shapes and counts", "outputs against a reference", "training behaviour")

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Claim:
    """One figure of the lessons.

    Attributes:
        lesson: The lesson that states it, one of LESSONS.
        figure: The figure as it is stated: `55x`, `37.7 MB`.
        says: The sentence that states it, in other words.
        derived: The closed form in words, with its value.
        finding: What the ledger says of it: one of FINDINGS, NOT_MEASURABLE or AS_THE_RUN_FINDS.
        claimed: The expectation that the figure is; empty if there is nothing to measure.
        corrected: The expectation that holds instead of it; empty if there is none.
        elsewhere: The setting in which it holds: `setting` in words, `parameters` and `at` where they differ, and
            `expect`. Empty if there is none.
        at: The place of the reading that the figure is about; empty for the whole reading.
        by: Where it is measured, one of SOURCES.
        level: The level of the verification chain that it belongs to, or empty.
    """

    lesson: str
    figure: str
    says: str
    derived: str
    finding: str
    claimed: Mapping[str, Any] = field(default_factory=dict)
    corrected: Mapping[str, Any] = field(default_factory=dict)
    elsewhere: Mapping[str, Any] = field(default_factory=dict)
    at: str = ""
    by: str = "here"
    level: str = ""

    @property
    def expected(self) -> dict[str, Any]:
        """The expectation of the finding: that of the ledger, or any if it depends on the run."""
        return {"one_of": list(FINDINGS)} if self.finding == AS_THE_RUN_FINDS else {"equals": self.finding}

    def as_row(self) -> Row:
        """Return the claim as a JSON row, with its expectations, and with them in words."""
        expected = {"claimed": self.claimed, "corrected": self.corrected, "elsewhere": self.elsewhere.get("expect")}
        expected = {name: each for name, each in expected.items() if each}
        return {
            **{key: getattr(self, key) for key in ("lesson", "figure", "says", "derived", "finding", "by", "level")},
            "setting": self.elsewhere.get("setting", ""),
            "expected": expected,
            "expected_text": {name: describe(each) for name, each in expected.items() if each},
        }


def find(claim: Claim, parameters: Parameters, read: Callable[[Parameters], Reading]) -> Reading:
    """Return the finding on a claim: as claimed, else corrected, else in another setting, else that it does not hold.

    Args:
        claim: The claim.
        parameters: Of its measure.
        read: From parameters to the measure's reading; called again for another setting only if that is needed.

    Returns:
        A reading whose value is one of FINDINGS. `details["readings"]` has what was measured in each setting.

    Raises:
        SuiteError: The reading has no place `at`.
    """
    here = _at(read(parameters), claim.at)
    readings = [_row("", claim.at, here)]
    finding = next(
        (
            finding
            for finding, expected in ((HOLDS, claim.claimed), (CORRECTED, claim.corrected))
            if expected and judge(here[0], expected).passed
        ),
        DOES_NOT_HOLD,
    )
    if finding == DOES_NOT_HOLD and claim.elsewhere:
        other = claim.elsewhere
        place = other.get("at", claim.at)
        there = _at(read({**parameters, **other.get("parameters", {})}), place)
        readings.append(_row(other["setting"], place, there))
        if judge(there[0], other["expect"]).passed:
            finding = ELSEWHERE
    return Reading(finding, details={"readings": readings, "hint": _hint(claim, readings)})


def _at(reading: Reading, place: str) -> tuple[Reading, Reading]:
    """Return the reading at a place, and the whole reading."""
    if not place:
        return reading, reading
    if not isinstance(reading.value, Mapping) or place not in reading.value:
        known = reading.value if isinstance(reading.value, Mapping) else ()
        raise SuiteError(f"the claim is about the place '{place}' of a reading; {did_you_mean(place, known)}")
    return replace(reading, value={place: reading.value[place]}), reading


def _row(setting: str, place: str, reading: tuple[Reading, Reading]) -> Row:
    """Return a reading as a JSON row: its value (at the place), every place, and the measure's details."""
    here, whole = reading
    assert not place or isinstance(here.value, Mapping)
    return {
        "setting": setting,
        "at": place,
        "value": here.value[place] if isinstance(here.value, Mapping) and place else here.value,
        "unit": whole.details.get("units", {}).get(place, here.unit),  # places may have units of their own
        "places": dict(whole.value) if isinstance(whole.value, Mapping) else {},
        "details": dict(whole.details),
    }


def _hint(claim: Claim, readings: list[Row]) -> str:
    """Return what was measured beside what was claimed, for the message of a check that fails."""
    parts = [f"claimed {describe(claim.claimed)}"]
    if claim.corrected:
        parts.append(f"corrected {describe(claim.corrected)}")
    for row in readings:
        setting = f" with {row['setting']}" if row["setting"] else ""
        value = row["value"]
        text = ", ".join(f"{k}: {show(v)}" for k, v in value.items()) if isinstance(value, dict) else show(value)
        parts.append(f"measured{setting} {text} {row['unit']}".rstrip())
    return "; ".join(parts)
