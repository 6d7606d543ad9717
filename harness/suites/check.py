"""One check of a suite: a measure with its parameters, and the expectation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harness.core.record_files import Row
from harness.suites.claim import Claim


@dataclass(frozen=True)
class Check:
    """One check, ready to run: measure + parameters + expectation + why + source.

    `varying` names the parameters by which the cases of one check differ. `file` and `line` are its location.
    """

    suite: str
    name: str
    measure: str
    parameters: Mapping[str, Any]
    varying: tuple[str, ...]
    expected: Mapping[str, Any]
    why: str
    source: str
    file: str = ""
    line: int = 0
    keep_reason: str = ""  # why the check is kept although coarser checks kill every fault that it kills
    claim: Claim | None = None  # the claim of the lessons that it tests: its reading is then the finding

    @classmethod
    def from_fields(cls, fields: Mapping[str, Any]) -> Check:
        """Return the check of its fields as JSON has them: the inverse of `dataclasses.asdict`."""
        claim = fields.get("claim")
        return cls(**{**fields, "varying": tuple(fields["varying"]), "claim": Claim(**claim) if claim else None})

    @classmethod
    def from_row(cls, row: Row) -> Check:
        """Return the check of a record's row, as a diagnosis needs it: without its location and `varying`."""
        return cls(
            row["suite"],
            row["check"],
            row["measure"],
            row["parameters"],
            (),
            row["expected"],
            row["why"],
            row["source"],
        )

    @property
    def id(self) -> str:
        """The name of the test item: the check's name and the parameters that vary, as `name,size=124M,tied=true`."""
        return ",".join([self.name, *(f"{key}={_in_name(self.parameters[key])}" for key in self.varying)])


def _in_name(value: Any) -> str:
    """Return a parameter's value as it is written in a name: `true` and not `True`, `6+1+3` and not `[6, 1, 3]`."""
    if isinstance(value, list):
        return "+".join(map(_in_name, value))  # no `[` in a name: pytest then reruns everything under --lf
    return str(value).lower() if isinstance(value, bool) else str(value)
