"""A `[[claim]]` of a suite file: validated, and made into the check that tests it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from harness.core.errors import did_you_mean
from harness.suites.check import Check
from harness.suites.claim import (
    AS_THE_RUN_FINDS,
    CORRECTED,
    ELSEWHERE,
    FINDINGS,
    LESSONS,
    LEVELS,
    NOT_MEASURABLE,
    SOURCES,
    Claim,
)
from harness.suites.expectations import expectation_error
from harness.suites.measure_registry import Measure
from harness.suites.parameter_types import validate_parameters
from harness.suites.suite_lines import SuiteLines

TEXTS = ("name", "lesson", "figure", "says", "derived", "finding", "why", "source")
MEASURED = ("measure", "parameters", "at", "claimed", "corrected", "elsewhere", "by")
KEYS = {*TEXTS, *MEASURED, "missing", "level"}
ELSEWHERE_KEYS = {"setting", "parameters", "at", "expect"}
# What a finding needs beside the claimed expectation.
NEEDS = {CORRECTED: "corrected", ELSEWHERE: "elsewhere"}
# The measure of a claim that cannot be measured here: it is skipped, and says what is missing.
UNMEASURED = "missing_measurement"


def check_of_claim(
    suite: str, table: Mapping[str, Any], lines: SuiteLines, index: int, known: Mapping[str, Measure]
) -> Check:
    """Return the check of the index-th [[claim]]. Raises SuiteError, with file and line, for a mistake in it."""
    for key in table:
        if key not in KEYS:
            raise lines.error(index, key, f"unknown key '{key}' of a claim; {did_you_mean(key, KEYS)}")
    for key in TEXTS:
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise lines.error(index, None, f"a claim needs a {key}, as a string")
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", table["name"]):
        raise lines.error(index, "name", f"name '{table['name']}': expected lower-case words joined by '-'")
    _check_words(table, lines, index)
    measure, parameters = _measure(table, lines, index, known)
    claim = Claim(
        lesson=table["lesson"],
        figure=_line(table["figure"]),
        says=_line(table["says"]),
        derived=_line(table["derived"]),
        finding=table["finding"],
        claimed=table.get("claimed", {}),
        corrected=table.get("corrected", {}),
        elsewhere=table.get("elsewhere", {}),
        at=table.get("at", ""),
        by=table.get("by", "here"),
        level=table.get("level", ""),
    )
    return Check(
        suite=suite,
        name=table["name"],
        measure=measure,
        parameters=parameters,
        varying=(),
        expected=claim.expected,
        why=_line(table["why"]),
        source=_line(table["source"]),
        file=str(lines.path),
        line=lines.of(index),
        claim=claim,
    )


def _check_words(table: Mapping[str, Any], lines: SuiteLines, index: int) -> None:
    """Raise SuiteError for an unknown lesson, finding, source or level, and for a finding that lacks what it needs."""
    words: dict[str, Iterable[str]] = {
        "lesson": LESSONS,
        "finding": (*FINDINGS, NOT_MEASURABLE, AS_THE_RUN_FINDS),
        "by": SOURCES,
        "level": LEVELS,
    }
    for key, allowed in words.items():
        if key in table and table[key] not in allowed:
            raise lines.error(index, key, f"unknown {key} '{table[key]}'; {did_you_mean(str(table[key]), allowed)}")
    finding = table["finding"]
    if finding in NEEDS and NEEDS[finding] not in table:
        raise lines.error(index, "finding", f"the finding '{finding}' needs the key '{NEEDS[finding]}'")
    if finding == AS_THE_RUN_FINDS and table.get("by", "here") == "here":
        raise lines.error(
            index, "finding", f"'{finding}' is for claims by {', '.join(SOURCES[1:])}; state what is found here"
        )
    if (finding == NOT_MEASURABLE) != ("missing" in table):
        raise lines.error(index, "finding", f"'{NOT_MEASURABLE}' and the key 'missing', with what is, belong together")


def _measure(
    table: Mapping[str, Any], lines: SuiteLines, index: int, known: Mapping[str, Measure]
) -> tuple[str, dict[str, Any]]:
    """Return the measure and its parameters, validated with the expectations."""
    if table["finding"] == NOT_MEASURABLE:
        for key in MEASURED:
            if key in table:
                raise lines.error(index, key, f"a claim that is {NOT_MEASURABLE} has no '{key}'")
        return UNMEASURED, {"missing": _line(str(table["missing"]))}
    name, parameters = str(table.get("measure", "")), table.get("parameters", {})
    if name not in known:
        raise lines.error(index, "measure", f"unknown measure '{name}'; {did_you_mean(name, known)}")
    if not isinstance(parameters, dict) or not isinstance(table.get("at", ""), str):
        raise lines.error(index, None, "expected a table for parameters, and a string for at")
    validate_parameters(known[name], parameters, lines, index)
    _check_expectation(table.get("claimed", {}), "claimed", lines, index)
    if "corrected" in table:
        _check_expectation(table["corrected"], "corrected", lines, index)
    if "elsewhere" in table:
        _check_elsewhere(table["elsewhere"], known[name], parameters, lines, index)
    return name, parameters


def _check_expectation(expected: Any, key: str, lines: SuiteLines, index: int) -> None:
    if (reason := expectation_error(expected)) is not None:
        raise lines.error(index, key, f"{key}: {reason}")


def _check_elsewhere(
    other: Any, measure: Measure, parameters: Mapping[str, Any], lines: SuiteLines, index: int
) -> None:
    """Raise SuiteError unless `other` is a setting in words with an expectation, and parameters of the measure."""
    if not isinstance(other, dict) or not isinstance(other.get("setting"), str):
        raise lines.error(index, "elsewhere", "elsewhere: expected { setting = WORDS, expect = {...} }")
    for key in other:
        if key not in ELSEWHERE_KEYS:
            raise lines.error(index, key, f"unknown key '{key}' of elsewhere; {did_you_mean(key, ELSEWHERE_KEYS)}")
    if not {"parameters", "at"} & set(other):
        raise lines.error(index, "elsewhere", "elsewhere: expected parameters or at, in which the setting differs")
    if not isinstance(other.get("parameters", {}), dict) or not isinstance(other.get("at", ""), str):
        raise lines.error(index, "elsewhere", "elsewhere: expected a table for parameters, and a string for at")
    validate_parameters(measure, {**parameters, **other.get("parameters", {})}, lines, index)
    _check_expectation(other.get("expect", {}), "elsewhere", lines, index)


def _line(text: str) -> str:
    return " ".join(text.split())
