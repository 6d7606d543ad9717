"""A sweep as its records have it: runs, and fits by source, count of N and approach."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from harness.core.record_files import Row
from harness.report.formatting import plain
from harness.report.json_values import as_float, as_list, as_mapping, mappings

ISO_FLOP, PARAMETRIC = "iso-flop", "parametric"
ALL = "all"  # the count of N by which the budgets were set
COLUMNS = {"all": "parameters", "non-embedding": "non_embedding"}


@dataclass(frozen=True)
class Value:
    """A fitted value with the ends of its interval, which may be missing."""

    value: float
    low: float | None
    high: float | None

    def text(self, digits: int = 3) -> str:
        """Return `0.462 [0.431, 0.494]`."""
        ends = (
            ""
            if self.low is None or self.high is None
            else f" [{_decimal(self.low, digits)}, {_decimal(self.high, digits)}]"
        )
        return f"{_decimal(self.value, digits)}{ends}"

    def excludes(self, number: float) -> bool:
        """Return True if a number is outside the interval."""
        return self.low is not None and self.high is not None and not self.low <= number <= self.high


@dataclass(frozen=True)
class Fit:
    """One fit: its values by name, its parabolas, and what is known of its source."""

    source: str
    count: str
    approach: str
    values: Mapping[str, Value]
    parabolas: Sequence[Row]
    row: Row

    def number(self, key: str) -> float | None:
        """Return a number of the row."""
        return as_float(self.row.get(key))

    @property
    def missing(self) -> str:
        """Why there is no fit; empty if there is one."""
        return plain(self.row.get("missing") or "")


@dataclass(frozen=True)
class Sweep:
    """The rows of a sweep's record file; what has another shape than expected is left out."""

    header: Row = field(default_factory=dict)
    runs: Sequence[Row] = ()
    fits: Sequence[Fit] = ()
    footer: Row = field(default_factory=dict)

    @classmethod
    def of(cls, rows: Sequence[Row]) -> Sweep:
        """Read rows."""
        kinds: dict[str, list[Row]] = {}
        for row in rows:
            kinds.setdefault(str(row.get("kind")), []).append(row)
        return cls(
            header=next(iter(kinds.get("header", [])), {}),
            runs=kinds.get("run", []),
            fits=[_fit(row) for row in kinds.get("fit", [])],
            footer=next(iter(kinds.get("footer", [])), {}),
        )

    @property
    def sources(self) -> list[str]:
        """The names of the sources, in the order of the runs."""
        return list(dict.fromkeys(str(run.get("source")) for run in self.runs))

    def fit(self, source: str, approach: str, count: str = ALL) -> Fit | None:
        """Return a fit; None if there is none."""
        wanted = (source, count, approach)
        return next((fit for fit in self.fits if (fit.source, fit.count, fit.approach) == wanted and fit.values), None)

    def of_source(self, source: str) -> list[Row]:
        """Return the runs of a source that have a loss."""
        return [run for run in self.runs if str(run.get("source")) == source and as_float(run.get("loss")) is not None]

    @property
    def without_loss(self) -> list[Row]:
        """The runs that are in no fit."""
        return [run for run in self.runs if as_float(run.get("loss")) is None]


def _fit(row: Row) -> Fit:
    values = {}
    for name, found in as_mapping(row.get("values")).items():
        value, low, high = (as_float(each) for each in (*as_list(found), None, None, None)[:3])
        if value is not None:
            values[str(name)] = Value(value, low, high)
    source, count, approach = (plain(row.get(key) or "", longest=60) for key in ("source", "count", "approach"))
    return Fit(source, count, approach, values, mappings(row.get("parabolas")), row)


def _decimal(value: float, digits: int) -> str:
    if not math.isfinite(value):
        return str(value)
    return f"{value:.{digits}f}" if abs(value) < 100 else f"{value:,.3g}" if abs(value) < 1000 else f"{value:.3g}"
