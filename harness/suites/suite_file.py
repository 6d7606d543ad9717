"""Suite files: TOML read into checks, one for each case and each cell of a matrix, and validated."""

from __future__ import annotations

import itertools
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args, get_origin

from harness.core.errors import SuiteError, did_you_mean
from harness.core.sizes import SIZES
from harness.suites.check import Check
from harness.suites.expectations import expectation_error
from harness.suites.measure_registry import Measure

SUITE_KEYS = {"title", "about"}
CHECK_KEYS = {"name", "measure", "parameters", "matrix", "cases", "expect", "why", "source", "keep_reason"}
CASE_KEYS = {"parameters", "expect"}
RESERVED = {"skip", "skipif", "xfail", "parametrize", "usefixtures", "filterwarnings", "debug", "full", "text"}
# Parameters that must be at least 1: with zero rows or tokens a check compares nothing.
COUNTS = {"rows", "length", "new_tokens", "prompt_length"}


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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SuiteError(f"{path}:1: not UTF-8: {error}") from error
    try:
        data = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        line = re.search(r"line (\d+)", str(error))
        raise SuiteError(f"{path}:{line.group(1) if line else 1}: not TOML: {error}") from error
    lines = _Lines(path, text)
    head = data.get("suite")
    if not isinstance(head, dict):
        raise SuiteError(f"{path}:1: expected a [suite] table with title and about")
    lines.refuse_unknown(head, SUITE_KEYS, 1, "key of [suite]")
    lines.refuse_unknown(data, {"suite", "check"}, 1, "table")
    for key in sorted(SUITE_KEYS):
        if not isinstance(head.get(key), str):
            raise SuiteError(f"{path}:1: [suite] needs a {key}, as a string")
    raw = data.get("check", [])
    if not isinstance(raw, list) or not all(isinstance(table, dict) for table in raw):
        raise SuiteError(f"{path}:{lines.first('check')}: expected [[check]], in double brackets, once for each check")
    if not raw:
        raise SuiteError(f"{path}:1: a suite without checks; expected at least one [[check]]")
    checks = [check for index, table in enumerate(raw) for check in _expand(path.stem, table, lines, index, measures)]
    _refuse_duplicates(checks)
    return Suite(path.stem, head["title"], head["about"], tuple(checks))


class _Lines:
    """The line numbers of keys, which tomllib does not give."""

    def __init__(self, path: Path, text: str) -> None:
        self.path = path
        self.lines = text.splitlines()
        self.starts = [number for number, line in enumerate(self.lines, 1) if re.match(r"\s*\[\[\s*check\s*\]\]", line)]

    def of(self, index: int, word: str | None = None) -> int:
        """Return the line of `word` within the index-th [[check]], or the line of its header."""
        start = self.starts[index] if index < len(self.starts) else 1
        stop = self.starts[index + 1] if index + 1 < len(self.starts) else len(self.lines) + 1
        if word is not None:
            for number in range(start, stop):
                if re.search(rf"\b{re.escape(word)}\b", self.lines[number - 1].split("#")[0]):
                    return number
        return start

    def first(self, word: str) -> int:
        """Return the first line of the file that contains `word`, or 1."""
        return next((n for n, text in enumerate(self.lines, 1) if re.search(rf"\b{re.escape(word)}\b", text)), 1)

    def error(self, index: int, word: str | None, message: str) -> SuiteError:
        """Return a SuiteError that begins with the file and the line of `word`."""
        return SuiteError(f"{self.path}:{self.of(index, word)}: {message}")

    def refuse_unknown(self, table: Mapping[str, Any], known: set[str], line: int, what: str) -> None:
        """Raise SuiteError for a key of the table that is not known; `what` describes it in the message."""
        for key in table:
            if key not in known:
                number = next(
                    (n for n, text in enumerate(self.lines, 1) if re.search(rf"\b{re.escape(key)}\b", text)),
                    line,
                )
                raise SuiteError(f"{self.path}:{number}: unknown {what} '{key}'; {did_you_mean(key, known)}")


def _expand(
    suite: str, table: dict[str, Any], lines: _Lines, index: int, known: Mapping[str, Measure]
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
        _validate_parameters(known[table["measure"]], parameters, lines, index)
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
    table: dict[str, Any], lines: _Lines, index: int
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


def _validate_parameters(measure: Measure, parameters: Mapping[str, Any], lines: _Lines, index: int) -> None:
    """Raise SuiteError if the measure does not accept the parameters."""
    for key, value in parameters.items():
        if key not in measure.parameters:
            raise lines.error(
                index,
                key,
                f"unknown parameter '{key}' of {measure.name}; {did_you_mean(key, measure.parameters)}",
            )
        if not _has_type(value, measure.types[key]):
            raise lines.error(
                index,
                key,
                f"parameter {key} of {measure.name}: expected {_type_name(measure.types[key])}, found {value!r}",
            )
        if key == "size" and value not in SIZES:
            raise lines.error(index, str(value), f"unknown size '{value}'; {did_you_mean(value, SIZES)}")
        if key in COUNTS and value < 1:
            raise lines.error(index, key, f"parameter {key} of {measure.name}: expected 1 or more, found {value!r}")
    if missing := measure.required - set(parameters):
        raise lines.error(index, "parameters", f"{measure.name} needs the parameter '{sorted(missing)[0]}'")


def _has_type(value: Any, hint: Any) -> bool:
    """Return True if the TOML value is of the annotated type of a measure's parameter."""
    origin = get_origin(hint)
    if origin is not None and str(origin) == "typing.Literal":
        return value in get_args(hint)
    if origin is list:
        return isinstance(value, list) and all(_has_type(item, get_args(hint)[0]) for item in value)
    if get_args(hint):
        return any(_has_type(value, option) for option in get_args(hint))
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _type_name(hint: Any) -> str:
    if str(get_origin(hint)) == "typing.Literal":
        return "one of " + ", ".join(map(repr, get_args(hint)))
    return getattr(hint, "__name__", str(hint))


def _refuse_duplicates(checks: list[Check]) -> None:
    """Raise SuiteError if two checks have the same id."""
    seen: dict[str, Check] = {}
    for check in checks:
        if check.id in seen:
            raise SuiteError(
                f"{check.file}:{check.line}: a second check '{check.id}'; the first is in line {seen[check.id].line}"
            )
        seen[check.id] = check
