"""The rows behind the page: one list of flat rows a table, ready for CSV."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from harness.report.run import Row, Run
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
}
MEASURED = (
    *("median_seconds", "spread_seconds", "tokens_per_second"),
    *("positions", "positions_closed_form", "peak_memory_bytes", "peak_memory_ledger"),
)
RATIO = ("against", "ratio", "low", "high", "verdict", "smallest_resolvable")
COMPARISON_COLUMNS = (
    *("comparison", "metric", "axis", "point", "arm", "control", "twin_of", "verified", "message", "blocks"),
    *(*MEASURED, "ledgers", *RATIO, "subject"),
)


def tables(verify: Run | None, bench: Run | None) -> dict[str, tuple[list[str], list[Row]]]:
    """Name to columns and rows, for every table that has rows."""
    verify, bench = verify or Run(), bench or Run()
    rows = {
        "checks": [check_row(check) for check in verify.checks],
        "activations": list(activations(verify)),
        "parameters": list(components(verify)),
        "parity": list(parity(verify)),
    }
    named = {name: (COLUMNS[name].split(), found) for name, found in rows.items()}
    for name, comparisons in by_comparison(bench).items():
        found = [row for comparison in comparisons for row in arms(comparison)]
        named[file_name(name)] = (
            list(COMPARISON_COLUMNS),
            [{**row, "ledgers": cell(row["ledgers"] or None)} for row in found],
        )
    return {name: (columns, found) for name, (columns, found) in named.items() if found}


def file_name(comparison: str) -> str:
    """The table of a comparison, which must not take the place of another table."""
    return comparison if comparison not in COLUMNS else f"comparison-{comparison}"


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
        yield {
            **{key: comparison.get(key) for key in ("comparison", "metric", "axis", "point", "control", "subject")},
            "arm": name,
            "verified": verdict.get("verdict", "not verified"),
            "message": verdict.get("message"),
            "twin_of": arm.get("twin_of"),
            "blocks": len(shown.get("seconds") or []) or None,
            **{key: shown.get(key) for key in MEASURED},
            "ledgers": as_mapping(shown.get("ledgers")),
            **{key: ratio.get(key) for key in RATIO},
        }


def ratio_of(comparison: Row, arm: object, verified: set[Any]) -> Row:
    """The ratio of an arm to what it is held against, if both were verified; an empty mapping otherwise."""
    for found in mappings(comparison.get("ratios")):
        if found.get("arm") == arm and {arm, found.get("against")} <= verified:
            return found
    return {}


def as_mapping(value: Any) -> Row:
    """The value where it is a mapping, an empty one otherwise."""
    return value if isinstance(value, dict) else {}


def mappings(value: Any) -> list[Row]:
    """The mappings in a list; an empty list for anything else."""
    return [row for row in value if isinstance(row, dict)] if isinstance(value, list) else []


def slug(name: object) -> str:
    """A name as a file name: lower-case letters, digits and single hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", plain(name).lower()).strip("-")[:60] or "comparison"
