"""Metrics derived from several figures of a comparison: utilisation, break-even, exponents over an axis."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from harness.bench.arms.declared_comparison import DeclaredComparison
from harness.bench.scaling import break_even, describe_exponent, expected_exponent, exponent, exponent_verdict
from harness.core.record_files import Row

CLOSED_FORM = "closed form"  # the ledger's name


def add_derived_metrics(row: Row) -> None:
    """Add to the extras of each arm in a comparison's row the metrics that need more than the arm's own times.

    mfu: model FLOPs utilisation, the FLOPs of the model over those that the ceiling of matrix products allows in the
    same time.
    break_even_calls: the calls after which the first call, which compiles, has paid off; left out if a compiled call
    is no faster.
    """
    peaks: dict[str, float] = {}
    for found in row["ceilings"]:
        if found["name"].startswith("gemm"):
            peaks[found["computes"]] = max(found["rate"], peaks.get(found["computes"], 0.0))
    control = next(arm for arm in row["arms"] if arm["arm"] == row["control"])
    for arm in row["arms"]:
        extras, seconds = arm.get("extras") or {}, arm["median_seconds"]
        peak = peaks.get(arm.get("computes"))
        if seconds and peak and "model_flops" in extras:
            extras["mfu"] = extras["model_flops"] / seconds / peak
        if seconds and control["median_seconds"] and "first_call_seconds" in extras:
            calls = break_even(extras["first_call_seconds"], control["median_seconds"], seconds)
            if calls is not None:
                extras["break_even_calls"] = calls


def check_expectations(declared: DeclaredComparison, rows: Sequence[Row]) -> Iterator[Row]:
    """Yield a record of kind "held" for each expectation of a comparison, from its rows at every measured point."""
    for expectation in declared.expect:
        arms = {row["point"]: arm for row in rows for arm in row["arms"] if arm["arm"] == expectation["arm"]}
        arms = {point: arm for point, arm in arms.items() if arm["seconds"]}
        head = {"kind": "held", "comparison": declared.suite, "metric": declared.name, "arm": expectation["arm"]}
        if "exponent" in expectation and len(arms) >= 2:
            yield {**head, **_exponent(declared, expectation["exponent"], arms)}
        elif "memory_within" in expectation and arms:
            yield {**head, **_memory(expectation["memory_within"], arms)}
        elif "ratio_at_most" in expectation and arms:
            yield from ({**head, **found} for found in _ratio(declared, expectation, rows))


def _memory(within: float, arms: Mapping[Any, Row]) -> Row:
    """Return the largest relative difference between the exact peak and the closed form, over the points."""
    known = {point: arm for point, arm in arms.items() if arm["ledgers"].get(CLOSED_FORM)}
    off = {point: arm["peak_memory_bytes"] / arm["ledgers"][CLOSED_FORM] - 1 for point, arm in known.items()}
    worst = max(off.values(), key=abs, default=None)
    return {
        "what": "peak memory over the closed form, less 1",
        "found": worst,
        "low": worst,
        "high": worst,
        "told": "no closed form"
        if worst is None
        else f"peak memory is off the closed form by at most {abs(worst):.1%}",
        "expected": f"within {within:.0%}",
        "verdict": "unresolved" if worst is None else "pass" if abs(worst) <= within else "fail",
        "points": sorted(known),
    }


def _ratio(declared: DeclaredComparison, expectation: Mapping[str, Any], rows: Sequence[Row]) -> Iterator[Row]:
    """Yield the time over the control's at the last point.

    The verdict is pass if the whole interval is at most the limit, fail if it is above, and unresolved otherwise.
    """
    last, most = rows[-1], expectation["ratio_at_most"]
    for ratio in last["ratios"]:
        if ratio["arm"] == expectation["arm"]:
            low, high = ratio["low"], ratio["high"]
            at = "" if last["point"] is None else f" at {declared.axis}={last['point']}"
            yield {
                "what": f"time over {declared.control}'s{at}",
                "found": ratio["ratio"],
                "low": low,
                "high": high,
                "told": f"time is {ratio['ratio']:.2f} of {declared.control}'s{at} [{low:.2f}, {high:.2f}]",
                "expected": f"at most {most:g}",
                "verdict": "pass" if high <= most else "fail" if low > most else "unresolved",
                "points": [last["point"]],
            }


def _exponent(declared: DeclaredComparison, quantity: str, arms: Mapping[int, Row]) -> Row:
    """Return the exponent of time or memory over the axis, and that of the closed form at the same points."""
    axis = str(declared.axis)
    if quantity == "time":
        found = exponent({point: arm["seconds"] for point, arm in arms.items()})
        expected = {point: arm["flops"] for point, arm in arms.items()}
    else:
        found = exponent({point: [arm["peak_memory_bytes"]] for point, arm in arms.items()})
        expected = {point: arm["ledgers"].get(CLOSED_FORM) for point, arm in arms.items()}
    row = {
        "what": f"exponent of {quantity} over {axis}",
        "quantity": quantity,
        "found": found.value,
        "low": found.low,
        "high": found.high,
        "told": f"{quantity} {describe_exponent(found, axis=axis)}",
        "points": sorted(arms),
    }
    if not all(expected.values()):
        return {**row, "expected": "no closed form", "verdict": "unresolved"}
    predicted = expected_exponent({float(point): float(value) for point, value in expected.items() if value})
    if quantity == "memory":
        return {**row, "expected": f"{predicted:.2f} by the closed form", "verdict": exponent_verdict(found, predicted)}
    # The closed form of time counts FLOPs alone. Data that no longer fits in the cache makes time grow differently, and
    # correctly so: another exponent is a difference, not a failure.
    verdict = exponent_verdict(found, predicted)
    return {**row, "expected": f"{predicted:.2f} by its FLOPs", "verdict": "differs" if verdict == "fail" else verdict}
