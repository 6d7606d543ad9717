"""The rows behind the page: one list of flat rows a table, ready for CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.report.run import Row, Run, mappings
from harness.report.wording import as_float, parameters, plain

COLUMNS = {
    "checks": (
        "suite check id measure parameters value unit expected verdict message where why source rerun seconds subject"
    ),
    "activations": "size recipe stream where std predicted verdict check",
    "parameters": "size tied component parameters check",
    "parity": (
        "suite check parameters where float32_difference float64_difference float32_floor float64_floor "
        "ratio scale verdict"
    ),
    "ceilings": (
        "comparison metric axis point size device threads ceiling kind rate unit seconds spread_seconds flops "
        "moved_bytes"
    ),
    "held": "comparison metric arm what found low high expected verdict points",
}
MEASURED = (
    *("median_seconds", "spread_seconds", "tokens_per_call", "tokens_per_second", "flops", "moved_bytes", "error"),
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
NAMED = ("comparison", "metric", "axis", "point", "control")
MADE = ("subject", "size", "device", "threads", "quick", "load", "calls_per_block", "stopped")
NESTED = ("ledgers", "witness")  # one cell of JSON each
COMPARISON_COLUMNS = (
    *("comparison", "metric", "axis", "point", "arm", "control", "twin_of", "verified", "message", "blocks"),
    *(*MEASURED, "warm", "warm_calls", *CEILING, "in_products", *NESTED, *RATIO, *MADE, "peer"),
)


def tables(verify: Run | None, bench: Run | None) -> dict[str, tuple[list[str], list[Row]]]:
    """Name to columns and rows, for every table that has rows."""
    verify, bench = verify or Run(), bench or Run()
    rows = {
        "checks": [check_row(check) for check in verify.checks],
        "activations": list(activations(verify)),
        "parameters": list(components(verify)),
        "parity": list(parity(verify)),
        "ceilings": list(ceilings(bench)),
        "held": list(held(bench)),
    }
    named = {name: (COLUMNS[name].split(), found) for name, found in rows.items()}
    for name, comparisons in by_comparison(bench).items():
        named[file_name(name)] = arm_table([row for comparison in comparisons for row in arms(comparison)])
    return {name: (columns, found) for name, (columns, found) in named.items() if found}


def file_name(comparison: str) -> str:
    """The table of a comparison, which must not take the place of another table."""
    return comparison if comparison not in COLUMNS else f"comparison-{comparison}"


def arm_table(rows: list[Row]) -> tuple[list[str], list[Row]]:
    """Columns and rows of a comparison's table: each of the arms' extras is a column of its own, at the end."""
    extras = {name: plain(name, 60) for row in rows for name in row["extras"]}
    columns = {name: told if told not in COMPARISON_COLUMNS else f"extra_{told}" for name, told in extras.items()}
    found = [
        {
            **row,
            **{name: cell(row[name] or None) for name in NESTED},
            **{columns[name]: cell(value) for name, value in row["extras"].items()},
        }
        for row in rows
    ]
    return [*COMPARISON_COLUMNS, *columns.values()], found


def check_row(check: Row) -> Row:
    """A check as one row; nested values as JSON."""
    row = {key: check.get(key) for key in COLUMNS["checks"].split()}
    for key in ("value", "expected"):
        row[key] = cell(row[key])
    row["parameters"] = parameters(as_mapping(check.get("parameters")))
    row["where"] = "; ".join(places(check))
    return row


def cell(value: Any) -> Any:
    """A scalar as it is, anything nested as JSON."""
    return json.dumps(value, default=str) if isinstance(value, (dict, list, tuple)) else value


def places(check: Row) -> list[str]:
    """Where a check found what it found."""
    where = check.get("where")
    return [plain(place) for place in ([where] if isinstance(where, str) else where or [])]


def activations(verify: Run) -> Iterator[Row]:
    """One row a size, recipe, stream and place of the residual stream."""
    for check in verify.checks:
        if check.get("measure") != "activation_std":
            continue
        asked, predicted = as_mapping(check.get("parameters")), predictions(check)
        for where, std in as_mapping(check.get("value")).items():
            yield {
                "size": asked.get("size"),
                "recipe": asked.get("recipe", "default"),
                "stream": asked.get("stream", "embedding"),
                "where": where,
                "std": as_float(std),
                "predicted": as_float(predicted.get(where)),
                "verdict": check.get("verdict"),
                "check": check.get("id"),
            }


def predictions(check: Row) -> Row:
    """What theory says of each place, where the measure says it."""
    return as_mapping(as_mapping(check.get("details")).get("predicted"))


def components(verify: Run) -> Iterator[Row]:
    """One row a size, tying and component of the parameter count, and one for the total."""
    for check in verify.checks:
        if check.get("measure") != "parameter_count":
            continue
        asked = as_mapping(check.get("parameters"))
        found = as_mapping(as_mapping(check.get("details")).get("components"))
        for component, counted in {**found, "total": check.get("value")}.items():
            yield {
                "size": asked.get("size"),
                "tied": asked.get("tied", True),
                "component": component,
                "parameters": counted,
                "check": check.get("id"),
            }


def parity(verify: Run) -> Iterator[Row]:
    """One row a comparison that was judged by the noise verdict."""
    for check in verify.checks:
        for found in comparisons(check):
            difference, floor = as_float(found.get("float64")), as_float(found.get("floor64"))
            yield {
                "suite": check.get("suite"),
                "check": check.get("check"),
                "parameters": parameters(as_mapping(check.get("parameters"))),
                "where": found.get("where"),
                "float32_difference": found.get("float32"),
                "float64_difference": found.get("float64"),
                "float32_floor": found.get("floor32"),
                "float64_floor": found.get("floor64"),
                "ratio": difference / floor if difference is not None and floor else None,
                "scale": found.get("scale"),
                "verdict": found.get("verdict"),
            }


def comparisons(check: Row) -> list[Row]:
    """The comparisons behind a noise verdict; an empty list for every other check."""
    found = as_mapping(check.get("details")).get("comparisons")
    if not isinstance(found, list):
        return []
    return [row for row in found if isinstance(row, dict) and "float64" in row]


def by_comparison(bench: Run | None) -> dict[str, list[Row]]:
    """The comparison records of a run under the names of their comparisons, fit for a file name."""
    named: dict[str, list[Row]] = {}
    for comparison in bench.comparisons if bench else ():
        named.setdefault(slug(comparison.get("comparison")), []).append(comparison)
    return named


def arms(comparison: Row) -> Iterator[Row]:
    """One row an arm of one comparison at one point. An arm that was not verified has no figures."""
    found = {arm.get("arm"): arm for arm in mappings(comparison.get("arms"))}
    verified = {name for name, arm in found.items() if as_mapping(arm.get("verified")).get("verdict") == "pass"}
    for name, arm in found.items():
        verdict = as_mapping(arm.get("verified"))
        shown = arm if name in verified else {}
        ratio = ratio_of(comparison, name, verified)
        ceiling, warm = as_mapping(shown.get("ceiling")), as_mapping(shown.get("warm"))
        yield {
            **{key: comparison.get(key) for key in (*NAMED, *MADE)},
            "arm": name,
            "verified": verdict.get("verdict", "not verified"),
            "message": verdict.get("message"),
            "twin_of": arm.get("twin_of"),
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


def in_products(arm: Row) -> float | None:
    """The share of an arm's time that its matrix products and fused attention take; None where they were not seen.

    Watched apart from the timing, so that a noisy machine could make it more than all.
    """
    spent, time = as_float(as_mapping(arm.get("witness")).get("products_seconds")), as_float(arm.get("median_seconds"))
    return min(1.0, spent / time) if spent and time else None


def ceilings(bench: Run) -> Iterator[Row]:
    """One row a ceiling of the machine, each time it was measured: what bounds it, and the rate that it allows."""
    for comparison in bench.comparisons:
        for found in mappings(comparison.get("ceilings")):
            kind = "compute" if found.get("flops") else "bandwidth" if found.get("moved_bytes") else "launch"
            blocks = sorted(s for each in as_list(found.get("seconds")) if (s := as_float(each)))
            yield {
                **{key: comparison.get(key) for key in (*NAMED, *MADE)},
                **{key: found.get(key) for key in ("flops", "moved_bytes", "rate")},
                "ceiling": found.get("name"),
                "kind": kind,
                "unit": {"compute": "FLOP/s", "bandwidth": "B/s", "launch": "s"}[kind],
                "seconds": middle(blocks),
                "spread_seconds": spread(blocks),
            }


def held(bench: Run) -> Iterator[Row]:
    """One row a finding that was held against what theory says."""
    for row in bench.held:
        yield {key: cell(row.get(key)) for key in COLUMNS["held"].split()}


def middle(ordered: list[float]) -> float | None:
    """The median of sorted values; None of none."""
    return (ordered[len(ordered) // 2] + ordered[(len(ordered) - 1) // 2]) / 2 if ordered else None


def spread(values: list[float]) -> float | None:
    """The median absolute deviation of sorted values, scaled to a standard deviation as the harness scales it."""
    centre = middle(values)
    return None if centre is None else 1.4826 * (middle(sorted(abs(value - centre) for value in values)) or 0.0)


def ratio_of(comparison: Row, arm: object, verified: set[Any]) -> Row:
    """The ratio of an arm to what it is held against, if both were verified; an empty mapping otherwise."""
    for found in mappings(comparison.get("ratios")):
        if found.get("arm") == arm and {arm, found.get("against")} <= verified:
            return found
    return {}


def as_mapping(value: Any) -> Row:
    """The value where it is a mapping, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def as_list(value: Any) -> list[Any]:
    """The value where it is a list, an empty one otherwise."""
    return value if isinstance(value, list) else []


def slug(name: object) -> str:
    """A name as a file name: lower-case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", plain(name).lower()).strip("-")[:60] or "comparison"
