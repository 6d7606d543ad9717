"""Comparison files, `benchmarks/*.toml`: read and validated; an error names the file and the line."""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.bench.arms.all_arms import arm_specs, work_kinds
from harness.bench.arms.declared_comparison import DeclaredComparison
from harness.core.errors import SuiteError, did_you_mean
from harness.core.toml_text import read_toml
from harness.suites.suite_lines import SuiteLines

HEAD_KEYS = {"title", "about"}
KEYS = {"name", "work", "arms", "axis", "points", "quick", "parameters", "weight", "twin", "expect", "why"}
QUANTITIES = ("time", "memory")
EXPECT_KEYS = {"arm", "exponent", "ratio_at_most", "memory_within"}


def read_comparisons(folder: Path) -> list[DeclaredComparison]:
    """Return every comparison of the `*.toml` in `folder`. Raises SuiteError with file and line for a mistake."""
    return [declared for path in sorted(folder.glob("*.toml")) for declared in read_file(path)]


def read_file(path: Path) -> list[DeclaredComparison]:
    """Return the comparisons of one file: a `[suite]` table, and a `[[comparison]]` table each. Raises SuiteError."""
    text, data = read_toml(path, SuiteError)
    head = data.get("suite")
    named = isinstance(head, dict) and all(isinstance(head.get(key), str) for key in HEAD_KEYS)
    if not isinstance(head, dict) or not named or set(data) - {"suite", "comparison"}:
        raise SuiteError(f"{path}:1: expected a [suite] with title and about, and [[comparison]] tables, nothing else")
    tables, lines = data.get("comparison", []), SuiteLines(path, text, "comparison")
    if not isinstance(tables, list) or len(tables) != len(lines.starts):
        raise SuiteError(f"{path}:1: expected a line [[comparison]] above every comparison")
    found = [
        _TableReader(path.stem, head["title"], table, lines, index).declared() for index, table in enumerate(tables)
    ]
    if not found:
        raise SuiteError(f"{path}:1: a suite without comparisons; expected at least one [[comparison]]")
    if len({declared.name for declared in found}) < len(found):
        raise SuiteError(f"{path}:1: two comparisons have the same name")
    return found


@dataclass(frozen=True)
class _TableReader:
    """Reader of the index-th [[comparison]] table of a file."""

    suite: str
    title: str
    table: Mapping[str, Any]
    lines: SuiteLines
    index: int

    def declared(self) -> DeclaredComparison:
        table = self.table
        for key in table:
            self.check_known(key, KEYS, "key", key)
        name, work, why = (self.string(key) for key in ("name", "work", "why"))
        self.check_known(work, work_kinds(), "work", "work")
        arms = self.of_type("arms", list, None)
        for arm in arms:
            self.check_known(arm, arm_specs(), "arm", "arms")
        if len(set(arms)) < len(arms):
            raise self.error("arms", f"arms: expected each once, found {arms!r}")
        axis, parameters = table.get("axis"), self.of_type("parameters", dict, {})
        for key in (*parameters, *([axis] if "axis" in table else [])):
            self.check_known(key, work_kinds()[work].parameters, f"parameter of {work}", str(key))
        for key, value in parameters.items():
            if not _is_count(value):
                raise self.error(key, f"parameter {key}: expected 1 or more, found {value!r}")
        points = self.points("points", axis)
        return DeclaredComparison(
            suite=self.suite,
            title=self.title,
            name=name,
            work=work,
            arms=tuple(arms),
            axis=axis,
            points=points,
            quick=self.points("quick", axis) if "quick" in table else points,
            parameters=parameters,
            weight=self.weight(),
            twin=self.of_type("twin", bool, True),
            why=why,
            expect=tuple(self.expectation(entry, arms) for entry in self.of_type("expect", list, [])),
            place=f"{self.lines.path}:{self.lines.of(self.index)}",
        )

    def error(self, key: str | None, message: str) -> SuiteError:
        return self.lines.error(self.index, key, message)

    def check_known(self, word: Any, known: Collection[str], what: str, key: str) -> None:
        if not isinstance(word, str) or word not in known:
            raise self.error(key, f"unknown {what} '{word}'; {did_you_mean(str(word), known)}")

    def string(self, key: str) -> str:
        if not isinstance(self.table.get(key), str) or not self.table[key].strip():
            raise self.error(key, f"a comparison needs a {key}, as a string")
        return " ".join(self.table[key].split())

    def of_type(self, key: str, kind: type, default: Any) -> Any:
        value = self.table.get(key, default)
        if not isinstance(value, kind) or (value == [] != default):
            raise self.error(key, f"{key}: expected a {kind.__name__}, found {value!r}")
        return value

    def weight(self) -> float:
        weight = self.table.get("weight", 1)
        if not _is_positive(weight):
            raise self.error("weight", f"weight: expected a positive number, found {weight!r}")
        return float(weight)

    def points(self, key: str, axis: str | None) -> tuple[int | None, ...]:
        points: Sequence[Any] = self.table.get(key, [])
        if not isinstance(points, list) or not all(map(_is_count, points)):
            raise self.error(key, f"{key}: expected a list of counts of 1 or more, found {points!r}")
        if axis is None:
            if points and key == "points":
                raise self.error(key, f"points without an axis: {points}")
            return () if key == "quick" and "quick" in self.table else (None,)
        if key == "points" and not points:
            raise self.error(key, f"{key}: expected counts along {axis}, found {points!r}")
        return tuple(points)

    def expectation(self, entry: Any, arms: Sequence[str]) -> Mapping[str, Any]:
        if not isinstance(entry, dict):
            raise self.error("expect", f"expect: expected a list of tables, found {entry!r} in it")
        for key in entry:
            self.check_known(key, EXPECT_KEYS, "key of expect", key)
        self.check_known(entry.get("arm"), arms, "arm of this comparison", "expect")
        if "exponent" in entry:
            self.check_known(entry["exponent"], QUANTITIES, "quantity", "exponent")
        for key in ("ratio_at_most", "memory_within"):
            if key in entry and not _is_positive(entry[key]):
                raise self.error(key, f"{key}: expected a positive number, found {entry[key]!r}")
        if len(entry) != 2:
            kinds = sorted(EXPECT_KEYS - {"arm"})
            raise self.error("expect", f"expect: expected an arm and one of {kinds}, found {dict(entry)}")
        return entry


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_positive(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value <= sys.float_info.max
