"""The interface of a judge: it runs checks on one subject and diagnoses it, in this process or in another."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from harness.core.limits import Limits
from harness.core.record_files import Row
from harness.oracle.deviations import Deviation
from harness.suites.check import Check
from harness.suites.record import Record


class Judge(Protocol):
    """Runs checks on one subject."""

    def judge(self, check: Check, limits: Limits, deviations: Sequence[Deviation] = ()) -> Record:
        """Return the record of one check. With deviations, the subject is compared with GPT-2 that has them."""
        ...

    def judge_gpt2(self, check: Check, limits: Limits, deviations: Sequence[Deviation]) -> Record:
        """Return the record of one check on GPT-2 itself with the deviations, in place of the subject."""
        ...

    def diagnose(self, rows: Sequence[Row], deviations: Sequence[Deviation] = ()) -> Row:
        """Return the diagnosis of the subject as a row, given its records as rows; beyond the deviations, if any."""
        ...

    def unfounded(self, deviations: Sequence[Deviation]) -> dict[str, str]:
        """Return what is wrong with each computed deviation that the subject does not have, by `file:line`."""
        ...

    def why_unreadable(self) -> str:
        """Return the screen that says why the subject cannot be built or called; "" if it can."""
        ...

    def close(self) -> None:
        """Release the subject."""
        ...
