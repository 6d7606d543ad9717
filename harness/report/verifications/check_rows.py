"""The table rows of a verification run: checks, activations, parameters and parity."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.core.record_files import Row
from harness.report.formatting import parameters, plain
from harness.report.json_values import as_cell, as_float, as_list, as_mapping
from harness.report.run_records import RunRecords


def check_row(check: Row, columns: Sequence[str]) -> Row:
    """Return a check as one flat row; nested values become JSON."""
    row = {key: check.get(key) for key in columns}
    for key in ("value", "expected"):
        row[key] = as_cell(row[key])
    row["parameters"] = parameters(as_mapping(check.get("parameters")))
    row["where"] = "; ".join(places(check))
    return row


def places(check: Row) -> list[str]:
    """Return where in the model a check found its value."""
    where = check.get("where")
    return [plain(place) for place in ([where] if isinstance(where, str) else as_list(where))]


def activations(verify: RunRecords) -> Iterator[Row]:
    """Yield one row for each size, recipe, stream and place of the residual stream."""
    for check in verify.checks:
        if check.get("measure") != "activation_std":
            continue
        built_with, predicted = as_mapping(check.get("parameters")), predictions(check)
        for where, std in as_mapping(check.get("value")).items():
            yield {
                "size": built_with.get("size"),
                "recipe": built_with.get("recipe", "default"),
                "stream": built_with.get("stream", "embedding"),
                "where": where,
                "std": as_float(std),
                "predicted": as_float(predicted.get(where)),
                "verdict": check.get("verdict"),
                "check": check.get("id"),
            }


def predictions(check: Row) -> Row:
    """Return the predicted value by place, if the measure gives one."""
    return as_mapping(as_mapping(check.get("details")).get("predicted"))


def components(verify: RunRecords) -> Iterator[Row]:
    """Yield one row for each size, tying and component of the parameter count, and one for each total.

    A claim about the count is left out: its value is a finding.
    """
    for check in verify.checks:
        if check.get("measure") != "parameter_count" or check.get("claim"):
            continue
        built_with = as_mapping(check.get("parameters"))
        found = as_mapping(as_mapping(check.get("details")).get("components"))
        for component, counted in {**found, "total": check.get("value")}.items():
            yield {
                "size": built_with.get("size"),
                "tied": built_with.get("tied", True),
                "component": component,
                "parameters": counted,
                "check": check.get("id"),
            }


def parity(verify: RunRecords) -> Iterator[Row]:
    """Yield one row for each difference that was judged by the noise verdict."""
    for check in verify.checks:
        for found in differences(check):
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


def differences(check: Row) -> list[Row]:
    """Return the differences behind a noise verdict; an empty list for every other check."""
    found = as_list(as_mapping(check.get("details")).get("comparisons"))
    return [row for row in found if isinstance(row, dict) and "float64" in row]
