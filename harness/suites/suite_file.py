"""Suite files: TOML read into checks, one for each claim, each case and each cell of a matrix, and validated."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.core.errors import SuiteError, did_you_mean
from harness.core.toml_text import read_toml
from harness.suites.check import Check
from harness.suites.claim_table import check_of_claim
from harness.suites.expectations import expectation_error
from harness.suites.measure_registry import Measure
from harness.suites.parameter_types import validate_parameters
from harness.suites.suite_lines import SuiteLines

SUITE_KEYS = {"title", "about"}
TABLES = ("check", "claim")
CHECK_KEYS = {"name", "measure", "parameters", "matrix", "cases", "expect", "why", "source", "keep_reason"}
CASE_KEYS = {"parameters", "expect"}
RESERVED = {"skip", "skipif", "xfail", "parametrize", "usefixtures", "filterwarnings", "debug", "full", "text"}


@dataclass(frozen=True)
class Suite:
    """One file of checks."""

    name: str
    title: str
    about: str
    checks: tuple[Check, ...]


def read_suite(path: Path, measures: Mapping[str, Measure]) -> Suite:
    """Return the suite in `path`, validated against the measures by name.

    Raises SuiteError, with file and line, if the file is not a valid suite.
    """
    if path.stem in RESERVED:
        raise SuiteError(
            f"{path}:1: the name of a suite becomes a marker, and '{path.stem}' is a marker of pytest; rename the file"
        )
    text, data = read_toml(path, SuiteError)
    lines = SuiteLines(path, text)
    head = data.get("suite")
    if not isinstance(head, dict):
        raise SuiteError(f"{path}:1: expected a [suite] table with title and about")
    lines.refuse_unknown(head, SUITE_KEYS, "key of [suite]")
    lines.refuse_unknown(data, {"suite", *TABLES}, "table")
    for key in sorted(SUITE_KEYS):
        if not isinstance(head.get(key), str):
            raise SuiteError(f"{path}:1: [suite] needs a {key}, as a string")
    checks = [*_checks(lines, data, measures), *_claims(lines, data, measures)]
    if not checks:
        raise SuiteError(f"{path}:1: a suite without checks; expected at least one [[check]]")
    _refuse_duplicates(checks)
    return Suite(path.stem, head["title"], head["about"], tuple(checks))


def _checks(lines: SuiteLines, data: Mapping[str, Any], measures: Mapping[str, Measure]) -> Iterator[Check]:
    for index, table in enumerate(_tables(lines, data, "check")):
        yield from _expand(lines.path.stem, table, lines, index, measures)


def _claims(lines: SuiteLines, data: Mapping[str, Any], measures: Mapping[str, Measure]) -> Iterator[Check]:
    lines = SuiteLines(lines.path, lines.text, "claim")
    for index, table in enumerate(_tables(lines, data, "claim")):
        yield check_of_claim(lines.path.stem, table, lines, index, measures)


def _tables(lines: SuiteLines, data: Mapping[str, Any], name: str) -> list[dict[str, Any]]:
    """Return the tables [[name]] of the file. Raises SuiteError for [name] and other values."""
    raw = data.get(name, [])
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        raise SuiteError(
            f"{lines.path}:{lines.first(name)}: expected [[{name}]], in double brackets, once for each {name}"
        )
    return raw


def _expand(
    suite: str, table: dict[str, Any], lines: SuiteLines, index: int, known: Mapping[str, Measure]
) -> Iterator[Check]:
    """Yield the checks of the index-th [[check]], one for each of its combinations of parameters."""
    for key in table:
        if key not in CHECK_KEYS:
            raise lines.error(index, key, f"unknown key '{key}'; {did_you_mean(key, CHECK_KEYS)}")
    for key in ("name", "measure", "why", "source"):
        if not isinstance(table.get(key), str) or not table[key].strip():
            raise lines.error(index, None, f"a check needs a {key}, as a string")
    name = table["name"]
    if not re.fullmatch(r"[a-z0-9]+(-[a-z0-9]+)*", name):
        raise lines.error(index, "name", f"name '{name}': expected lower-case words joined by '-'")
    if table["measure"] not in known:
        raise lines.error(
            index, "measure", f"unknown measure '{table['measure']}'; {did_you_mean(table['measure'], known)}"
        )
    for parameters, varying, expected in _combinations(table, lines, index):
        validate_parameters(known[table["measure"]], parameters, lines, index)
        if (reason := expectation_error(expected)) is not None:
            word = next(iter(expected)) if isinstance(expected, dict) and len(expected) == 1 else "expect"
            raise lines.error(index, word, f"{name}: {reason}")
        yield Check(
            suite=suite,
            name=name,
            measure=table["measure"],
            parameters=parameters,
            varying=varying,
            expected=expected,
            why=" ".join(table["why"].split()),
            source=" ".join(table["source"].split()),
            keep_reason=" ".join(str(table.get("keep_reason", "")).split()),
            file=str(lines.path),
            line=lines.of(index),
        )


def _combinations(
    table: dict[str, Any], lines: SuiteLines, index: int
) -> Iterator[tuple[dict[str, Any], tuple[str, ...], dict[str, Any]]]:
    """Yield parameters, the names of those that vary, and the expectation, for every case and cell of the matrix."""
    fixed, matrix = table.get("parameters", {}), table.get("matrix", {})
    cases = table.get("cases", [{}])
    if not isinstance(fixed, dict) or not isinstance(matrix, dict) or not isinstance(cases, list) or not cases:
        raise lines.error(index, None, "expected tables for parameters and matrix, and a list of tables for cases")
    for key, values in matrix.items():
        if not isinstance(values, list) or not values:
            raise lines.error(index, key, f"matrix.{key}: expected a list of values, found {values!r}")
    for case in cases:
        if not isinstance(case, dict) or not isinstance(case.get("parameters", {}), dict):
            raise lines.error(index, "cases", f"a case is a table with parameters and expect; found {case!r}")
        for key in case:
            if key not in CASE_KEYS:
                raise lines.error(index, key, f"unknown key '{key}' of a case; {did_you_mean(key, CASE_KEYS)}")
        own = case.get("parameters", {})
        if "expect" in case and "expect" in table:
            raise lines.error(index, "expect", "both the check and a case have an expectation; expected one of them")
        expected = case.get("expect", table.get("expect", {}))
        for cell in itertools.product(*matrix.values()):
            parameters = {**fixed, **dict(zip(matrix, cell, strict=True)), **own}
            yield parameters, tuple(dict.fromkeys([*matrix, *own])), expected


def _refuse_duplicates(checks: list[Check]) -> None:
    """Raise SuiteError if two checks have the same id."""
    seen: dict[str, Check] = {}
    for check in checks:
        if check.id in seen:
            raise SuiteError(
                f"{check.file}:{check.line}: a second check '{check.id}'; the first is in line {seen[check.id].line}"
            )
        seen[check.id] = check
