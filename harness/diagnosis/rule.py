"""A rule that names the cause of a failed check from its measure and what it found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Rule:
    """One rule: a measure, a pattern, and the place, the fault's id and the cause of the finding.

    The pattern is searched in the check's parameters ("case=plain"), its failed places with their values
    ("ids: True"), and its message; with `hint`, in the reading's hint too. `errors`: whether the rule also reads checks
    that could not be run to their end; the cause says no more than that it fails then.
    """

    measure: str
    pattern: str
    where: str
    fault: str
    cause: str
    errors: bool = False
    hint: bool = False
