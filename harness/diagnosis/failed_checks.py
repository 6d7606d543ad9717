"""Findings from failed checks alone, for checks whose reading itself says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from harness.core.source_lines import SourceLine, location
from harness.diagnosis.finding import Finding
from harness.diagnosis.rule import Rule
from harness.diagnosis.rules import RULES
from harness.suites.record import Record

LONGEST_EVIDENCE = 220  # characters


def findings_from(records: Sequence[Record]) -> list[Finding]:
    """Return one finding for each fault that a rule reads from a failed check, in the order of the rules."""
    found: dict[tuple[str, str], Finding] = {}
    for rule in RULES:
        for record in records:
            if _applies(rule, record) and re.search(rule.pattern, _text(record, rule)):
                line = record.details.get("line")
                said = (line and record.details.get("hint")) or record.message
                evidence = f"{record.check.suite}/{record.check.id}: {said}"[:LONGEST_EVIDENCE]
                # One fault has one finding: that of the first rule that reads it.
                key = (rule.fault, "" if rule.fault else rule.cause)
                at = location(SourceLine(*line) if line else None)
                found.setdefault(key, Finding(rule.where, rule.fault, rule.cause, evidence, *at))
    return list(found.values())


def _applies(rule: Rule, record: Record) -> bool:
    """Return True if a rule may read a record: what a check that raised says of its measure is not known."""
    if record.check.measure != rule.measure or record.details.get("because"):
        return False
    return record.verdict == "fail" or (record.verdict == "error" and rule.errors)


def _text(record: Record, rule: Rule) -> str:
    """Return the text that a rule's pattern is searched in; see `Rule`."""
    parameters = ",".join(f"{key}={value}" for key, value in record.check.parameters.items())
    hint = str(record.details.get("hint") or "") if rule.hint else ""
    return " | ".join((parameters, *_places(record), record.message, hint))


def _places(record: Record) -> Iterator[str]:
    value = record.value
    if isinstance(value, dict):
        answers = record.details.get("answers", {})
        for place in record.where:
            yield f"{place}: {value.get(place)}{' ' + str(answers[place]) if place in answers else ''}"
    elif value is not None:
        yield str(value)
