"""The table rows of a benchmark run: arms, ceilings and expected metrics."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from harness.core.record_files import Row
from harness.report.formatting import plain, slug
from harness.report.json_values import as_cell, as_float, as_list, as_mapping, mappings
from harness.report.run_records import RunRecords

MEASURED = (
    *("median_seconds", "spread_seconds", "tokens_per_call", "tokens_per_second", "flops", "moved_bytes"),
    *("error", "allowed"),
    *("positions", "positions_closed_form", "peak_memory_bytes", "peak_memory_ledger"),
)
CEILING = {
    "ceiling": "name",
    "regime": "regime",
    "fraction": "fraction",
    "fraction_low": "low",
    "fraction_high": "high",
}
RATIO = ("against", "ratio", "low", "high", "verdict", "p", "adjusted", "smallest_resolvable")
COMPARISON = ("comparison", "metric", "axis", "point", "control")
SETTINGS = ("subject", "size", "device", "threads", "quick", "load", "calls_per_block", "stopped")
NESTED = ("ledgers", "witness")  # one cell of JSON each
ARM_COLUMNS = (
    *("comparison", "metric", "axis", "point", "arm", "control", "twin_of", "verified", "message", "blocks"),
    *(*MEASURED, "warm", "warm_calls", *CEILING, "in_products", *NESTED, *RATIO, *SETTINGS, "peer"),
)


def by_comparison(bench: RunRecords | None) -> dict[str, list[Row]]:
    """Return the comparison records of a run by the names of their comparisons, as file names."""
    named: dict[str, list[Row]] = {}
    for comparison in bench.comparisons if bench else ():
        named.setdefault(slug(comparison.get("comparison")), []).append(comparison)
    return named


def arms(comparison: Row) -> Iterator[Row]:
    """Yield one row for each arm of a comparison at one point; an arm that was not verified has no figures."""
    found = {as_cell(arm.get("arm")): arm for arm in mappings(comparison.get("arms"))}
    verified = {name for name, arm in found.items() if as_mapping(arm.get("verified")).get("verdict") == "pass"}
    for name, arm in found.items():
        verdict = as_mapping(arm.get("verified"))
        shown = arm if name in verified else {}
        ratio = ratio_of(comparison, name, verified)
        ceiling, warm = as_mapping(shown.get("ceiling")), as_mapping(shown.get("warm"))
        yield {
            **{key: comparison.get(key) for key in (*COMPARISON, *SETTINGS)},
            "arm": name,
            "verified": verdict.get("verdict", "not verified"),
            "message": verdict.get("message"),
            "twin_of": arm.get("twin_of"),
            "description": None if arm.get("twin_of") else arm.get("description"),
            "blocks": len(as_list(shown.get("seconds"))) or None,
            **{key: shown.get(key) for key in MEASURED},
            "warm": warm.get("reached"),
            "warm_calls": warm.get("calls"),
            **{column: ceiling.get(key) for column, key in CEILING.items()},
            "in_products": in_products(shown),
            "peer": arm.get("peer") is True,
            **{key: as_mapping(shown.get(key)) for key in (*NESTED, "extras")},
            **{key: ratio.get(key) for key in RATIO},
        }


def ratio_of(comparison: Row, arm: object, verified: set[Any]) -> Row:
    """Return the ratio of an arm to its control if both were verified; otherwise an empty mapping."""
    for found in mappings(comparison.get("ratios")):
        if found.get("arm") == arm and {arm, as_cell(found.get("against"))} <= verified:
            return found
    return {}


def in_products(arm: Row) -> float | None:
    """Return the share of an arm's time in matrix products and fused attention; None if they were not observed.

    It is observed apart from the timing, so on a noisy machine the quotient may exceed 1; it is cut there.
    """
    spent, time = as_float(as_mapping(arm.get("witness")).get("products_seconds")), as_float(arm.get("median_seconds"))
    return min(1.0, spent / time) if spent and time else None


def table_of_arms(rows: list[Row]) -> tuple[list[str], list[Row]]:
    """Return columns and rows of a comparison's table; every extra of the arms is a column at the end."""
    extras = {name: plain(name, 60) for row in rows for name in row["extras"]}
    columns = {name: head if head not in ARM_COLUMNS else f"extra_{head}" for name, head in extras.items()}
    found = [
        {
            **row,
            **{name: as_cell(row[name] or None) for name in NESTED},
            **{columns[name]: as_cell(value) for name, value in row["extras"].items()},
        }
        for row in rows
    ]
    return [*ARM_COLUMNS, *columns.values()], found


def ceilings(bench: RunRecords) -> Iterator[Row]:
    """Yield one row for each measurement of a ceiling of the machine: what it bounds, and the rate that it allows."""
    for comparison in bench.comparisons:
        for found in mappings(comparison.get("ceilings")):
            kind = "compute" if found.get("flops") else "bandwidth" if found.get("moved_bytes") else "launch"
            blocks = sorted(s for each in as_list(found.get("seconds")) if (s := as_float(each)))
            yield {
                **{key: comparison.get(key) for key in (*COMPARISON, *SETTINGS)},
                **{key: found.get(key) for key in ("flops", "moved_bytes", "rate")},
                "ceiling": found.get("name"),
                "kind": kind,
                "unit": {"compute": "FLOP/s", "bandwidth": "B/s", "launch": "s"}[kind],
                "seconds": median(blocks),
                "spread_seconds": spread(blocks),
            }


def expected_metrics(bench: RunRecords, columns: Sequence[str]) -> Iterator[Row]:
    """Yield one row for each metric that was compared with its expected value."""
    for row in bench.expected_metrics:
        yield {key: as_cell(row.get(key)) for key in columns}


def median(ordered: list[float]) -> float | None:
    """Return the median of sorted values; None for no values."""
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2 if ordered else None


def spread(values: list[float]) -> float | None:
    """Return the median absolute deviation of sorted values, scaled to a standard deviation (by 1.4826)."""
    centre = median(values)
    return None if centre is None else 1.4826 * (median(sorted(abs(value - centre) for value in values)) or 0.0)
