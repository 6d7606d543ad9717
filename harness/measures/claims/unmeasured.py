"""The measure of a claim that cannot be measured here."""

from __future__ import annotations

from harness.core.errors import MissingResource
from harness.subjects.protocols import Subject
from harness.suites.measure_registry import Reading, measure


@measure
def missing_measurement(subject: Subject, *, missing: str) -> Reading:
    """Raise MissingResource with what is missing, so that the claim is skipped and says so."""
    raise MissingResource(missing)
