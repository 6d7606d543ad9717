"""Findings from failed checks alone, for checks whose reading itself says what is wrong."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from harness.diagnosis.finding import Finding
from harness.diagnosis.rules import RULES
from harness.suites.record import Record

LONGEST_EVIDENCE = 220  # characters


def findings_from(records: Sequence[Record]) -> list[Finding]:
    """Return one finding for each fault that a rule reads from a failed check, in the order of the rules."""
    failed = [record for record in records if record.verdict in ("fail", "error")]
    found: dict[str, Finding] = {}
    for rule in RULES:
        for record in failed:
            if (
                record.check.measure == rule.measure
                and rule.fault not in found
                and re.search(rule.pattern, _text(record))
            ):
                evidence = f"{record.check.suite}/{record.check.id}: {record.message}"
                found[rule.fault] = Finding(rule.where, rule.fault, rule.cause, evidence[:LONGEST_EVIDENCE])
    return list(found.values())


def _text(record: Record) -> str:
    """Return the text that the rules' patterns are searched in: parameters, failed places with values, message."""
    parameters = ",".join(f"{key}={value}" for key, value in record.check.parameters.items())
    return " | ".join((parameters, *_places(record), record.message))


def _places(record: Record) -> Iterator[str]:
    value = record.value
    if isinstance(value, dict):
        answers = record.details.get("answers", {})
        for place in record.where:
            yield f"{place}: {value.get(place)}{' ' + str(answers[place]) if place in answers else ''}"
    elif value is not None:
        yield str(value)
