"""The tables behind the page: columns and flat rows by name, ready for CSV."""

from __future__ import annotations

from harness.core.record_files import Row
from harness.report.benchmarks.arm_rows import arms, by_comparison, ceilings, expected_metrics, table_of_arms
from harness.report.run_records import RunRecords
from harness.report.verifications.check_rows import activations, check_row, components, parity

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
    "held": "comparison metric arm what found low high expected verdict points",  # the expected metrics
}


def tables(verify: RunRecords | None, bench: RunRecords | None) -> dict[str, tuple[list[str], list[Row]]]:
    """Return columns and rows by name, for every table that has rows."""
    verify, bench = verify or RunRecords(), bench or RunRecords()
    rows = {
        "checks": [check_row(check, COLUMNS["checks"].split()) for check in verify.checks],
        "activations": list(activations(verify)),
        "parameters": list(components(verify)),
        "parity": list(parity(verify)),
        "ceilings": list(ceilings(bench)),
        "held": list(expected_metrics(bench, COLUMNS["held"].split())),
    }
    named = {name: (COLUMNS[name].split(), found) for name, found in rows.items()}
    for name, comparisons in by_comparison(bench).items():
        named[file_name(name)] = table_of_arms([row for comparison in comparisons for row in arms(comparison)])
    return {name: (columns, found) for name, (columns, found) in named.items() if found}


def file_name(comparison: str) -> str:
    """Return the name of a comparison's table, which must not be the name of another table."""
    return comparison if comparison not in COLUMNS else f"comparison-{comparison}"
