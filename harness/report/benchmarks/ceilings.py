"""The ceilings of the machine: the rates that were measured in the same run as the arms."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from harness.core.record_files import Row
from harness.report import formatting
from harness.report.benchmarks import arm_rows, setup
from harness.report.blocks import Beside, Cell
from harness.report.formatting import plain
from harness.report.json_values import as_float
from harness.report.markdown import csv_link, embed, escape, table
from harness.report.plot import Plot
from harness.report.run_records import RunRecords

UNITS = {"compute": "FLOP/s", "bandwidth": "B/s"}


@dataclass(frozen=True)
class Ceiling:
    """One ceiling of the machine over a run: the median of its measurements, and their spread."""

    name: str
    kind: str  # compute, bandwidth or launch
    rate: float  # FLOP/s, byte/s, or seconds a launch
    spread: float  # in the unit of `rate`
    times: int

    @property
    def text(self) -> str:
        """`143 GFLOP/s`, `11.9 GB/s`, `9.8 µs`."""
        if self.kind in UNITS:
            return formatting.si_prefixed(self.rate, UNITS[self.kind])
        return formatting.timing(self.rate)


def ceilings_of(comparisons: Sequence[Row]) -> list[Ceiling]:
    """Return the ceilings of these comparisons, each over all its measurements, the arithmetic ones first."""
    rates: dict[tuple[str, str], list[float]] = {}
    for row in arm_rows.ceilings(RunRecords(comparisons=tuple(comparisons))):
        if (rate := as_float(row["rate"])) and rate > 0:
            rates.setdefault((row["kind"], plain(row["ceiling"], longest=40)), []).append(rate)
    found = [
        Ceiling(name, kind, arm_rows.median(sorted(seen)) or 0.0, arm_rows.spread(sorted(seen)) or 0.0, len(seen))
        for (kind, name), seen in rates.items()
    ]
    kinds = ("compute", "bandwidth", "launch")
    return sorted(found, key=lambda ceiling: (kinds.index(ceiling.kind), -ceiling.rate))


def section(run: RunRecords, drawn: list[Plot]) -> Iterator[str]:
    """Yield the rooflines `drawn` and a table of the ceilings of the run."""
    found = ceilings_of(run.comparisons)
    if not found:
        return
    yield from ("### Ceilings of the machine", "")
    for plot in drawn:
        yield from embed(plot)
    rows = []
    for ceiling in found:
        spread = "" if ceiling.times < 2 else f"± {formatting.percent(ceiling.spread / ceiling.rate)}"
        rows.append([escape(ceiling.name), ceiling.kind, Cell(ceiling.text, ceiling.rate), spread, str(ceiling.times)])
    numeric = ("rate", "spread", "times measured")
    yield from table(["ceiling", "bounds", *numeric], rows, right=numeric)
    yield (
        "*gemm* multiplies matrices, squares and ones of the shape of the model's widest layer; *read* reads so many "
        "bytes again and again; *launch* starts an operation on one element. *copy* bounds no arm. Each took turns "
        "with the arms of a comparison: an arm's share is of the rate in its own rounds, not of this median of the run "
        f"({setup.LINK})."
    )
    yield ""
    yield from (Beside(f"Medians over the run; each was measured in turn with the arms: {csv_link('ceilings')}."), "")
