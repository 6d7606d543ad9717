"""Failures that a declared deviation excuses, whatever the check finds."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from harness.oracle.deviations import Deviation
from harness.suites.record import Record


def excused(record: Record, deviations: Sequence[Deviation]) -> Record | None:
    """Return the record marked as declared, if a deviation excuses its check whatever that finds; otherwise None."""
    name = f"{record.check.suite}::{record.check.id}"
    for each in deviations:
        if each.excuses(name):
            details = details_with(record, [each], name)
            return replace(record, declared=f"{each.says}: {each.reason}", details=details)
    return None


def details_with(record: Record, deviations: Sequence[Deviation], check: str) -> dict[str, Any]:
    """Return the record's details with the places (`file:line`, and with the pattern) of what excused the check."""
    places = [each.place for each in deviations]
    places += [
        f"{each.place} {pattern}"
        for each in deviations
        for pattern in each.checks
        if fnmatch.fnmatchcase(check, pattern)
    ]
    return {**record.details, "deviations": places}
