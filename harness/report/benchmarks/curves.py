"""Curves of a comparison over an axis: one for each arm, with the power laws that the run fitted to them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from harness.core.record_files import Row
from harness.report.benchmarks.arm_rows import arms
from harness.report.formatting import short_name
from harness.report.json_values import as_float, as_list
from harness.report.plot import COLOURS, GREY
from harness.report.run_records import RunRecords

QUANTITY_NAMES = {"median_seconds": "time", "peak_memory_bytes": "memory", "positions": "positions"}


@dataclass(frozen=True)
class Curve:
    """One arm over the axis: the row of each point, verified points only."""

    arm: str
    control: bool
    rows: dict[float, Row]

    def of(self, quantity: str) -> list[tuple[float, float]]:
        """Return the points (x, value) that have this quantity, by rising x."""
        values = ((x, as_float(row.get(quantity))) for x, row in sorted(self.rows.items()))
        return [(x, value) for x, value in values if value is not None and value > 0]


@dataclass(frozen=True)
class Law:
    """A power law that the run fitted to the points `over`: y grows as x to the power `exponent`."""

    exponent: float
    low: float | None
    high: float | None
    over: tuple[float, ...]

    def text(self, symbol: str) -> str:
        """Return `T^1.98 [1.96, 2.00]`."""
        interval = "" if self.low is None or self.high is None else f" [{self.low:.2f}, {self.high:.2f}]"
        return f"{symbol}^{self.exponent:.2f}{interval}"


Laws = dict[tuple[str, str], Law]  # by arm and quantity


def curves_of(comparisons: list[Row]) -> list[Curve]:
    """Return the arms without their twins (the A/A check), each with its verified rows by point."""
    by_arm: dict[str, dict[float, Row]] = {}
    for comparison in comparisons:
        for row in arms(comparison):
            point = as_float(row["point"])
            if row["verified"] == "pass" and not row["twin_of"] and point:
                by_arm.setdefault(str(row["arm"]), {})[point] = row
    control = str(comparisons[0].get("control"))
    return [Curve(short_name(arm), arm == control, rows) for arm, rows in by_arm.items()]


def laws_of(bench: RunRecords, comparison: Row) -> Laws:
    """Return the exponents that the run fitted for this comparison and metric, by arm and quantity.

    A fit with a wide interval is left out: work that changes from one limit to another grows by no power.
    """
    found: Laws = {}
    for row in bench.expected_metrics:
        what, exponent = str(row.get("what")), as_float(row.get("found"))
        quantity = next((q for q, name in QUANTITY_NAMES.items() if name in what), None)
        same = all(str(row.get(key)) == str(comparison.get(key)) for key in ("comparison", "metric"))
        fits = "exponent" in what and row.get("verdict") != "unresolved"
        if fits and quantity and same and exponent is not None:
            points = [point[0] if isinstance(point, list) and point else point for point in as_list(row.get("points"))]
            over = tuple(x for point in points if (x := as_float(point)) is not None)
            low, high = as_float(row.get("low")), as_float(row.get("high"))
            found[short_name(row.get("arm")), quantity] = Law(exponent, low, high, over)
    return found


def metrics_over_axis(comparisons: list[Row]) -> list[str]:
    """Return the metrics that were measured at two points or more."""
    points: dict[str, set[float]] = {}
    for comparison in comparisons:
        point = as_float(comparison.get("point"))
        if point is not None and point > 0:
            points.setdefault(str(comparison.get("metric")), set()).add(point)
    return [metric for metric, found in points.items() if len(found) >= 2]


def is_decode_latency(comparison: Row) -> bool:
    """Return True for a comparison of decoding steps over the context, which `latency` draws."""
    return "decode" in str(comparison.get("metric")) and "context" in str(comparison.get("axis"))


def is_serving(comparison: Row) -> bool:
    """Return True for a comparison of serving over the rate of requests, which `serving` draws."""
    return "rate" in str(comparison.get("axis")) and any(
        "first_token_p50_seconds" in row["extras"] for row in arms(comparison)
    )


def is_speculation(comparison: Row) -> bool:
    """Return True for a comparison of speculative decoding over the drafts a round, which `speculation` draws."""
    return str(comparison.get("axis")) == "lookahead"


def colours_of(curves: Sequence[Curve]) -> dict[str, str]:
    """Return the colour of each arm: the control grey, the others in the order of the colours."""
    others = [curve.arm for curve in curves if not curve.control]
    found = {arm: COLOURS[index % len(COLOURS)] for index, arm in enumerate(others)}
    return found | {curve.arm: GREY for curve in curves if curve.control}


def first_results(texts: list[str], most: int = 3) -> str:
    """Return the first `most` results of a headline, and how many more there are."""
    return "; ".join(texts[:most]) + (f"; {len(texts) - most} more" if len(texts) > most else "")
